"""The studio's page: its tabs beneath a line that says what it works with."""

from __future__ import annotations

import gradio as gr

from . import text
from .generate import GeneratePage, draw_generate
from .train import TrainPage, draw_train

TITLE = "Lyco Studio"


def make_page(train: TrainPage, generate: GeneratePage, line: str) -> gr.Blocks:
    """The studio's page.

    Args:
        train: what the Train tab does.
        generate: what the Generate tab does.
        line: which model it works with, where files go.
    """
    with gr.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gr.HTML(text.heading(TITLE, line), elem_classes=["lycoris-head"])
        with gr.Tabs():
            with gr.Tab("Generate", elem_id="lycoris_tab_generate"):
                draw_generate(generate)
            with gr.Tab("Train", elem_id="lycoris_tab_train"):
                draw_train(blocks, train)
    return blocks
