"""The page "LyCORIS" among the host's extra networks. Whatever a file, its name or its remarks say is shown as text, never as HTML."""

from __future__ import annotations

import functools
import html
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modules import shared, ui_extra_networks

from lib_lycoris.errors import NetworkFileError, UnknownNetworkError, shown
from lib_lycoris.files.safetensors import read_header
from lib_lycoris.files.sidecar import VERSION, WEIGHT, json_beside, read_remarks
from lib_lycoris.library.facts import COVERS, VERSION_OF
from lib_lycoris.library.shelf import Shelf, Shelved

from . import host, settings
from .embeddings import own_folder
from .known_hashes import known_hash

TITLE = "LyCORIS"


class NetworksPage(ui_extra_networks.ExtraNetworksPage):
    """Cards of all networks.

    Args:
        shelf: the networks.
        make_editor: makes the editor of remarks for (ui, tab's name, page).
        refreshed: called when the user wants all cards anew, after the host's own pages have looked at their folders.
    """

    def __init__(self, shelf: Shelf, make_editor: Callable[..., Any], refreshed: Callable[[], Any] = lambda: None) -> None:
        super().__init__(TITLE)
        self._shelf, self._make_editor, self._refreshed = shelf, make_editor, refreshed
        self._networks: dict[str, Shelved] = {}
        # The host fills these in as they come; what they hold is named by whoever made the file.
        self.btn_copy_path_tpl = _Escaping(self.btn_copy_path_tpl)
        self.btn_tree_tpl = _Escaping(self.btn_tree_tpl)

    def refresh(self) -> None:
        """Reads the folders anew."""
        self._shelf.scan()
        self._refreshed()
        allow_previews()

    def list_items(self) -> Iterator[dict[str, Any]]:
        """A record for each card."""
        self._networks = {network.name: network for network in self._shelf.networks()}
        for index, name in enumerate(self._networks):
            item = self.create_item(name, index)
            if item is not None:
                yield item

    def create_item(self, name: str, index: int | None = None, enable_filter: bool = True) -> dict[str, Any] | None:
        """The record of one card; None where the user wants no cards of its base model.

        Raises:
            UnknownNetworkError: there is no such network.
        """
        network = self._networks.get(name) or self._shelf.find(name)
        stem, facts = str(network.path.with_suffix("")), network.facts
        item: dict[str, Any] = {
            "name": name, "filename": str(network.path), "shorthash": known_hash(network), "local_preview": f"{stem}.{shared.opts.samples_format}",
            "preview": self.find_preview(stem) or self._cover(network), "description": self.find_description(stem),
            "sort_keys": {"default": index, **self.get_sort_keys(str(network.path))}, "metadata": Metadata(network.path) if facts.has_metadata else None,
        }
        self.read_user_metadata(item)
        item["sd_version"] = version = _version(network, item["user_metadata"])
        if enable_filter and settings.value(settings.HIDE) and version not in ("Unknown", _loaded_version() or version):
            return None
        item["shown"] = _shown(network, version)
        item["search_terms"] = [html.escape(term) for term in (self.search_terms_from_path(str(network.path)), item["shorthash"], version, facts.alias,
                                                               facts.kind, facts.title, facts.trigger_phrase, facts.tags) if term]
        item["onclick"] = self._on_click(network, item["user_metadata"])
        item["prompt"] = item["negative_prompt"] = '""'
        return item

    def read_user_metadata(self, item: dict[str, Any], use_cache: bool = True) -> None:
        """Puts the user's remarks, and the description among them, into a card's record."""
        path = Path(item["filename"])
        exists = self.lister.exists(str(json_beside(path))) if use_cache else True
        item["user_metadata"] = read_remarks(path) if exists else {}
        item["description"] = item["user_metadata"].get("description") or item.get("description")

    def create_item_html(self, tabname: str, item: dict[str, Any], template: str | None = None) -> str | dict[str, Any]:
        """A card's HTML, or without a template its parts."""
        lines = [*item["shown"], item["description"] or ""]
        text = "\n".join(line for line in lines if line)
        # The host escapes the description itself, but not where the user wants those of other pages as HTML.
        description = html.escape(text) if shared.opts.extra_networks_card_description_is_html else text
        onclick = item["onclick"].replace(_TAB, tabname)
        made = super().create_item_html(tabname, {**item, "description": description, "onclick": onclick}, template)
        if isinstance(made, dict):
            # In the tree no element above the buttons says which network they belong to.
            for button in ("metadata_button", "edit_button"):
                made[button] = f'<span class="lyco-named" data-name="{html.escape(item["name"])}"><span class="lyco-named">{made[button]}</span></span>'
        return made

    def create_card_view_html(self, tabname: str, *, none_message: str | None) -> str:
        """All cards' HTML, or what stands there where there are none."""
        folders = "".join(f"<li>{html.escape(str(folder))}</li>" for folder in settings.network_folders() if folder.is_dir())
        nothing = f"<div class='nocards'><h1>No networks yet. Put .safetensors files into one of these folders:</h1><ul>{folders}</ul></div>"
        return super().create_card_view_html(tabname, none_message=none_message or nothing)

    def allowed_directories_for_previews(self) -> list[str]:
        """The folders whose pictures the host may show."""
        return [str(folder) for folder in (*settings.network_folders(), own_folder()) if folder.is_dir()]

    def create_user_metadata_editor(self, ui: Any, tabname: str) -> Any:
        """The editor of remarks."""
        return self._make_editor(ui, tabname, self)

    def path_of(self, name: str) -> Path:
        """The file of a card.

        Raises:
            UnknownNetworkError: there is none of this name.
        """
        return self.network_of(name).path

    def network_of(self, name: str) -> Shelved:
        """The network of a card.

        Raises:
            UnknownNetworkError: there is none of this name.
        """
        known = self._networks.get(name)
        if known is None:
            raise UnknownNetworkError(f"no card is called {name!r}: press Refresh")
        return known

    def _cover(self, network: Shelved) -> str | None:
        if not network.facts.has_cover:
            return None
        return f"./sd_extra_networks/cover-images?page={self.extra_networks_tabname}&item={urllib.parse.quote(network.name, safe='')}"

    def _on_click(self, network: Shelved, remarks: Mapping[str, Any]) -> str:
        """What a click does, as the content of an HTML attribute."""
        if network.tag_name is None:
            return ""
        names = [network.tag_name, network.name, *self._relative(network.path), *([network.facts.hash[:12]] if network.facts.hash else [])]
        card = {"tag": network.tag_name, "names": list(dict.fromkeys(names)), "strength": remarks.get(WEIGHT) or None,
                "text": remarks.get("activation text", "").strip(), "negative": remarks.get("negative text", "").strip()}
        return html.escape(f"lyco.toggle('{_TAB}', {json.dumps(card)})")

    def _relative(self, path: Path) -> Iterator[str]:
        for folder in settings.network_folders():
            if path.is_relative_to(folder):
                yield path.relative_to(folder).with_suffix("").as_posix()


