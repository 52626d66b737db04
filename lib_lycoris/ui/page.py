"""The studio's page: its tabs beneath a line that says what it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr

from . import compat, text
from .generate import GeneratePage, draw_generate
from .late import Late
from .library import LibraryPage, draw_library
from .train import TrainPage, draw_train

TITLE = "Lyco Studio"
LATE = ("generate.width", "generate.height", "data.resolution")
"""Fields whose first value is the model's own size, which is known only once it is loaded."""


def make_page(train: TrainPage, generate: GeneratePage, line: Callable[[], str], late: Callable[[], Mapping[str, Any]],
              library: LibraryPage | None = None) -> gr.Blocks:
    """The studio's page.

    Args:
        train: what the Train tab does.
        generate: what the Generate tab does.
        line: gives which model it works with, or that it is being loaded.
        late: gives, by key, what the fields of `LATE` start with once the model is known; nothing before.
        library: what the Library tab does; None: there is no such tab.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        head = gr.HTML(lambda: text.heading(TITLE, line()), elem_classes=["lycoris-head"], elem_id="lycoris_head")
        seen = gr.State("")
        with gr.Tabs():
            with gr.Tab("Generate", elem_id="lycoris_tab_generate") as tab:
                form = draw_generate(blocks, tab, generate)
            with gr.Tab("Train", elem_id="lycoris_tab_train"):
                fields = {**form.fields(), **draw_train(blocks, train, late).fields()}
            if library is not None:
                with gr.Tab("Library", elem_id="lycoris_tab_library") as tab:
                    draw_library(blocks, tab, library)
        sizes = Late({key: fields[key] for key in LATE}, "sizes")
        starts = {key: fields[key].value for key in LATE}
        sizes.after(compat.poll(blocks, make_look(line, lambda: sizes.tell(late(), starts)), [seen], [head, seen, sizes.told], seconds=1.0))
    return blocks


def make_look(line: Callable[[], str], tell: Callable[[], str]) -> Callable[[str], list[Any]]:
    """The function that a page polls for its head, the line it shows, and what `tell` gives when that changes: the values of `LATE`."""

    def look(last: str) -> list[Any]:
        now = line()
        if now == last:
            return [gr.update(), gr.update(), ""]
        return [text.heading(TITLE, now), now, tell()]

    return look
