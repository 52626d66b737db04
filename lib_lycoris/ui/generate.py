"""The page's Generate tab (studio only; the WebUI has its own)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import ConfigError, LycoError
from ..prompt.unit_values import unit_values
from ..training.config import Setting
from . import compat, text
from .adapters import STUDIO, AdapterPage, offered
from .fields import Form

FIRST = (("generate.prompt",), ("generate.negative",))
ROWS = (("generate.steps", "generate.sampler"), ("generate.width", "generate.height"))
LAST = (("generate.batch", "generate.cfg"),)
_SEED = "generate.seed"
_HISTORY = 24
_MORE = 48


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
        recall: takes a picture's name, gives {"infotext", "settings", "problems"}.
        read_picture: takes a PNG's bytes, gives the same; without these three the tab has no history.
        adapters: what the adapters' part does; None: there is none. `generate` then gets "units" too, with pictures as arrays or paths.
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
    with gr.Row():
        with gr.Column(scale=1):
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
            dropped = _draw_drop() if page.read_picture is not None else None
        with gr.Column(scale=1):
            with gr.Row():
                make = gr.Button("Generate", variant="primary", elem_id="lycoris_generate")
                stop = gr.Button("Stop", elem_id="lycoris_stop_generate")
            problem = gr.HTML(elem_id="lycoris_generate_problem", elem_classes=["lycoris-problem"])
            pictures = gr.Gallery(label="Pictures", elem_id="lycoris_pictures", columns=4, height=520, object_fit="contain", show_label=False,
                                  **compat.without_sharing())
            infotext = gr.Textbox(label="How the first picture was made (it stands in the PNG too)", lines=3, max_lines=8, interactive=False,
                                  elem_id="lycoris_infotext")
            files = gr.Textbox(label="Files", lines=1, max_lines=6, interactive=False, elem_id="lycoris_files")
            history = _History(page, dropped) if page.history is not None else None
    seed = gr.State("")

    # gradio finds a progress bar by its default, and hands it over at its place among the arguments.
    def run(progress: Any = gr.Progress(), *values: Any) -> list[Any]:  # noqa: B008
        def tell(share: float, words: str) -> None:
            progress(share, desc=words)

        try:
            own = len(form.components())
            units = [unit for unit in unit_values(values[own:]) if unit["enabled"] and unit["adapter"]]
            made = page.generate({**form.config(values[:own]).get("generate", {}), **({"units": units} if units else {})}, tell)
        except LycoError as error:
            return [gr.update(), text.problems([str(error)]), gr.update(), gr.update(), gr.update()]
        paths = [str(picture["path"]) for picture in made["pictures"]]
        maps = [str(path) for picture in made["pictures"] for path in picture.get("maps", ())]
        first = made["pictures"][0]
        # The first picture is shown whole; alone in the grid it would be cut to the grid's shape.
        shown = gr.update(value=[*paths, *maps], selected_index=0)
        return [shown, text.problems(made["problems"]), first["infotext"], "\n".join([*paths, *maps]), str(first.get("seed", ""))]

    quiet = {"queue": False, "api_name": False}
    inputs = [*form.components(), *(drawn.controls if drawn is not None else ())]
    made = make.click(run, inputs, [pictures, problem, infotext, files, seed], api_name=False)
    stop.click(page.stop, [], [], **quiet)
    fields = form.fields()
    again.click(lambda last: last or gr.update(), [seed], [fields[_SEED]], **quiet)
    other.click(lambda: "-1", [], [fields[_SEED]], **quiet)
    prompt = fields["generate.prompt"]
    names.input(lambda before, name: (insert_tag(before, name), gr.update(value=None)), [prompt, names], [prompt, names], **quiet)
    for opened in (blocks.load, tab.select):  # a training may have added one
        opened(lambda: gr.update(choices=list(page.networks())), [], [names], **quiet)
        for unit in drawn.units if drawn is not None else ():
            opened(lambda name: offered(page.adapters, name), [unit["adapter"]], [unit["adapter"]], **quiet)
    if history is not None:
        history.wire(form, [blocks.load, tab.select, made.then], [infotext, problem])
    return form


def _draw_drop() -> Any:
    """The field into which a picture is dropped."""
    with gr.Accordion("Settings from a picture", open=True, elem_id="lycoris_from_picture"):
        return gr.File(label="Drop a PNG that the studio or the WebUI made: its settings come into the fields", file_types=[".png"], height=150,
                       elem_id="lycoris_drop")


class _History:
    """What was made before, and settings taken over from a picture."""

    def __init__(self, page: GeneratePage, dropped: Any) -> None:
        self._page, self._file = page, dropped
        with gr.Accordion("History: pictures on disk, the newest first", open=False, elem_id="lycoris_history"):
            self._pictures = gr.Gallery(label="Pictures on disk", elem_id="lycoris_history_pictures", columns=6, height=300, object_fit="contain",
                                        show_label=False, allow_preview=False, **compat.without_sharing())
            self._told = gr.Textbox(label="How the chosen picture was made", lines=2, max_lines=6, interactive=False, elem_id="lycoris_history_infotext")
            with gr.Row():
                self._use = gr.Button("Use its settings", elem_id="lycoris_history_use", size="sm")
                self._more = gr.Button("Show more", elem_id="lycoris_history_more", size="sm")
        self._count, self._names, self._chosen = gr.State(_HISTORY), gr.State([]), gr.State("")

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
        outputs = [*answers, *form.components()]
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
        """The fields with a picture's settings in them; what it does not tell stays."""
        try:
            found = read()
        except LycoError as error:
            return [gr.update(), text.problems([str(error)]), *(gr.update() for _ in form.components())]
        settings = found["settings"]
        updates = [_value(component, settings[key.partition(".")[2]]) if key.partition(".")[2] in settings else gr.update()
                   for key, component in form.fields().items()]
        return [found["infotext"], text.problems(found["problems"]), *updates]


def _value(component: Any, value: Any) -> Any:
    return gr.update(value=str(value) if isinstance(component, gr.Textbox) else value)


def insert_tag(prompt: str, name: str | None) -> str:
    """The prompt with a network's tag at its end, once."""
    tag = f"<lyco:{name}:1>"
    if not name or tag in prompt:
        return prompt
    return f"{prompt} {tag}".strip()
