"""The Train tab's ways to come by settings: presets, own presets, kohya's files, a command line, a config file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from ..errors import LycoError
from . import compat, text
from .fields import KIND, Form
from .late import Late
from .train_page import TrainPage

KEPT = ("data.folders", "data.dataset", "data.prior_folder", "data.cache_folder", "data.control_folder", "validation.folder", "output.name", "output.folder",
        "network.start_from", "model.vae")
"""What a preset leaves as it is: it belongs to one training."""
_WORD = ("embedding.word", "embedding.start_from")
"""So does the word, where a word alone is trained."""
_NONE = "none: my own settings"
_LABEL = "Preset"


def draw_preset(page: TrainPage) -> tuple[Any, Any] | None:
    """Draws the list of presets, and room for what the chosen one is good for; gives both, or None where the host has none."""
    if page.presets is None:
        return None
    preset = gr.Dropdown(choices=_names(page), value=_NONE, label=_LABEL, elem_id="lycoris_preset",
                         info="Fills in all settings for what you want to train, on which model, with how much memory of the graphics card.")
    return preset, gr.HTML(elem_id="lycoris_preset_about", elem_classes=["lycoris-problem", "lycoris-said"])


def draw_files(page: TrainPage, form: Form, drawn: tuple[Any, Any] | None) -> None:
    """Draws own presets, import and export, folded; and lets the chosen preset or file fill in the form."""
    if drawn is None or page.export is None:
        return
    preset, about = drawn
    with gr.Accordion("Save, load and share settings", open=False, elem_id="lycoris_settings_files"):
        answer = gr.HTML(elem_id="lycoris_files_answer", elem_classes=["lycoris-problem"])
        with gr.Row():
            name = gr.Textbox(label="Name of your preset", max_lines=1, elem_id="lycoris_preset_name",
                              info="All settings but folders and names are kept under it, in the list of presets above.")
            with gr.Column(min_width=160):
                save = gr.Button("Save as preset", size="sm", elem_id="lycoris_preset_save")
                delete = gr.Button("Delete this preset", size="sm", elem_id="lycoris_preset_delete")
        file = gr.File(label="Load settings: a .json of kohya_ss, a .toml of sd-scripts, or a .toml saved here", file_types=[".json", ".toml"],
                       elem_id="lycoris_import")
        with gr.Row():
            command = gr.Button("Show as command line", size="sm", elem_id="lycoris_command")
            toml = gr.Button("Show as config file (.toml)", size="sm", elem_id="lycoris_toml")
        exported = gr.Textbox(label="To copy", lines=3, max_lines=20, visible=False, elem_id="lycoris_exported", **compat.with_copy_button())

    def wire() -> None:
        fields = form.components()
        late = Late(form.fields(), "settings")
        files = _Files(page, form, late)
        quiet = compat.quiet()
        late.after(preset.input(files.apply, [preset, *fields], [late.told, about], **quiet))
        save.click(files.save, [name, *fields], [preset, answer], **quiet)
        delete.click(files.delete, [name], [preset, answer], **quiet)
        late.after(file.upload(files.load, [file, *fields], [late.told, answer, file], **quiet))
        command.click(lambda *values: files.export("command", values), fields, [exported, answer], **quiet)
        toml.click(lambda *values: files.export("toml", values), fields, [exported, answer], **quiet)
        kind = form.fields()[KIND]
        kinds = form.kind_components()
        if kinds:
            kind.change(form.show_for, [kind], kinds, **quiet)

    form.when_drawn(wire)


class _Files:
    """What the buttons do: values for the form, and words."""

    def __init__(self, page: TrainPage, form: Form, late: Late) -> None:
        self._page, self._form, self._late = page, form, late

    def apply(self, name: str, *values: Any) -> list[Any]:
        preset = next((one for one in self._page.presets() if one["name"] == name), None)
        if preset is None:
            return ["", ""]
        return [self._tell(preset["values"], values), text.note(preset["about"])]

    def save(self, name: str, *values: Any) -> tuple[Any, str]:
        try:
            self._page.save_preset(name, self._form.config(values))
        except LycoError as error:
            return gr.update(), text.problems([str(error)])
        return gr.update(choices=_names(self._page), value=name.strip()), text.notes([f"Saved as {name.strip()!r}."])

    def delete(self, name: str) -> tuple[Any, str]:
        try:
            self._page.delete_preset((name or "").strip())
        except LycoError as error:
            return gr.update(), text.problems([str(error)])
        return gr.update(choices=_names(self._page), value=_NONE), text.notes([f"Deleted {name.strip()!r}."])

    def load(self, file: Any, *values: Any) -> list[Any]:
        if file is None:
            return ["", gr.update(), gr.update()]
        try:
            name, content = compat.uploaded(file)
            found = self._page.import_settings(content.decode("utf-8-sig", errors="replace"))
            told = self._tell(found["values"], values)
        except LycoError as error:
            return ["", text.problems([str(error)]), gr.update(value=None)]
        return [told, text.notes(self._said(name, found), "Look at the fields above before you start."), gr.update(value=None)]

    def export(self, which: str, values: Sequence[Any]) -> tuple[Any, str]:
        try:
            return gr.update(value=self._page.export(self._form.config(values))[which], visible=True), ""
        except LycoError as error:
            return gr.update(), text.problems([str(error)])

    def _tell(self, settings: Mapping[str, Any], values: Sequence[Any]) -> str:
        kept = (*KEPT, *_WORD) if settings.get(KIND) == "embedding" else KEPT
        return self._late.tell(self._form.filled(settings, kept), self._late.values(values))

    def _said(self, name: str, found: Mapping[str, Any]) -> list[str]:
        taken = [key for key in found["values"] if key in self._form.fields()]
        return [f"{len(taken)} settings were taken over from {name}.", *found["notes"]]


def _names(page: TrainPage) -> list[str]:
    return [_NONE, *(one["name"] for one in page.presets())] if page.presets is not None else []
