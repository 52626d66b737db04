"""Pages of cards. As the host's, it puts some values into its HTML as they are: file names, search terms, paths in the tree."""

import html
import os
from pathlib import Path

extra_pages = []
allowed_dirs = set()


def initialize():
    extra_pages.clear()


def register_page(page):
    extra_pages.append(page)
    allowed_dirs.clear()
    allowed_dirs.update(folder for page in extra_pages for folder in page.allowed_directories_for_previews())


class Lister:
    def reset(self):
        """Forgets what it has seen; this one keeps nothing."""

    def exists(self, path):
        return os.path.exists(path)

    def mctime(self, path):
        status = os.stat(path)
        return status.st_mtime, status.st_ctime

    def update_file_entry(self, path):
        """Looks at one file anew; this one keeps nothing."""


class ExtraNetworksPage:
    def __init__(self, title):
        self.title, self.name = title, title.lower()
        self.extra_networks_tabname = self.name.replace(" ", "_")
        self.allow_negative_prompt = False
        self.metadata, self.items, self.lister = {}, {}, Lister()
        self.card_tpl = ('<div class="card" onclick="{card_clicked}" data-name="{name}" {sort_keys}>{background_image}{copy_path_button}{metadata_button}'
                         '{edit_button}<div class="additional">{search_terms}</div><span class="name">{name}</span>'
                         '<span class="description">{description}</span></div>')
        self.btn_tree_tpl = '<div data-path="{data_path}" data-hash="{data_hash}" onclick="{onclick_extra}">{action_list_item_label}{actions}</div>'
        self.btn_copy_path_tpl = '<div data-clipboard-text="{filename}"></div>'

    def create_html(self, tabname):
        self.items = {item["name"]: item for item in self.list_items()}
        self.metadata = {name: item["metadata"] for name, item in self.items.items() if item.get("metadata")}
        cards = self.create_card_view_html(tabname, none_message=None)
        return cards + "".join(self.create_tree_file_item_html(tabname, item["filename"], item) for item in self.items.values())

    def create_card_view_html(self, tabname, *, none_message):
        return "".join(self.create_item_html(tabname, item, self.card_tpl) for item in self.items.values()) or none_message

    def create_tree_file_item_html(self, tabname, file_path, item):
        parts = self.create_item_html(tabname, item)
        return self.btn_tree_tpl.format(data_path=file_path, data_hash=item["shorthash"], onclick_extra=parts["card_clicked"],
                                        action_list_item_label=item["name"], actions=parts["metadata_button"] + parts["edit_button"])

    def create_item_html(self, tabname, item, template=None):
        from modules import shared

        description = item["description"] or ""
        parts = {
            "card_clicked": item["onclick"], "name": html.escape(item["name"]), "metadata_button": "<i>m</i>" if item.get("metadata") else "",
            "edit_button": "<i>e</i>", "copy_path_button": self.btn_copy_path_tpl.format(filename=item["filename"]),
            "background_image": f'<img src="{html.escape(item["preview"])}">' if item["preview"] else "",
            "search_terms": "".join(f"<span class='search_terms'>{term}</span>" for term in item["search_terms"]),
            "sort_keys": " ".join(f'data-sort-{key}="{html.escape(str(value))}"' for key, value in item["sort_keys"].items()),
            "description": description if shared.opts.extra_networks_card_description_is_html else html.escape(description),
        }
        return template.format(**parts) if template else parts

    def get_sort_keys(self, path):
        modified, created = self.lister.mctime(path)
        return {"date_created": int(created), "date_modified": int(modified), "name": Path(path).name.lower(), "path": str(path).lower()}

    def search_terms_from_path(self, path):
        return next((os.path.relpath(path, os.path.dirname(folder)) for folder in self.allowed_directories_for_previews() if path.startswith(folder)), "")

    def find_preview(self, stem):
        return next((f"./thumb?{stem}.{kind}" for kind in ("png", "jpg") if os.path.exists(f"{stem}.{kind}")), None)

    def find_description(self, stem):
        path = Path(f"{stem}.txt")
        return path.read_text() if path.exists() else None
