"""The page's Train tab: what to train, from which pictures, by which settings; and beside it what a running training shows of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from ..errors import LycoError
from ..setting import Setting
from ..training.config import settings
from . import compat, text
from .fields import KIND, Form
from .late import Late
from .train_page import TrainPage
from .train_pictures import draw_pictures
from .train_settings import draw_files, draw_preset
from .train_watch import BUSY, Watched, draw_watch, make_look

__all__ = ["FIRST", "REST", "TrainPage", "draw_train", "make_look", "train_settings"]

FIRST = (("network.kind",), ("data.folders",), ("output.name", "training.steps"), ("training.learning_rate",))
"""What a beginner sees beside the preset, row by row; the rest is folded away."""

REST = {
    "data": "More about the pictures",
    "network": "More about the network",
    "embedding": "A new word with vectors of its own (embedding)",
    "adapter": "Adapters: which one, and what its control pictures are like",
    "training": "More about the training",
    "validation": "Validation: is it learning or memorising?",
    "output": "More about the result and its previews",
    "model": "More about the model",
}
"""The title under which the other settings of a section are folded; a section without one has its own name."""

_HINTS = {
    "": "Put 5 to 50 pictures into one folder, and beside each a text file of the same name that says what it shows (cat.png, cat.txt). "
        "Give what is new a word of its own in every text, and use that word in the prompt later.",
    "embedding": "Put 5 to 20 pictures into one folder, and beside each a text file of the same name that says what it shows (cat.png, cat.txt), "
                 "with the new word for what is new. The word is given below; left out there, it is the name.",
    "adapter": "Put hundreds of pictures or more into one folder, and beside each a text file that says what it shows and its control picture "
               "(cat.png, cat.txt, cat.cond.png). Without control pictures, choose a preprocessor under More about the pictures, which makes them.",
}
"""What pictures are wanted, by the kind that is trained; the first for all that are not named."""


def train_settings(page: TrainPage) -> list[Setting]:
    """The settings that have a field on this page."""
    return [setting for setting in settings() if setting.key not in page.fixed]


def titles(page: TrainPage) -> dict[str, str]:
    """The titles of all folded sections, in the order of the record's where nothing else is said."""
    sections = dict.fromkeys(setting.section for setting in train_settings(page))
    known = {section: title for section, title in REST.items() if section in sections}
    return {**known, **{section: f"More about the {section}" for section in sections if section not in REST}}


def draw_train(blocks: gr.Blocks, page: TrainPage, late: Callable[[], Mapping[str, Any]] = dict) -> Form:
    """Draws the tab's content into the surrounding gradio context; gives its form.

    Args:
        late: gives, by key, what the host's page puts into fields by itself once it is known; that counts as untouched.
    """
    form = Form(train_settings(page), page.defaults, unknown=page.unknown)
    with gr.Row(elem_classes=["lycoris-train"]):
        with gr.Column(scale=1, min_width=420):
            last = _Last(page, form, late) if page.config is not None else None
            preset = draw_preset(page)
            for row in FIRST:
                form.draw(*row)
                if row == ("data.folders",):
                    hint = gr.Markdown(_HINTS[""], elem_id="lycoris_hint")
                    draw_pictures(page, form)
            form.draw_rest(titles(page))
            draw_files(page, form, preset)
        with gr.Column(scale=1, min_width=420):
            watched = draw_watch(blocks, page)
    form.drawn()
    kind = form.fields()[KIND]
    kind.change(lambda kind: _HINTS.get(kind, _HINTS[""]), [kind], [hint], **compat.quiet())
    _wire(page, form, watched)
    if last is not None:
        last.wire(blocks, watched)
    return form


class _Last:
    """What whoever opens the page finds of the training that is under way or was last: its settings.

    They come into the fields by themselves while it is under way and as long as no field was touched; else a line offers them.
    """

    def __init__(self, page: TrainPage, form: Form, late: Callable[[], Mapping[str, Any]]) -> None:
        self._page, self._form, self._known = page, form, late
        with gr.Row(visible=False, elem_id="lycoris_last", elem_classes=["lycoris-last"]) as self._row:
            self._words = gr.HTML(elem_id="lycoris_last_words")
            self._take = gr.Button("Take its settings", size="sm", elem_id="lycoris_last_take", min_width=140, scale=0)

    def wire(self, blocks: gr.Blocks, watched: Watched) -> None:
        """Says what happens when the page is opened, and what the button does."""
        late = Late(self._form.fields(), "last")
        late.offer(self._row)

        def look() -> list[Any]:
            state, settings = self._page.state(), self._settings()
            if settings is None:
                return ["", ""]
            taken = self._form.filled(settings) if state["phase"] in BUSY else {}
            return [late.tell(taken, self._form.filled({}), self._known(), whole=True), text.last_training(state)]

        def take(*values: Any) -> list[Any]:
            settings = self._settings()
            return ["" if settings is None else late.tell(self._form.filled(settings), late.values(values)), gr.update(visible=False)]

        button = gr.Button("Restore", elem_id="lycoris_restore", elem_classes=["lycoris-hidden"])
        openings = [button.click, *([blocks.load] if self._page.polls else [])]  # else the host's page presses the button once
        for opened in openings:
            late.after(opened(look, [], [late.told, self._words], **compat.quiet()))
        late.after(self._take.click(take, self._form.components(), [late.told, self._row], **compat.quiet()))
        watched.start.click(lambda: gr.update(visible=False), [], [self._row], **compat.quiet())

    def _settings(self) -> dict[str, Any] | None:
        """That training's settings by key; None where there was none."""
        config = self._page.config()
        return None if config is None else {f"{section}.{name}": value for section, part in config.items() for name, value in part.items()}


def _wire(page: TrainPage, form: Form, watched: Watched) -> None:
    """Check and Start: they read the whole form, and an error stands at the field that caused it too, which is then to be seen."""
    marked = gr.State("")
    fields = form.components()
    told = [watched.problem, marked, *fields, *form.parts()]

    def check_training(before: str, *values: Any) -> list[Any]:
        try:
            lines, error = page.check(form.config(values)), ""
        except LycoError as problem:
            lines, error = [], str(problem)
        updates, key = form.marked(error, before)
        return [gr.update(value="\n".join(lines), visible=bool(lines)), text.problems([error] if error else []), key, *updates, *form.unfolded(key)]

    def start_training(before: str, *values: Any) -> list[Any]:
        error = _error_of(page, form, values)
        updates, key = form.marked(error, before)
        return [text.problems([error] if error else []), key, *updates, *form.unfolded(key)]

    watched.check.click(check_training, [marked, *fields], [watched.plan, *told], **compat.quiet())
    started = watched.start.click(start_training, [marked, *fields], told, **compat.quiet())
    started.then(watched.look, [watched.seen], watched.shown, **compat.quiet())


def _error_of(page: TrainPage, form: Form, values: Sequence[Any]) -> str:
    """Starts the training; gives what stood in its way."""
    try:
        page.start(form.config(values))
    except LycoError as error:
        return str(error)
    return ""