def allow_previews() -> None:
    """Has the host show pictures from the pages' folders of now; by itself it asks for them only at its start."""
    allowed = {folder for page in ui_extra_networks.extra_pages for folder in page.allowed_directories_for_previews()}
    ui_extra_networks.allowed_dirs.clear()
    ui_extra_networks.allowed_dirs.update(allowed)


class Metadata(Mapping[str, str]):
    """What a file says about itself, read when somebody asks: thousands of files may hold hundreds of kilobytes each."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getitem__(self, key: str) -> str:
        held = self._held()
        if key == COVERS[0] and key not in held:  # a picture in the place where the host looks for one
            return json.dumps([held[COVERS[1]].partition("base64,")[2]])
        return held[key]

    def __iter__(self) -> Iterator[str]:
        return (key for key in self._held() if key not in COVERS)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True

    def _held(self) -> Mapping[str, str]:
        return _read(self._path, host.modified(self._path))


@functools.lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, int] | None) -> Mapping[str, str]:
    try:
        return read_header(path).metadata
    except NetworkFileError:
        return {}


class _Escaping(str):
    """A template of the host's that takes these values as text."""

    TEXTS = ("filename", "data_path", "data_hash", "action_list_item_label")

    def format(self, *places: Any, **values: Any) -> str:
        """The filled template."""
        return str.format(self, *places, **{key: html.escape(str(text)) if key in self.TEXTS else text for key, text in values.items()})


_TAB = "lyco-tab-name"


def _version(network: Shelved, remarks: Mapping[str, Any]) -> str:
    told = remarks.get(VERSION)
    return told if told in VERSION_OF.values() else VERSION_OF.get(network.facts.base_model or "", "Unknown")


def _loaded_version() -> str | None:
    """The base model of the loaded checkpoint; None where none is loaded, or another kind."""
    model = host.loaded_model()
    return next((name for name in VERSION_OF.values() if getattr(model, f"is_{name.lower()}", False)), None)


def _shown(network: Shelved, version: str) -> list[str]:
    """The lines of a card that tell what the file is."""
    facts, wanted = network.facts, settings.value(settings.ON_CARDS)
    kind = f"{facts.kind} {facts.rank or ''}".strip() if facts.kind else ""
    first = [version if version != "Unknown" and settings.BASE_MODEL in wanted else "", kind if settings.KIND in wanted else ""]
    lines = [" · ".join(part for part in first if part)]
    if facts.trigger_phrase and settings.TRIGGER in wanted:
        lines.append(facts.trigger_phrase)
    if facts.description and settings.ABOUT in wanted:
        lines.append(facts.description)
    problem = (facts.problem or "").removeprefix(f"{shown(network.path)} ")
    return [f"can't be used: {'it ' if problem.startswith('is ') else ''}{problem}" if problem else "", *lines]
