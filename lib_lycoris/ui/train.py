"""The page's Train tab: settings, Start and Stop, and what a running training shows of itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from ..errors import LycoError
from ..training.config import Setting, settings
from . import compat, text
from .fields import Form

FIRST = (("data.folders",), ("output.name", "network.kind"), ("network.rank", "training.steps"), ("training.learning_rate",))
"""What a beginner sees, row by row; the rest is folded away."""

REST = {
    "data": "More about the pictures",
    "network": "More about the network",
    "embedding": "A new word (textual inversion; beside a network: pivotal tuning)",
    "adapter": "Adapters: which one, and what its control pictures are like",
    "training": "More about the training",
    "validation": "Validation: is it learning or memorising?",
    "output": "More about the result",
    "model": "More about the model",
}

_HINT = (
    "Put 5 to 50 pictures into one folder, and beside each a text file of the same name that says what it shows (cat.png, cat.txt). "
    "Give what is new a word of its own in every text, and use that word in the prompt later."
)


_BUSY = ("preparing", "running", "pausing", "paused", "stopping")
_RESUMABLE = ("paused", "stopped", "failed")
_PAUSE, _RESUME = "Pause", "Resume"


@dataclass(frozen=True)
class TrainPage:
    """What the Train tab does and shows, as plain functions of plain values; they raise a `LycoError` where they can't.

    Attributes:
        start: takes a training config as nested mappings and starts it.
        stop: asks the running training to save and end.
        state: gives the state of the training that runs or ran last (`training.job.JobState.to_dict`).
        check: takes a config, gives in words what would happen.
        defaults: what fields start with, by key, where that differs from the config's own defaults.
        fixed: keys that the host decides; they get no field.
        pause: asks the running training to save and free the model.
        resume: goes on with the training that is paused, or was stopped or failed last; without these two there is no such button.
        polls: whether the page may ask for the state by itself; else there is a Refresh button (gradio 3.41 without its queue).
    """

    start: Callable[[Mapping[str, Any]], Any]
    stop: Callable[[], Any]
    state: Callable[[], Mapping[str, Any]]
    check: Callable[[Mapping[str, Any]], Sequence[str]]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Sequence[str] = ("model.checkpoint",)
    polls: bool = True
    pause: Callable[[], Any] | None = None
    resume: Callable[[], Any] | None = None


def train_settings(page: TrainPage) -> list[Setting]:
    """The settings that have a field on this page."""
    return [setting for setting in settings() if setting.key not in page.fixed]


def draw_train(blocks: gr.Blocks, page: TrainPage) -> Form:
    """Draws the tab's content into the surrounding gradio context; gives its form."""
    form = Form(train_settings(page), page.defaults)
    with gr.Row():
        with gr.Column(scale=1):
            gr.Markdown(_HINT)
            for row in FIRST:
                form.draw(*row)
            form.draw_rest(REST)
        with gr.Column(scale=1):
            with gr.Row():
                check = gr.Button("Check", elem_id="lycoris_check")
                start = gr.Button("Start", variant="primary", elem_id="lycoris_start")
                stop = gr.Button("Stop and save", interactive=False, elem_id="lycoris_stop")
                pause = gr.Button(_PAUSE, interactive=False, elem_id="lycoris_pause", visible=page.pause is not None)
                refresh = gr.Button("Refresh", elem_id="lycoris_refresh", visible=not page.polls)
            problem = gr.HTML(elem_id="lycoris_train_problem", elem_classes=["lycoris-problem"])
            plan = gr.Textbox(label="What would happen", lines=4, max_lines=14, visible=False, interactive=False, elem_id="lycoris_plan")
            progress = gr.HTML(text.progress({}), elem_id="lycoris_progress", elem_classes=["lycoris-progress"])
            curve = gr.LinePlot(x="step", y="loss", x_title="step", y_title="loss", label="Loss", height=260, visible=False, elem_id="lycoris_curve")
            tag = gr.Textbox(label="To use the network, write this into the prompt, and the words of your captions", visible=False, interactive=False,
                             elem_id="lycoris_tag")
            log = gr.Textbox(label="Log", lines=6, max_lines=12, interactive=False, elem_id="lycoris_log")
    seen = gr.State("")
    shown = [progress, curve, tag, log, start, stop, pause, seen]
    look = make_look(page)
    quiet = {"queue": False, "show_progress": "hidden" if compat.HAS_TIMER else False, "api_name": False}

    def check_training(*values: Any) -> tuple[Any, str]:
        return _check(page, form, values)

    def start_training(*values: Any) -> str:
        return _told(lambda: page.start(form.config(values)))

    check.click(check_training, form.components(), [plan, problem], **quiet)
    started = start.click(start_training, form.components(), [problem], **quiet)
    stopped = stop.click(lambda: _told(page.stop), [], [problem], **quiet)
    paused = pause.click(lambda: _told(lambda: _pause_or_resume(page)), [], [problem], **quiet)
    for event in (started, stopped, paused):
        event.then(look, [seen], shown, **quiet)
    refresh.click(look, [seen], shown, **quiet)
    if page.polls:
        compat.poll(blocks, look, [seen], shown)
    return form


def _check(page: TrainPage, form: Form, values: Sequence[Any]) -> tuple[Any, str]:
    try:
        lines = page.check(form.config(values))
    except LycoError as error:
        return gr.update(visible=False), text.problems([str(error)])
    return gr.update(value="\n".join(lines), visible=True), ""


def _told(work: Callable[[], Any]) -> str:
    """Does the work; gives the HTML of what stood in its way."""
    try:
        work()
    except LycoError as error:
        return text.problems([str(error)])
    return ""


def _pause_or_resume(page: TrainPage) -> None:
    """Does what the button says."""
    work = page.resume if page.state()["phase"] in _RESUMABLE else page.pause
    if work is not None:
        work()


def make_look(page: TrainPage) -> Callable[[str], list[Any]]:
    """The function that a page polls: what to show, or nothing to change when it shows that already."""

    def look(seen: str) -> list[Any]:
        state = page.state()
        version = str(state.get("version"))
        if version == seen:
            return [gr.update() for _ in range(8)]
        phase = state["phase"]
        busy = phase in _BUSY
        return [
            text.progress(state), _curve(state), gr.update(value=state.get("tag") or "", visible=bool(state.get("tag"))),
            "\n".join(state.get("log", ())), gr.update(interactive=not busy), gr.update(interactive=busy and phase != "stopping"),
            gr.update(value=_RESUME if phase in _RESUMABLE else _PAUSE, interactive=phase in ("preparing", "running", *_RESUMABLE)), version,
        ]

    return look


def _curve(state: Mapping[str, Any]) -> Any:
    import pandas

    losses = state.get("losses") or []
    if len(losses) < 2:
        return gr.update(visible=False)
    return gr.update(value=pandas.DataFrame(losses, columns=["step", "loss"]), visible=True)
