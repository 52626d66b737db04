"""gradio's part of the WebUI's cards: the fields of the editor and the components of the settings page. Only the WebUI's gradio 3.41 draws it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import gradio as gr


class Fields(NamedTuple):
    """The editor's fields below the description."""

    tags: Any
    activation: Any
    weight: Any
    negative: Any
    notes: Any


def setting(kind: str, **arguments: Any) -> Any:
    """The component of a setting: "lines", "number", "slider", "check" or "choices"."""
    if kind == "lines":
        return gr.Textbox(lines=3, max_lines=20, **arguments)
    return {"number": gr.Number, "slider": gr.Slider, "check": gr.Checkbox, "choices": gr.CheckboxGroup}[kind](**arguments)


def version(choices: Sequence[str]) -> Any:
    """The field for the base model."""
    return gr.Dropdown(list(choices), value="Unknown", label="Base model", interactive=True)


def fields() -> Fields:
    """The other fields; a click on one of the training's words puts it into the activation text, or takes it out."""
    tags = gr.HighlightedText(label="Words of the training's captions, and how often", visible=False)
    activation = gr.Text(label="Activation text", info="A click on the card writes it behind the tag")
    weight = gr.Slider(label="Preferred weight", info="Strength that a click on the card writes; 0: that of the settings", minimum=-2.0, maximum=2.0, step=0.01)
    negative = gr.Text(label="Negative prompt", info="A click on the card writes it into the negative prompt")
    notes = gr.TextArea(label="Notes", lines=4)

    def choose(text: str, event: gr.SelectData) -> str:
        return toggle_word(text, str(event.value[0]))

    tags.select(fn=choose, inputs=[activation], outputs=[activation], show_progress=False)
    return Fields(tags, activation, weight, negative, notes)


def toggle_word(text: str, word: str) -> str:
    """The words between commas with this one added at the end, or taken out where it is among them."""
    words = [each for each in re.split(r"\s*,\s*", text.strip()) if each]
    return ", ".join(each for each in words if each != word) if word in words else ", ".join([*words, word])


def tags(counts: Sequence[tuple[str, int]]) -> Any:
    """The field of the training's words with these, hidden where there are none."""
    return gr.update(value=[(word, str(count)) for word, count in counts], visible=bool(counts))


def visible() -> Any:
    """Shows a hidden component."""
    return gr.update(visible=True)
