"""What can be done with the chosen file: a folded part of the Library tab for each action, its fields made from the action's record."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ConfigError, LycoError
from . import library_text, text
from .fields import Form
from .library_list import day, megabytes

FOLDED = (("measure", "Norms and singular values"), ("compare", "Compare with another network"), ("remark", "Remarks"), ("preview", "Preview picture"),
          ("rename", "Rename"), ("convert", "Convert: for another program"), ("resize", "Resize: smaller ranks"), ("merge", "Merge: several as one"),
          ("delete", "Delete"))
"""The parts, in their order, with their titles; restore and empty are in the trash's own part."""

_FROM_THE_LIST = ("name", "shelf")
"""Settings that the list at the left gives."""

_OF_NETWORKS = ("measure", "compare", "convert", "resize", "merge")
"""Actions that other files have no use for."""

_OTHERS = 500


class Actions:
    """The parts and what their buttons do.

    Args:
        page: what is done (`library.LibraryPage`).
        quiet: how events are sent.
    """

    def __init__(self, page: Any, quiet: Mapping[str, Any]) -> None:
        self._page, self._quiet = page, dict(quiet)
        self._actions = {action.name: action for action in page.actions}
        self.forms: dict[str, Form] = {}
        self.buttons: dict[str, Any] = {}
        self.said: Any = None
        self.problem: Any = None
        networks_alone: list[Any] = []
        for name, title in FOLDED:
            if name in self._actions:
                with gr.Accordion(title, open=False, elem_id=f"lycoris_library_{name}") as part:
                    gr.Markdown(self._actions[name].help)
                    getattr(self, f"_draw_{name}", self._draw)(name)
                if name in _OF_NETWORKS:
                    networks_alone.append(part)
        self._draw_trash()
        remarks = list(self.forms["remark"].fields().values())
        self.filled = [*remarks, self.forms["rename"].fields()["rename.new"], self.forms["compare"].fields()["compare.other"],
                       self.forms["merge"].fields()["merge.parts"], self.figures, self.comparison, self._ask, self._sure, *networks_alone]
        """What changes when another file is chosen."""

    def fill(self, shelf: str, name: str | None) -> list[Any]:
        """The values of `filled` for that file."""
        remarks, figures, others = {}, "", []
        if name:
            try:
                seen = self._page.describe(name, shelf)
                remarks, figures = seen.get("remarks") or {}, library_text.measured(seen.get("measured"))
                others = [row["name"] for row in self._page.rows("networks") if row["name"] != name][:_OTHERS] if shelf == "networks" else []
            except LycoError:
                name = None
        form = self.forms["remark"]
        known = {key: remarks.get(key.partition(".")[2].replace("_", " ")) for key in form.fields()}
        values = [gr.update(value=value) for value in form.filled({key: value for key, value in known.items() if value is not None}).values()]
        return [*values, name or "", gr.update(choices=others, value=None), f"{name}:1" if name and shelf == "networks" else "", figures, "",
                gr.update(visible=True), gr.update(visible=False), *(gr.update(visible=shelf == "networks") for _ in _OF_NETWORKS)]

    def look_into_trash(self) -> Any:
        """The list of the trash, as it is now."""
        entries = self._page.trash()
        offered = [(f"{each['name']}\n{each['kind']} · {megabytes(each['bytes'])} · deleted {day(each['deleted'])}", each["entry"]) for each in entries]
        return gr.update(choices=offered, value=None, label="Deleted" if offered else "Deleted: nothing")

    def wire(self, chooser: Any, after: Callable[..., list[Any]], changed: Sequence[Any]) -> None:
        """Says what the buttons do.

        Args:
            chooser: the list at the left.
            after: gives for (name, shelf, search, sort) what `changed` is once the disk has changed.
            changed: all that shows the disk.
        """
        place = [chooser.shelf, chooser.names, chooser.search, chooser.sort]

        def click(name: str, values: Callable[..., Mapping[str, Any]], inputs: Sequence[Any], words: Callable[[Mapping[str, Any]], str]) -> None:
            def work(shelf: str, chosen: str | None, search: str, sort: str, *typed: Any) -> list[Any]:
                try:
                    done = self._page.run(name, values(shelf, chosen, *typed))
                except LycoError as error:
                    return ["", text.problems([str(error)]), *(gr.update() for _ in changed)]
                now = {"delete": None, "rename": done.get("name")}.get(name, chosen)
                return [library_text.said(words(done)), "", *after(now, shelf, search, sort)]

            self.buttons[name].click(work, [*place, *inputs], [self.said, self.problem, *changed], **self._quiet)

        click("remark", self._remark_values, self.forms["remark"].components(), lambda done: "The remarks are saved.")
        click("preview", _preview_values, [self._file], lambda done: "The preview is set.")
        click("rename", self._typed("rename"), self.forms["rename"].components(), lambda done: f"It is called {done['name']} now.")
        click("delete", _named, [], lambda done: f"In the trash: {', '.join(done['deleted'])}.")
        click("restore", _entry, [self.trash_list], lambda done: f"Restored: {', '.join(done['restored'])}.")
        click("empty", _entry, [self.trash_list], lambda done: f"Deleted for good: {len(done['gone'])}.")
        for name in _OF_NETWORKS:
            self.buttons[name].click(self._start(name), [chooser.shelf, chooser.names, *self._components(name)], [self.problem], **self._quiet)
        self._ask.click(_ask_first, [chooser.names], [self._sure, self._question, self.problem], **self._quiet)
        self._cancel.click(lambda: gr.update(visible=False), [], [self._sure], **self._quiet)
        self._ask_empty.click(_ask_empty, [self.trash_list], [self._sure_empty, self._question_empty], **self._quiet)
        for button in (self._cancel_empty, self.buttons["empty"]):
            button.click(lambda: gr.update(visible=False), [], [self._sure_empty], **self._quiet)

    # ---------------------------------------------------------------- parts

    def _draw(self, name: str) -> None:
        """The fields of an action, and its button."""
        action = self._actions[name]
        form = Form([setting for setting in action.settings if setting.name not in _FROM_THE_LIST])
        keys = [setting.key for setting in action.settings if setting.name not in _FROM_THE_LIST]
        for start in range(0, len(keys), 2):
            form.draw(*keys[start:start + 2])
        self.forms[name] = form
        self.buttons[name] = gr.Button(action.label, elem_id=f"lycoris_library_do_{name}", size="sm")

    def _draw_measure(self, name: str) -> None:
        self._draw(name)
        self.figures = gr.HTML(elem_id="lycoris_library_figures")

    def _draw_compare(self, name: str) -> None:
        action = self._actions[name]
        self.forms[name] = Form([setting for setting in action.settings if setting.name == "other"], choices={"compare.other": [""]})
        self.forms[name].draw("compare.other")
        self.buttons[name] = gr.Button(action.label, elem_id="lycoris_library_do_compare", size="sm")
        self.comparison = gr.HTML(elem_id="lycoris_library_comparison")

    def _draw_remark(self, name: str) -> None:
        action = self._actions[name]
        form = Form([setting for setting in action.settings if setting.name not in _FROM_THE_LIST])
        form.draw("remark.activation_text", "remark.negative_text")
        form.draw("remark.sd_version", "remark.preferred_weight")
        form.draw("remark.description")
        form.draw("remark.notes")
        self.forms[name] = form
        self.buttons[name] = gr.Button(action.label, elem_id="lycoris_library_do_remark", size="sm")

    def _draw_preview(self, name: str) -> None:
        self._file = gr.File(label="Picture: PNG, JPEG, WebP or GIF", file_types=[".png", ".jpg", ".jpeg", ".webp", ".gif"], elem_id="lycoris_preview_image",
                             height=120)
        self.buttons[name] = gr.Button(self._actions[name].label, elem_id="lycoris_library_do_preview", size="sm")

    def _draw_delete(self, name: str) -> None:
        self._ask = gr.Button("Delete …", elem_id="lycoris_library_ask_delete", size="sm")
        with gr.Column(visible=False) as self._sure:
            self._question = gr.HTML(elem_id="lycoris_library_question")
            with gr.Row():
                self.buttons[name] = gr.Button(self._actions[name].label, variant="stop", elem_id="lycoris_library_do_delete", size="sm")
                self._cancel = gr.Button("Cancel", elem_id="lycoris_library_cancel_delete", size="sm")

    def _draw_trash(self) -> None:
        with gr.Accordion("Trash", open=False, elem_id="lycoris_library_trash"):
            gr.Markdown("What was deleted lies in a folder .lyco-trash beside the files, until you delete it for good.")
            self.trash_list = gr.Radio(choices=[], label="Deleted: nothing", elem_id="lycoris_library_deleted", elem_classes=["lycoris-files"],
                                       interactive=True)
            with gr.Row():
                self.buttons["restore"] = gr.Button(self._actions["restore"].label, elem_id="lycoris_library_do_restore", size="sm")
                self._ask_empty = gr.Button("Delete for good …", elem_id="lycoris_library_ask_empty", size="sm")
            with gr.Column(visible=False) as self._sure_empty:
                self._question_empty = gr.HTML(elem_id="lycoris_library_question_empty")
                with gr.Row():
                    self.buttons["empty"] = gr.Button(self._actions["empty"].label, variant="stop", elem_id="lycoris_library_do_empty", size="sm")
                    self._cancel_empty = gr.Button("Cancel", elem_id="lycoris_library_cancel_empty", size="sm")

    # ---------------------------------------------------------------- values

    def _components(self, name: str) -> list[Any]:
        return self.forms[name].components()

    def _typed(self, name: str) -> Callable[..., Mapping[str, Any]]:
        """The values of an action from the list and its form's fields."""

        def values(shelf: str, chosen: str | None, *typed: Any) -> Mapping[str, Any]:
            known = [setting.name for setting in self._actions[name].settings]
            given = {"name": _chosen(chosen), "shelf": shelf} if "name" in known else {}
            form = self.forms[name].config(typed).get(name, {})
            return {**{key: value for key, value in given.items() if key in known}, **form}

        return values

    def _start(self, name: str) -> Callable[..., str]:
        """A long action's button: starts it; gives what stood in its way."""
        values = self._typed(name)

        def work(shelf: str, chosen: str | None, *typed: Any) -> str:
            try:
                if shelf != "networks":
                    raise ConfigError(f"{name}: that is for networks; choose one under What to list")
                self._page.run(name, values(shelf, chosen, *typed))
            except LycoError as error:
                return text.problems([str(error)])
            return ""

        return work

    def _remark_values(self, shelf: str, chosen: str | None, *typed: Any) -> Mapping[str, Any]:
        """What was changed of the remarks; an emptied field is an empty text."""
        name = _chosen(chosen)
        before = self._page.describe(name, shelf).get("remarks") or {}
        fields = self.forms["remark"].fields()
        given = self.forms["remark"].config(typed).get("remark", {})
        for key in fields:
            own = key.partition(".")[2]
            if own not in given and own != "sd_version":
                given[own] = 0.0 if own == "preferred_weight" else ""
        changed = {key: value for key, value in given.items() if value != before.get(key.replace("_", " "), _EMPTY.get(key, ""))}
        return {"name": name, "shelf": shelf, **changed}


