"""The WebUI's tab "Lyco": its sub-tabs, drawn into one page of the host's."""

from __future__ import annotations

from collections.abc import Callable

import gradio as gr

from . import text
from .train import TrainPage, draw_train

NAME = "Lyco"
ELEMENT = "lycoris"
"""The host makes of it the tab's own id, "tab_lycoris"."""


def make_tab(train: TrainPage, more: tuple[tuple[str, str, Callable[[gr.Blocks], object]], ...] = ()) -> gr.Blocks:
    """The tab's blocks.

    Args:
        train: what the Train sub-tab does.
        more: further sub-tabs, as (name, the element's id, what draws it into the surrounding gradio context).
    """
    with gr.Blocks(analytics_enabled=False) as blocks, gr.Tabs(elem_id="lycoris_tabs"):
        with gr.Tab("Train", elem_id="lycoris_tab_train", id="train"):
            gr.HTML(text.style(), elem_classes=["lycoris-hidden"])
            draw_train(blocks, train)
        for name, element, draw in more:
            with gr.Tab(name, elem_id=element, id=name.lower()):
                draw(blocks)
    for block in blocks.blocks.values():
        # What a field starts with follows from the model and from this extension's version; the host would keep the first values for ever.
        block.do_not_save_to_config = True
    return blocks
