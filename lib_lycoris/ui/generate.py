"""The page's Generate tab (studio only; the WebUI has its own)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..errors import LycoError
from ..training.config import Setting
from . import compat, text
from .adapter_unit import STUDIO
from .adapters import AdapterPage, forgotten_adapters, wanted_adapters
from .fields import Form
from .history import History, draw_drop

FIRST = (("generate.prompt",), ("generate.negative",))
ROWS = (("generate.steps", "generate.sampler"), ("generate.width", "generate.height"))
LAST = (("generate.batch", "generate.cfg"),)
_SEED = "generate.seed"


@dataclass(frozen=True)
class GeneratePage:
    """What the Generate tab does and shows, as plain functions of plain values; they raise a `LycoError` where they can't.

    Attributes:
        record: the settings of a picture.
        generate: takes them as a flat mapping, and a function to which it tells (share done, words);
            gives {"pictures": [{"path", "seed", "infotext"}], "problems": [line]}.
        stop: asks the running generation to end with what it has.
        networks: names of the networks on disk.
        defaults: what fields start with, by key.
        choices: by key, what a field offers that the record takes as free text.
        history: takes how many, gives the newest pictures on disk: {"name", "file"}.
        recall: takes a picture's name, gives {"infotext", "settings", "units": fields of each adapter, pictures as paths, "fuser", "problems"}.
        read_picture: takes a PNG's bytes, gives the same; without these three the tab has no history.
        adapters: what the adapters' part does; None: there is none. `generate` then gets "units" too, with pictures as arrays or paths, and "fuser".
    """

    record: Sequence[Setting]
    generate: Callable[[Mapping[str, Any], Callable[[float, str], None]], Mapping[str, Any]]
    stop: Callable[[], Any]
    networks: Callable[[], Sequence[str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, Sequence[str]] = field(default_factory=dict)
    history: Callable[[int], Sequence[Mapping[str, Any]]] | None = None
    recall: Callable[[str], Mapping[str, Any]] | None = None
    read_picture: Callable[[bytes], Mapping[str, Any]] | None = None
    adapters: AdapterPage | None = None


def draw_generate(blocks: gr.Blocks, tab: gr.Tab, page: GeneratePage) -> Form:
    """Draws the tab's content into the surrounding gradio context; gives its form."""
    form = Form(page.record, page.defaults, page.choices)
    with gr.Row(elem_classes=["lycoris-generate"]):
        with gr.Column(scale=1, min_width=320):
            for row in FIRST:
                form.draw(*row)
            names = gr.Dropdown(choices=list(page.networks()), value=None, label="Networks", elem_id="lycoris_networks",
                                info="Trained here, or put into the networks folder. Choosing one writes its tag into the prompt, as does typing <lyco: there.")
            for row in ROWS:
                form.draw(*row)
            drawn = None if page.adapters is None else page.adapters.draw(STUDIO, [form.fields()[key] for key in ROWS[1]])
            with gr.Row(equal_height=True):
                with gr.Column(scale=3, min_width=160):
                    form.draw(_SEED)
                with gr.Column(scale=1, min_width=120):
                    again = gr.Button("Same seed again", size="sm", elem_id="lycoris_seed_again")
                    other = gr.Button("Another each time", size="sm", elem_id="lycoris_seed_other")
            for row in LAST:
                form.draw(*row)
            form.draw_rest({"generate": "More"})
            dropped = draw_drop() if page.read_picture is not None else None
        with gr.Column(scale=1, min_width=320, elem_id="lycoris_generate_results"):
            with gr.Row():
                make = gr.Button("Generate", variant="primary", elem_id="lycoris_generate")
                stop = gr.Button("Stop", elem_id="lycoris_stop_generate")
            problem = gr.HTML(elem_id="lycoris_generate_problem", elem_classes=["lycoris-problem"])
            pictures = gr.Gallery(label="Pictures", elem_id="lycoris_pictures", columns=4, height=520, object_fit="contain", show_label=False,
                                  **compat.without_sharing())
            infotext = gr.Textbox(label="How the first picture was made (it stands in the PNG too)", lines=3, max_lines=8, interactive=False,
                                  elem_id="lycoris_infotext")
            files = gr.Textbox(label="Files", lines=1, max_lines=6, interactive=False, elem_id="lycoris_files")
            history = History(page, drawn, dropped) if page.history is not None else None
    seed, wrong, marked = gr.State(""), gr.State([]), gr.State("")
    count = len(form.components())

    # gradio finds a progress bar by its default, and hands it over at its place among the arguments.
    def run(progress: Any = gr.Progress(), *values: Any) -> list[Any]:  # noqa: B008
        def tell(share: float, words: str) -> None:
            progress(share, desc=words)

        try:
            made = page.generate({**form.config(values[:count]).get("generate", {}), **wanted_adapters(values[count:])}, tell)
        except LycoError as error:
            return [gr.update(), text.problems([str(error)]), gr.update(), gr.update(), gr.update(), [str(error)]]
        paths = [str(picture["path"]) for picture in made["pictures"]]
        maps = [str(path) for picture in made["pictures"] for path in picture.get("maps", ())]
        first = made["pictures"][0]
        # The first picture is shown whole; alone in the grid it would be cut to the grid's shape.
        shown = gr.update(value=[*paths, *maps], selected_index=0)
        told = [*made["problems"], *forgotten_adapters(values[count:])]
        return [shown, text.problems(told), first["infotext"], "\n".join([*paths, *maps]), str(first.get("seed", "")), told]

    def mark(told: list[str], before: str) -> list[Any]:
        """An error stands at the field that it names too, and what is said of an adapter at that adapter."""
        updates, key = form.marked(next((line for line in told if line.startswith("generate.")), ""), before)
        return [*updates, key, *(drawn.problems(told) if drawn is not None else ())]

    quiet = {"queue": False, "api_name": False}
    inputs = [*form.components(), *(drawn.controls if drawn is not None else ())]
    made = make.click(run, inputs, [pictures, problem, infotext, files, seed, wrong], api_name=False, **compat.progress_on(pictures))
    at_units = [extra["problem"] for extra in drawn.rest] if drawn is not None else []
    made.then(mark, [wrong, marked], [*form.components(), marked, *at_units], **compat.quiet())
    stop.click(page.stop, [], [], **quiet)
    fields = form.fields()
    again.click(lambda last: last or gr.update(), [seed], [fields[_SEED]], **quiet)
    other.click(lambda: "-1", [], [fields[_SEED]], **quiet)
    prompt = fields["generate.prompt"]
    names.input(lambda before, name: (insert_tag(before, name), gr.update(value=None)), [prompt, names], [prompt, names], **quiet)
    for opened in (blocks.load, tab.select):  # a training may have added one
        opened(lambda: gr.update(choices=list(page.networks())), [], [names], **quiet)
        for chooser, offer in drawn.offers(page.adapters) if drawn is not None else ():
            opened(offer, [chooser], [chooser], **quiet)
    if history is not None:
        history.wire(form, [blocks.load, tab.select, made.then], [infotext, problem])
    return form


def insert_tag(prompt: str, name: str | None) -> str:
    """The prompt with a network's tag at its end, once."""
    tag = f"<lyco:{name}:1>"
    if not name or tag in prompt:
        return prompt
    return f"{prompt} {tag}".strip()
