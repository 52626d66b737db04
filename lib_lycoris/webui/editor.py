"""The editor of a network's remarks, behind the pencil on its card; it writes the JSON that the built-in Lora page writes too."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from modules import ui_extra_networks_user_metadata

from lib_lycoris.errors import LycoError
from lib_lycoris.files.sidecar import VERSION, VERSIONS, WEIGHT, json_beside, read_remarks, write_remarks
from lib_lycoris.library.shelf import read_metadata

from .cards import NetworksPage

_ROWS = {
    "ss_output_name": "Name given in training", "modelspec.title": "Title", "modelspec.author": "Author", "modelspec.license": "License",
    "modelspec.description": "Description in the file", "modelspec.trigger_phrase": "Trigger words", "modelspec.usage_hint": "How to use it",
    "modelspec.architecture": "Architecture", "ss_sd_model_name": "Trained on", "ss_resolution": "Resolution", "ss_num_train_images": "Pictures",
    "ss_steps": "Steps", "ss_learning_rate": "Learning rate", "ss_optimizer": "Optimizer", "ss_clip_skip": "Clip skip",
    "ss_network_module": "Network module", "ss_training_comment": "Comment",
}
_MOST_TAGS = 40


class NetworkEditor(ui_extra_networks_user_metadata.UserMetadataEditor):
    """The host's editor with our fields; everything read from a file reaches the page escaped, or as a field's value.

    Args:
        draw: makes the fields, as `lib_lycoris.ui.network_editor.draw`.
    """

    def __init__(self, ui: Any, tabname: str, page: NetworksPage, draw: Any) -> None:
        super().__init__(ui, tabname, page)
        self._draw = draw
        self._version: Any = None

    def create_extra_default_items_in_left_column(self) -> None:
        """Draws the field for the base model."""
        self._version = self._draw.version(VERSIONS)

    def create_editor(self) -> None:
        """Draws the editor and says what its buttons do."""
        self.create_default_editor_elems()
        fields = self._draw.fields()
        self.edit_notes = fields.notes
        self.create_default_buttons()
        changed = [self.edit_description, self._version, fields.activation, fields.weight, fields.negative, self.edit_notes]
        self.button_edit.click(
            fn=self.read, inputs=[self.edit_name_input],
            outputs=[self.edit_name, self.html_filedata, self.html_preview, self.html_status, *changed, fields.tags],
        ).then(fn=self._draw.visible, inputs=[], outputs=[self.box])
        self.button_save.click(fn=self.save, inputs=[self.edit_name_input, *changed], outputs=[self.html_status]).then(
            fn=None, _js=f"function(name, status){{ if (!status) {{ closePopup(); lyco.refreshCard({json.dumps(self.tabname)}, name); }} }}",
            inputs=[self.edit_name_input, self.html_status], outputs=[])

    def read(self, name: str) -> list[Any]:
        """The values of all fields for a card."""
        try:
            path = self.page.path_of(name)
            remarks, told = read_remarks(path), read_metadata(path)
            table, card, status = _table(self.get_metadata_table(name)), self.get_card_html(name), ""
        except (LycoError, OSError) as error:
            remarks, told, table, card, status = {}, {}, "", "", _alert(error)
        description = remarks.get("description") or self.page.items.get(name, {}).get("description") or ""
        version = self.page.items.get(name, {}).get("sd_version", "Unknown")
        return [html.escape(name), table, card, status, description, version, remarks.get("activation text", ""),
                remarks.get(WEIGHT, 0.0), remarks.get("negative text", ""), remarks.get("notes", ""), self._draw.tags(most_frequent(told))]

    def save(self, name: str, *values: Any) -> str:
        """Writes the remarks; gives what went wrong, as HTML."""
        keys = ("description", VERSION, "activation text", WEIGHT, "negative text", "notes")
        try:
            path = self.page.path_of(name)
            kept = read_remarks(path)
            now = {key: value for key, value in zip(keys, values, strict=True) if value is not None}
            if VERSION not in kept and now.get(VERSION) == self.page.items.get(name, {}).get("sd_version"):
                del now[VERSION]  # what the file says is no remark
            write_remarks(path, now)
        except LycoError as error:
            return _alert(error)
        self.page.lister.update_file_entry(str(json_beside(path)))
        return ""

    def get_metadata_table(self, name: str) -> list[tuple[str, str]]:
        """(label, value) of what the file is and says, as plain text."""
        network = self.page.network_of(name)
        facts, told = network.facts, read_metadata(network.path)
        rows = [
            ("File", self.relative_path(str(network.path))), ("Size", f"{network.bytes / 1e6:.1f} MB"),
            ("Hash", self.page.items.get(name, {}).get("shorthash") or ""), ("Changed", _time(network.modified)),
            ("Kind", f"{facts.kind or ''} {f'rank {facts.rank}' if facts.rank else ''}"), ("Problem", facts.problem or ""),
            *((label, told.get(key, "")) for key, label in _ROWS.items()), ("Trained", _time(told.get("ss_training_finished_at", ""))),
        ]
        return [(label, text.strip()[:1000]) for label, text in rows if text.strip() and text.strip() != "None"]

    def get_user_metadata(self, name: str) -> dict[str, Any]:
        """The remarks as they stand on the disk now."""
        return read_remarks(self.page.path_of(name))


def make_editor(draw: Any) -> Callable[..., NetworkEditor]:
    """What makes an editor for (ui, tab's name, page)."""
    return lambda ui, tabname, page: NetworkEditor(ui, tabname, page, draw)


def most_frequent(metadata: Mapping[str, str]) -> list[tuple[str, int]]:
    """The parts of the training's captions that were seen most often, and how often."""
    try:
        held = json.loads(metadata.get("ss_tag_frequency") or "{}")
        counts: Counter[str] = Counter()
        for parts in held.values():
            for part, count in parts.items():
                counts[part.strip()[:200]] += int(count)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return []
    return [(part, count) for part, count in counts.most_common(_MOST_TAGS) if part]


def _table(rows: list[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{html.escape(label)}:</th><td>{html.escape(text)}</td></tr>" for label, text in rows)
    return f'<table class="file-metadata">{lines}</table>'


def _alert(error: Exception) -> str:
    return f'<p role="alert">{html.escape(str(error))}</p>'


def _time(seconds: float | str) -> str:
    try:
        return datetime.fromtimestamp(float(seconds), timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):
        return ""


