"""The Train tab's right side: what a running training shows of itself, and the buttons that lead it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import gradio as gr

from ..errors import LycoError
from . import compat, curves, text
from .train_page import TrainPage

BUSY = ("preparing", "running", "pausing", "paused", "stopping")
"""Phases of a training that is under way."""
_RESUMABLE = ("paused", "stopped", "failed", "interrupted")
_RUNNING = ("preparing", "running")
_PAUSE, _RESUME = "Pause", "Resume"
_COLUMNS = 6
"""Preview pictures beside each other: the one before, then the newest."""
_USE = {
    "": "To use it, write this into the prompt, and the words of your captions",
    "embedding": "To use it, write this word into the prompt",
    "adapter": "To use it, choose this one under T2I-Adapters where pictures are generated, and give it a control picture",
}
"""The label over what is typed or chosen, by the kind that was trained."""
_FIRST = {-1: "control", 0: "before"}
"""What stands under a preview that is of no step."""
_NOTHING = "<p class='lycoris-empty'>The curve of the loss and preview pictures appear here while a training runs.</p>"


@dataclass(frozen=True)
class Watched:
    """The components of this side that others speak to."""

    start: Any
    check: Any
    problem: Any
    plan: Any
    look: Callable[[str], list[Any]]
    seen: Any
    shown: list[Any]


def draw_watch(blocks: gr.Blocks, page: TrainPage) -> Watched:
    """Draws it into the surrounding gradio context."""
    with gr.Row(elem_classes=["lycoris-buttons"]):
        start = gr.Button("Start", variant="primary", elem_id="lycoris_start")
        check = gr.Button("Check first", elem_id="lycoris_check")
    with gr.Row(elem_classes=["lycoris-buttons"]):
        pause = gr.Button(_PAUSE, interactive=False, elem_id="lycoris_pause", visible=page.pause is not None)
        stop = gr.Button("Stop and save", interactive=False, elem_id="lycoris_stop")
        preview = gr.Button("Preview now", interactive=False, elem_id="lycoris_preview", visible=page.preview is not None)
        # a script of the host's page presses it
        refresh = gr.Button("Refresh", elem_id="lycoris_refresh", elem_classes=["lycoris-hidden"], visible=not page.polls)
    problem = gr.HTML(elem_id="lycoris_train_problem", elem_classes=["lycoris-problem"])
    plan = gr.Textbox(label="What would happen", lines=4, max_lines=24, visible=False, interactive=False, elem_id="lycoris_plan")
    progress = gr.HTML(text.progress({}), elem_id="lycoris_progress", elem_classes=["lycoris-progress"])
    curve = gr.HTML(_NOTHING, elem_id="lycoris_curve")
    previews = gr.HTML("", elem_id="lycoris_previews", elem_classes=["lycoris-previews"])
    ranks = gr.HTML("", elem_id="lycoris_ranks")
    tag = gr.Textbox(label=_USE[""], visible=False, interactive=False, elem_id="lycoris_tag")
    with gr.Accordion("Learning rate and log", open=False, elem_id="lycoris_details"):
        rate = gr.HTML("", elem_id="lycoris_rate")
        log = gr.Textbox(label="Log", lines=6, max_lines=12, interactive=False, elem_id="lycoris_log")
    seen = gr.State("")
    look = make_look(page)
    shown = [progress, curve, previews, ranks, rate, tag, log, start, stop, pause, preview, seen]
    events = [stop.click(lambda: told(page.stop), [], [problem], **compat.quiet()),
              pause.click(lambda: told(lambda: _pause_or_resume(page)), [], [problem], **compat.quiet())]
    if page.preview is not None:
        events.append(preview.click(lambda: told(page.preview), [], [problem], **compat.quiet()))
    for event in events:
        event.then(look, [seen], shown, **compat.quiet())
    refresh.click(look, [seen], shown, **compat.quiet())
    if page.polls:
        compat.poll(blocks, look, [seen], shown)
    return Watched(start, check, problem, plan, look, seen, shown)


def told(work: Callable[[], Any]) -> str:
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
    """The function that a page polls: what to show, or nothing to change when it shows that already.

    What it shows is told by the version and the names of the previews, so that pictures are sent once.
    """

    def look(seen: str) -> list[Any]:
        state = page.state()
        previews = state.get("previews") or []
        mark = f"{state.get('version')}|{len(previews)}|{previews[-1][0] if previews else ''}"
        if mark == seen:
            return [gr.update() for _ in range(12)]
        phase, use = state["phase"], _use(state)
        busy = phase in BUSY
        same_previews = seen.partition("|")[2] == mark.partition("|")[2]
        return [
            text.progress(state), _loss(state), gr.update() if same_previews else _previews(page, state),
            curves.ranks(state.get("ranks") or {}, int(state.get("initial_rank") or 0)),
            curves.curves({"learning rate": state.get("rates") or ()}, "Learning rate"),
            gr.update(value=use, visible=bool(use), label=_USE.get(state.get("kind"), _USE[""])),
            "\n".join(state.get("log", ())), gr.update(interactive=not busy), gr.update(interactive=busy and phase != "stopping"),
            gr.update(value=_RESUME if phase in _RESUMABLE else _PAUSE, interactive=phase in (*_RUNNING, *_RESUMABLE)),
            gr.update(interactive=phase in _RUNNING), mark,
        ]

    return look


def _use(state: Mapping[str, Any]) -> str:
    """What is typed or chosen to use what was trained; nothing while there is no file."""
    name = PurePath(state["path"]).stem if state.get("path") and state.get("kind") == "adapter" else ""
    return state.get("tag") or name


def _loss(state: Mapping[str, Any]) -> str:
    lines = {"loss": state.get("losses") or (), "validation": state.get("validations") or ()}
    return curves.curves(lines, "Loss") or (_NOTHING if state.get("phase") == "idle" else "")


def _previews(page: TrainPage, state: Mapping[str, Any]) -> str:
    """HTML of the previews: a row for each prompt, what the pictures follow and the picture from before first, then the newest."""
    if page.thumbnail is None:
        return ""
    by_prompt: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for step, prompt, path in state.get("previews") or ():
        number = path.rpartition("-")[2]  # two may have one prompt: the file's last number tells them apart
        by_prompt.setdefault((prompt, number), []).append((int(step), path))
    rows = []
    for (prompt, _), made in by_prompt.items():
        before = [one for which in _FIRST for one in made if one[0] == which]
        newest = [one for one in made if one[0] > 0][-(_COLUMNS - len(before)):]
        pictures = "".join(_preview(page.thumbnail, step, path, prompt) for step, path in (*before, *newest))
        rows.append(text.row_of_pictures(prompt, pictures))
    return "".join(rows)


def _preview(thumbnail: Callable[[str], bytes], step: int, path: str, prompt: str) -> str:
    try:
        picture = "data:image/jpeg;base64," + base64.b64encode(thumbnail(path)).decode("ascii")
    except LycoError:  # deleted in the meantime
        picture = ""
    return text.picture(picture, _FIRST.get(step, f"step {step}"), prompt)
