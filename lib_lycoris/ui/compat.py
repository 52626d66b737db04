"""What gradio 3.41 (the WebUI's) and gradio 6 (the studio's) spell differently, in one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

HAS_TIMER = hasattr(gr, "Timer")
STAR = "∗"
"""Stands for "*" where gradio would take two of them for slanted letters; what is typed with it is read as "*"."""
_BLANK = "\u200b"
"""Of no width: behind a "<" there is then no tag, and between "]" and "(" no link."""


def poll(blocks: gr.Blocks, look: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], seconds: float = 1.0) -> Any:
    """Calls `look` every so many seconds for as long as a page is open; gives that event.

    A component's own `every` would be registered twice where the WebUI renders our blocks into its page, and so is not used.
    gradio 3.41 repeats only through its queue; where that is off, use a button instead (`TrainPage.polls`).
    """
    if HAS_TIMER:
        return gr.Timer(seconds).tick(look, list(inputs), list(outputs), show_progress="hidden", queue=False, api_name=False)
    return blocks.load(look, list(inputs), list(outputs), every=seconds, show_progress=False, api_name=False)


def plain_image() -> dict[str, Any]:
    """The arguments that leave an image with no button but the one that shows it whole."""
    known = inspect.signature(gr.Image.__init__).parameters
    return {"buttons": ["fullscreen"]} if "buttons" in known else {"show_share_button": False, "show_download_button": False}


def no_camera() -> dict[str, Any]:
    """The argument that leaves an image to be given without the button for a camera; gradio 3.41 has none as it stands."""
    return {"sources": ["upload", "clipboard"]} if "sources" in inspect.signature(gr.Image.__init__).parameters else {}


def without_sharing() -> dict[str, Any]:
    """The argument that leaves a gallery without the button that would send a picture to somebody's server."""
    return {"buttons": ["download", "fullscreen"]} if "buttons" in inspect.signature(gr.Gallery.__init__).parameters else {"show_share_button": False}


def info(text: str) -> str:
    """A field's explanation that is shown as it stands: gradio 6 reads some Markdown in it, gradio 3.41 does not."""
    if not HAS_TIMER:
        return text
    return text.replace("*", STAR).replace("<", f"<{_BLANK}").replace("](", f"]{_BLANK}(")


def quiet() -> dict[str, Any]:
    """The arguments of an event that shows no progress over what it changes, needs no queue, and is no part of gradio's own API."""
    return {"queue": False, "show_progress": "hidden" if HAS_TIMER else False, "api_name": False}


def of_any_list(chooser: Any) -> Any:
    """The chooser, whose value is taken as it comes: gradio 6 would refuse, with an error for all to see, one that was sent while the list was changed."""
    chooser.preprocess = lambda value: value
    return chooser


def progress_on(*blocks: Any) -> dict[str, Any]:
    """The argument that shows an event's progress over these outputs alone; gradio 3.41 shows it over all."""
    return {"show_progress_on": list(blocks)} if HAS_TIMER else {}


def in_page(script: str) -> dict[str, Any]:
    """The arguments of an event that the browser answers by itself with that JavaScript function."""
    return {**quiet(), "js" if HAS_TIMER else "_js": script}


def uploaded(file: Any) -> tuple[str, bytes]:
    """(name, content) of a file that was handed to a page: gradio 6 gives its path, gradio 3.41 an open file with one."""
    path = Path(file if isinstance(file, str) else file.name)
    return path.name, path.read_bytes()


def with_copy_button() -> dict[str, Any]:
    """The argument that gives a text field a button to copy its text."""
    return {"buttons": ["copy"]} if "buttons" in inspect.signature(gr.Textbox.__init__).parameters else {"show_copy_button": True}
