"""A form's fields, made from the record that command line and API use too, so that the page can't differ from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from ..training.config import DEFAULT_STEPS, Setting

_NUMBERS = ("number", "whole number")
_FAR = 100_000
_EXACT = 2**53
"""The largest whole number that a browser's number box keeps as it is."""

_LEFT_OUT = "left out"
_PLACEHOLDERS = {"training.steps": str(DEFAULT_STEPS)}

_LABELS = {
    "data.folders": "Folders with pictures, one a line",
    "output.name": "Name of the network",
    "network.kind": "Kind of network",
    "network.conv_rank": "Rank of convolutions",
    "network.conv_alpha": "Alpha of convolutions",
    "network.targets": "Groups of layers",
    "embedding.word": "The new word",
    "embedding.vectors": "Vectors of the word",
    "embedding.start_from": "Start from an embedding",
    "embedding.norm": "Length of the vectors",
    "embedding.learning_rate": "Learning rate of the word",
    "embedding.rates": "Learning rates of the word by steps",
    "embedding.file": "The word's file",
    "embedding.picture": "Shareable picture",
    "data.trigger": "Trigger word",
    "data.templates": "Caption templates",
    "validation.folder": "Folder with pictures to judge by",
    "output.dtype": "Number format of the file",
    "model.v_prediction": "Velocity prediction",
    "training.min_snr_gamma": "Min-SNR gamma",
    "training.debiased": "Debiased weights",
    "training.max_grad_norm": "Largest gradient norm",
    "generate.negative": "Negative prompt",
    "generate.cfg": "CFG scale",
    "generate.batch": "Pictures",
    "compare.other": "Compare with",
    "remark.sd_version": "For base model",
    "remark.negative_text": "Negative text",
    "rename.new": "New name",
    "convert.to": "Form",
    "convert.out": "Name of the converted file",
    "resize.rank": "Largest rank",
    "resize.dtype": "Numbers stored as",
    "resize.out": "Name of the smaller file",
    "merge.parts": "Networks and strengths, one a line",
    "merge.rank": "Largest rank of the sum",
    "merge.dtype": "Numbers of the sum stored as",
    "merge.out": "Name of the merged file",
}


def label(setting: Setting) -> str:
    """A field's name on the page: "Learning rate"."""
    return _LABELS.get(setting.key) or setting.name.replace("_", " ").capitalize()


def explanation(setting: Setting) -> str:
    """The sentence under a field: its help, and for a number its range."""
    return f"{setting.help}{_range(setting)}" if setting.kind in _NUMBERS else setting.help


def _range(setting: Setting) -> str:
    """In words and short, " 1 to 1024."; bounds that nobody reaches are not worth a word."""
    low, high = setting.minimum, setting.maximum
    far = high is None or high > _FAR
    if low is None:
        words = "" if far else f" At most {high:g}"
    elif setting.above_minimum:
        words = f" Above {low:g}" + ("" if far else f", at most {high:g}")
    else:
        words = f" {low:g} or more" if far else f" {low:g} to {high:g}"
    if words and setting.multiple:
        words += f", a multiple of {setting.multiple}"
    return words and words + "."


def element_id(setting: Setting) -> str:
    """The id of a field's element in the page."""
    return "lycoris_" + setting.key.replace(".", "_")


class Form:
    """The fields of a record on a page.

    Args:
        record: the settings, in the record's order; each gets a field.
        defaults: what a field starts with, by key, where that differs from the record's own default.
        choices: by key, what a field offers that the record takes as free text.
    """

    def __init__(self, record: Sequence[Setting], defaults: Mapping[str, Any] | None = None, choices: Mapping[str, Sequence[str]] | None = None) -> None:
        self._record = {setting.key: setting for setting in record}
        self._defaults = dict(defaults or {})
        self._choices = dict(choices or {})
        self._fields: dict[str, Any] = {}

    def draw(self, *keys: str) -> None:
        """Draws the fields of these settings beside each other."""
        if len(keys) == 1:
            self._draw(keys[0])
            return
        with gr.Row():
            for key in keys:
                self._draw(key)

    def draw_rest(self, titles: Mapping[str, str]) -> None:
        """Draws all settings that have no field yet, folded, those of each section under its title."""
        for section, title in titles.items():
            keys = [key for key, setting in self._record.items() if setting.section == section and key not in self._fields]
            if not keys:
                continue
            with gr.Accordion(title, open=False):
                for start in range(0, len(keys), 2):
                    self.draw(*keys[start:start + 2])

    def fields(self) -> dict[str, Any]:
        """The fields that were drawn, by key."""
        return dict(self._fields)

    def components(self) -> list[Any]:
        """The fields, in the order in which `config` takes their values."""
        return list(self._fields.values())

    def config(self, values: Iterable[Any]) -> dict[str, dict[str, Any]]:
        """The record that the fields' values make, as nested plain values; an empty optional field is left out."""
        sections: dict[str, dict[str, Any]] = {}
        for key, value in zip(self._fields, values, strict=True):
            setting = self._record[key]
            value = _plain(setting, value)
            if value is not None or not setting.optional:
                sections.setdefault(setting.section, {})[setting.name] = value
        return sections

    def _draw(self, key: str) -> None:
        setting = self._record[key]
        self._fields[key] = _component(setting, self._defaults.get(key, setting.default), self._choices.get(key) or setting.choices)


def _plain(setting: Setting, value: Any) -> Any:
    """A field's value as the config takes it."""
    if setting.kind == "list of texts":
        texts = value if isinstance(value, list) else [line.strip() for line in str(value or "").splitlines()]
        return [text for text in texts if text] or (None if setting.optional else [])
    if _is_typed(setting):
        return setting.parse(str(value if value is not None else ""))
    if setting.kind == "text":
        return (str(value).strip() if value is not None else "") or (None if setting.optional else "")
    return value


def _is_typed(setting: Setting) -> bool:
    """Whether a number has a text field: an empty number box is sent as 0, and a large number is rounded by it."""
    return setting.kind in _NUMBERS and (setting.optional or (setting.maximum or 0) > _EXACT)


def _component(setting: Setting, value: Any, choices: Sequence[str] | None) -> Any:
    """The gradio field of a setting."""
    about = {"label": label(setting), "info": explanation(setting), "elem_id": element_id(setting), "interactive": True}
    if setting.kind == "list of texts" and choices:
        return gr.CheckboxGroup(choices=list(choices), value=list(value or ()), **about)
    if choices:
        left_out = [(_LEFT_OUT, "")] if setting.optional else []
        return gr.Dropdown(choices=[*left_out, *choices], value="" if value is None else value, **about)
    if setting.kind == "list of texts":
        return gr.Textbox(value="\n".join(value or ()), lines=2, **about)
    if setting.kind == "yes or no":
        return gr.Checkbox(value=value, **about)
    if _is_typed(setting):
        return gr.Textbox(value="" if value is None else str(value), placeholder=_PLACEHOLDERS.get(setting.key, _LEFT_OUT), max_lines=1, **about)
    if setting.kind in _NUMBERS:
        return gr.Number(value=value, precision=0 if setting.kind == "whole number" else None, **about)
    return gr.Textbox(value=value or "", **about)
