"""Small pieces of the page that are more than one component's value; whatever a user, a file or a model named is put in as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

CSS = """
.lycoris-progress progress { width: 100%; height: 0.75rem; border: 0; border-radius: 6px; overflow: hidden; background: rgba(128, 128, 128, 0.25); }
.lycoris-progress progress::-webkit-progress-bar { background: rgba(128, 128, 128, 0.25); }
.lycoris-progress progress::-webkit-progress-value { background: #ea580c; }
.lycoris-progress progress::-moz-progress-bar { background: #ea580c; }
.lycoris-problem:not(:has(p)):not(:has(li)) { display: none; }
.lycoris-progress p { margin: 0.35rem 0; overflow-wrap: anywhere; }
.lycoris-problem [role=alert] p, .lycoris-progress [role=alert] p {
  margin: 0; padding: 0.6rem 0.8rem; border-left: 4px solid #c2410c; background: rgba(234, 88, 12, 0.12); overflow-wrap: anywhere;
}
.lycoris-hidden { position: absolute !important; visibility: hidden; width: 1px !important; height: 1px; min-width: 0 !important; overflow: hidden; }
.lycoris-train .row:has(> .form:empty:only-child), .lycoris-train .gradio-row:has(> .form.hidden:only-child) { display: none; }
#lycoris_gallery_large img { width: 100%; height: 100%; object-fit: contain; }
.lycoris-train { --block-info-text-color: #52525b; }
.dark .lycoris-train { --block-info-text-color: #d4d4d8; }
.lycoris-chart { margin: 0; }
.lycoris-chart svg { width: 100%; height: auto; max-height: 20rem; display: block; }
.lycoris-chart svg text { font-size: 12px; fill: currentColor; opacity: 0.75; }
.lycoris-chart svg .line { stroke: currentColor; opacity: 0.15; }
.lycoris-chart figcaption { font-size: 0.875rem; margin-bottom: 0.2rem; overflow-wrap: anywhere; }
.lycoris-chart figcaption span { margin-left: 0.9rem; white-space: nowrap; }
.lycoris-chart figcaption i { display: inline-block; width: 0.8rem; height: 0.2rem; margin-right: 0.35rem; vertical-align: middle; }
.lycoris-ranks { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr max-content; gap: 0.1rem 0.6rem; align-items: center; font-size: 0.8rem; }
.lycoris-ranks span { overflow-wrap: anywhere; }
.lycoris-ranks meter { width: 100%; height: 0.8rem; }
.lycoris-chart details { margin-top: 0.4rem; }
.lycoris-chart summary { cursor: pointer; font-size: 0.875rem; }
.lycoris-row { margin: 0.4rem 0; }
.lycoris-row p { margin: 0 0 0.2rem; font-size: 0.875rem; overflow-wrap: anywhere; }
.lycoris-row div { display: flex; flex-wrap: wrap; gap: 0.4rem; }
.lycoris-row figure { margin: 0; flex: 0 1 8rem; min-width: 5rem; }
.lycoris-row img { width: 100%; border-radius: 6px; display: block; }
.lycoris-row figcaption { font-size: 0.8rem; opacity: 0.8; text-align: center; }
.lycoris-last { align-items: center; padding: 0.4rem 0.7rem; border-radius: 6px; background: rgba(128, 128, 128, 0.12); }
.lycoris-last p { margin: 0; overflow-wrap: anywhere; }
.lycoris-said p { margin: 0; opacity: 0.85; overflow-wrap: anywhere; }
.lycoris-said [role=alert] p { opacity: 1; }
.lycoris-empty { opacity: 0.7; }
.lycoris-notes li { margin: 0.15rem 0; overflow-wrap: anywhere; }
.lycoris-head h1 { margin: 0.2rem 0 0; font-size: 1.35rem; }
.lycoris-head p { margin: 0 0 0.3rem; opacity: 0.8; overflow-wrap: anywhere; }
"""

_PHASES = {
    "idle": "Nothing is being trained.",
    "preparing": "Preparing: loading the model and the pictures",
    "running": "Training",
    "pausing": "Pausing: it is being saved",
    "paused": "Paused: everything is saved, the model is free for pictures",
    "stopping": "Stopping: the network is being saved",
    "done": "Done",
    "stopped": "Stopped, and saved",
    "failed": "Failed",
    "interrupted": "Interrupted: the program ended during it. Resume goes on from the newest saved state",
}

_ENDED = {"done": "is done", "stopped": "was stopped", "failed": "has failed", "interrupted": "was interrupted"}


def heading(title: str, line: str) -> str:
    """HTML of the page's title and what it works with."""
    return f"<h1>{escape(title)}</h1><p>{escape(line)}</p>"


def problems(lines: Sequence[str]) -> str:
    """HTML of what went wrong, a paragraph a line, read out by screen readers; nothing for no lines."""
    if not lines:
        return ""
    return '<div role="alert">' + "".join(f"<p>{escape(line)}</p>" for line in lines) + "</div>"


def note(line: str) -> str:
    """HTML of a line that explains something."""
    return f'<p class="lycoris-note">{escape(line)}</p>'


def progress(state: Mapping[str, Any]) -> str:
    """HTML of how far a training is: a sentence and a bar."""
    phase = state.get("phase", "idle")
    words = [_PHASES.get(phase, str(phase))]
    step, steps = state.get("step") or 0, state.get("steps") or 0
    if phase != "idle" and state.get("name"):
        words[0] += f" ({state['name']})"
    if state.get("doing"):
        words.append(str(state["doing"]))
    if step:
        words.append(f"step {step} of {steps}")
        if state.get("loss") is not None:
            words.append(f"loss {state['loss']:.4f}")
        words.append(f"{duration(state.get('seconds') or 0)} so far")
    if phase == "running" and state.get("seconds_left") is not None:
        words.append(f"about {duration(state['seconds_left'])} left")
    bar = f'<progress aria-label="Progress of the training" max="{int(steps) or 1}" value="{int(step)}"></progress>' if phase != "idle" else ""
    return f"<p data-phase='{escape(str(phase), quote=True)}'>{escape(' · '.join(words))}</p>{bar}{problems([state['error']] if state.get('error') else [])}"


def last_training(state: Mapping[str, Any]) -> str:
    """HTML of a line that says which training's settings may be taken over."""
    name = f", {state['name']}," if state.get("name") else ""
    ended = _ENDED.get(state.get("phase", ""))
    return note(f"The last training{name} {ended}." if ended else f"A training{name} is under way. Its settings are not those in the fields below.")


def notes(lines: Sequence[str], title: str = "") -> str:
    """HTML of lines that are worth reading and nothing wrong; nothing for no lines."""
    if not lines:
        return ""
    head = f"<p>{escape(title)}</p>" if title else ""
    return f'<div class="lycoris-notes" role="status">{head}<ul>{"".join(f"<li>{escape(line)}</li>" for line in lines)}</ul></div>'


def row_of_pictures(title: str, pictures: str) -> str:
    """HTML of pictures (made by `picture`) beside each other under a title."""
    return f'<div class="lycoris-row"><p>{escape(title)}</p><div>{pictures}</div></div>'


def picture(source: str, caption: str, about: str) -> str:
    """HTML of a picture that is given as a data URI, with what it shows for those who can't see it; a frame without picture where there is none."""
    shown = f'<img src="{escape(source, quote=True)}" alt="{escape(f"{about}, {caption}", quote=True)}" loading="lazy">' if source else "<p>deleted</p>"
    return f"<figure>{shown}<figcaption>{escape(caption)}</figcaption></figure>"


def duration(seconds: float) -> str:
    """A time in words: "45 s", "12 min 5 s", "2 h 3 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
