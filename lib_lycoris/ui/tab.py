"""The WebUI's tab "Lyco": its sub-tabs, drawn into one page of the host's."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from .library import LibraryPage, draw_library
from .style import CSS
from .train import TrainPage, draw_train

NAME = "Lyco"
ELEMENT = "lycoris"
"""The host makes of it the tab's own id, "tab_lycoris"."""


def make_tab(train: TrainPage, more: tuple[tuple[str, str, Callable[[gr.Blocks], object]], ...] = (), library: LibraryPage | None = None) -> gr.Blocks:
    """The tab's blocks.

    Args:
        train: what the Train sub-tab does.
        more: further sub-tabs, as (name, the element's id, what draws it into the surrounding gradio context).
        library: what the Library sub-tab does; None: there is no such tab.
    """
    with gr.Blocks(analytics_enabled=False) as blocks, gr.Tabs(elem_id="lycoris_tabs"):
        with gr.Tab("Train", elem_id="lycoris_tab_train", id="train"):
            gr.HTML(f"<style>{CSS}</style>", elem_classes=["lycoris-hidden"])
            draw_train(blocks, train)
        if library is not None:
            with gr.Tab("Library", elem_id="lycoris_tab_library", id="library") as tab:
                draw_library(blocks, tab, library)
        for name, element, draw in more:
            with gr.Tab(name, elem_id=element, id=name.lower()):
                draw(blocks)
    for block in blocks.blocks.values():
        # What a field starts with follows from the model and from this extension's version; the host would keep the first values for ever.
        block.do_not_save_to_config = True
    return blocks
