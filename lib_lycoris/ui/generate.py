"""The page's Generate tab (studio only; the WebUI has its own)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..errors import LycoError
from ..training.config import Setting
from . import compat, text
from .fields import Form

FIRST = (("generate.prompt",), ("generate.negative",))
ROWS = (("generate.steps", "generate.sampler"), ("generate.width", "generate.height"), ("generate.seed", "generate.batch"), ("generate.cfg",))


@dataclass(frozen=True)
class GeneratePage:
    """What the Generate tab does and shows, as plain functions of plain values; they raise a `LycoError` where they can't.

    Attributes:
        record: the settings of a picture.
        generate: takes them as a flat mapping, and a function to which it tells (share done, words);
            gives {"pictures": [{"path", "infotext"}], "problems": [line]}.
        stop: asks the running generation to end with what it has.
        networks: names of the networks on disk.
        defaults: what fields start with, by key.
        choices: by key, what a field offers that the record takes as free text.
    """

    record: Sequence[Setting]
    generate: Callable[[Mapping[str, Any], Callable[[float, str], None]], Mapping[str, Any]]
    stop: Callable[[], Any]
    networks: Callable[[], Sequence[str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)


def draw_generate(blocks: gr.Blocks, tab: gr.Tab, page: GeneratePage) -> Form:
    """Draws the tab's content into the surrounding gradio context; gives its form."""
    form = Form(page.record, page.defaults, page.choices)
    with gr.Row():
        with gr.Column(scale=1):
            for row in FIRST:
                form.draw(*row)
            names = gr.Dropdown(choices=list(page.networks()), value=None, label="Networks", elem_id="lycoris_networks",
                                info="Trained here, or put into the networks folder. Choosing one writes its tag into the prompt.")
            for row in ROWS:
                form.draw(*row)
            form.draw_rest({"generate": "More"})
        with gr.Column(scale=1):
            with gr.Row():
                make = gr.Button("Generate", variant="primary", elem_id="lycoris_generate")
                stop = gr.Button("Stop", elem_id="lycoris_stop_generate")
            pictures = gr.Gallery(label="Pictures", elem_id="lycoris_pictures", columns=4, height=560, object_fit="contain", show_label=False,
                                  **compat.without_sharing())
            problem = gr.HTML(elem_id="lycoris_generate_problem", elem_classes=["lycoris-problem"])
            infotext = gr.Textbox(label="How the first picture was made (it stands in the PNG too)", lines=3, max_lines=8, interactive=False,
                                  elem_id="lycoris_infotext")
            files = gr.Textbox(label="Files", lines=1, max_lines=6, interactive=False, elem_id="lycoris_files")

    # gradio finds a progress bar by its default, and hands it over at its place among the arguments.
    def run(progress: Any = gr.Progress(), *values: Any) -> list[Any]:  # noqa: B008
        def tell(share: float, words: str) -> None:
            progress(share, desc=words)

        try:
            made = page.generate(form.config(values).get("generate", {}), tell)
        except LycoError as error:
            return [gr.update(), text.problems([str(error)]), gr.update(), gr.update()]
        paths = [str(picture["path"]) for picture in made["pictures"]]
        # The first picture is shown whole; alone in the grid it would be cut to the grid's shape.
        return [gr.update(value=paths, selected_index=0), text.problems(made["problems"]), made["pictures"][0]["infotext"], "\n".join(paths)]

    make.click(run, form.components(), [pictures, problem, infotext, files], api_name=False)
    stop.click(page.stop, [], [], queue=False, api_name=False)
    prompt = form.fields()["generate.prompt"]
    names.input(lambda before, name: (insert_tag(before, name), gr.update(value=None)), [prompt, names], [prompt, names], queue=False, api_name=False)
    for opened in (blocks.load, tab.select):  # a training may have added one
        opened(lambda: gr.update(choices=list(page.networks())), [], [names], queue=False, api_name=False)
    return form


def insert_tag(prompt: str, name: str | None) -> str:
    """The prompt with a network's tag at its end, once."""
    tag = f"<lyco:{name}:1>"
    if not name or tag in prompt:
        return prompt
    return f"{prompt} {tag}".strip()