_EMPTY = {"preferred_weight": 0.0}


def _chosen(name: str | None) -> str:
    if not name:
        raise ConfigError("no file is chosen: choose one in the list at the left")
    return name


def _named(shelf: str, chosen: str | None) -> Mapping[str, Any]:
    return {"name": _chosen(chosen), "shelf": shelf}


def _entry(shelf: str, chosen: str | None, entry: str | None) -> Mapping[str, Any]:
    return {"entry": entry or ""}


def _preview_values(shelf: str, chosen: str | None, file: Any) -> Mapping[str, Any]:
    path = getattr(file, "name", file)
    if not path:
        raise ConfigError("no picture is chosen: drop one into the field first")
    return {"name": _chosen(chosen), "shelf": shelf, "image": base64.b64encode(Path(path).read_bytes()).decode("ascii")}


def _ask_first(chosen: str | None) -> list[Any]:
    if not chosen:
        return [gr.update(visible=False), "", text.problems(["no file is chosen: choose one in the list at the left"])]
    return [gr.update(visible=True), library_text.said(f"Move {chosen} to the trash, with its remarks and previews? It can be restored from there."), ""]


def _ask_empty(entry: str | None) -> list[Any]:
    words = "Delete the chosen one for good?" if entry else "Nothing is chosen: delete everything in the trash for good?"
    return [gr.update(visible=True), library_text.said(f"{words} It can't be brought back.")]
