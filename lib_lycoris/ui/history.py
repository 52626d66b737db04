"""What was made before, in the Generate tab, and settings taken over from a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ConfigError, LycoError
from . import compat, text
from .adapters import Drawn
from .fields import Form

_FIRST = 24
_MORE = 48


def draw_drop() -> Any:
    """The field into which a picture is dropped."""
    with gr.Accordion("Settings from a picture", open=True, elem_id="lycoris_from_picture"):
        return gr.File(label="Drop a PNG that the studio or the WebUI made: its settings come into the fields", file_types=[".png"], height=150,
                       elem_id="lycoris_drop")


class History:
    """The pictures on disk.

    Args:
        page: what is done (`generate.GeneratePage`).
        adapters: the adapters' controls, which take a picture's units; None: there are none.
        dropped: the field of `draw_drop`; None: there is none.
    """

    def __init__(self, page: Any, adapters: Drawn | None, dropped: Any) -> None:
        self._page, self._adapters, self._file = page, adapters, dropped
        with gr.Accordion("History: pictures on disk, the newest first", open=False, elem_id="lycoris_history"):
            self._pictures = gr.Gallery(label="Pictures on disk", elem_id="lycoris_history_pictures", columns=6, height=300, object_fit="contain",
                                        show_label=False, allow_preview=False, **compat.without_sharing())
            self._told = gr.Textbox(label="How the chosen picture was made", lines=2, max_lines=6, interactive=False, elem_id="lycoris_history_infotext")
            with gr.Row():
                self._use = gr.Button("Use its settings", elem_id="lycoris_history_use", size="sm")
                self._more = gr.Button("Show more", elem_id="lycoris_history_more", size="sm")
        self._count, self._names, self._chosen = gr.State(_FIRST), gr.State([]), gr.State("")

    def wire(self, form: Form, openings: Sequence[Any], answers: Sequence[Any]) -> None:
        """Says what its parts do.

        Args:
            form: whose fields take the settings.
            openings: events at which the history is read anew.
            answers: [the infotext's field, the problems'].
        """
        quiet = {"queue": False, "api_name": False, "show_progress": "hidden"}
        shown = [self._pictures, self._names]
        for opened in openings:
            opened(self._look, [self._count], shown, **quiet)
        self._more.click(lambda count: count + _MORE, [self._count], [self._count], **quiet).then(self._look, [self._count], shown, **quiet)
        self._pictures.select(self._tell, [self._names], [self._told, self._chosen], **quiet)
        outputs = [*answers, *form.components(), *(self._adapters.restored if self._adapters is not None else ())]
        self._use.click(lambda name: self._restore(form, lambda: self._recall(name)), [self._chosen], outputs, **quiet)
        if self._file is not None:
            read = self._page.read_picture
            dropped = self._file.upload(lambda path: self._restore(form, lambda: read(Path(path).read_bytes())), [self._file], outputs, **quiet)
            dropped.then(lambda: None, [], [self._file], **quiet)

    def _look(self, count: int) -> list[Any]:
        rows = self._page.history(count)
        return [[row["file"] for row in rows], [row["name"] for row in rows]]

    def _tell(self, names: list[str], event: gr.SelectData) -> list[Any]:
        name = names[event.index] if isinstance(event.index, int) and event.index < len(names) else ""
        try:
            return [self._recall(name)["infotext"], name]
        except LycoError as error:
            return [str(error), name]

    def _recall(self, name: str) -> Mapping[str, Any]:
        if not name:
            raise ConfigError("no picture is chosen: choose one in the history first")
        return self._page.recall(name)

    def _restore(self, form: Form, read: Callable[[], Mapping[str, Any]]) -> list[Any]:
        """The fields and adapters with a picture's settings in them; a field that it does not tell of stays, adapters that it had none of are switched off."""
        adapters = self._adapters
        try:
            found = read()
        except LycoError as error:
            still = [*form.components(), *(adapters.restored if adapters is not None else ())]
            return [gr.update(), text.problems([str(error)]), *(gr.update() for _ in still)]
        settings = found["settings"]
        updates = [_value(component, settings[key.partition(".")[2]]) if key.partition(".")[2] in settings else gr.update()
                   for key, component in form.fields().items()]
        units = adapters.restore(self._page.adapters, found.get("units", ()), found.get("fuser", "")) if adapters is not None else []
        return [found["infotext"], text.problems(found["problems"]), *updates, *units]


def _value(component: Any, value: Any) -> Any:
    return gr.update(value=str(value) if isinstance(component, gr.Textbox) else value)
