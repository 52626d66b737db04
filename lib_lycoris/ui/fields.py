"""A form's fields, made from the record that command line and API use too, so that the page can't differ from them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from ..training.config import DEFAULT_STEPS, Setting
from . import compat

KIND = "network.kind"
"""The field on whose value it depends which others are there."""
_NUMBERS = ("number", "whole number")
_FAR = 100_000
_EXACT = 2**53
"""The largest whole number that a browser's number box keeps as it is."""

_LEFT_OUT = "left out"
_LINES = {"generate.prompt": 3, "generate.negative": 2, "remark.description": 2, "remark.notes": 2}
_PLACEHOLDERS = {"training.steps": str(DEFAULT_STEPS)}

_LABELS = {
    "model.vae": "VAE",
    "model.zero_terminal_snr": "Zero terminal SNR",
    "data.folders": "Folders with pictures, one a line",
    "data.dataset": "Dataset description (.toml)",
    "data.upscale": "Scale small pictures up",
    "data.flip": "Mirror at random",
    "data.captions": "Captions of several lines",
    "data.skip_unreadable": "Skip unreadable pictures",
    "output.name": "Name of the network",
    "network.kind": "What to train",
    "network.conv_rank": "Rank of convolutions",
    "network.conv_alpha": "Alpha of convolutions",
    "network.targets": "Groups of layers",
    "network.text_encoder": "Train the text encoder",
    "network.only": "Only these layers",
    "network.exclude": "Without these layers",
    "network.block_ranks": "Ranks by block",
    "network.start_from": "Start from a network's file",
    "network.tucker": "Tucker cores",
    "network.dora": "DoRA",
    "network.dora_on_output": "DoRA on outputs",
    "network.rs_lora": "rsLoRA scale",
    "network.factor": "Factor of LoKr",
    "network.decompose_both": "Decompose both factors",
    "network.warmup": "Steps before ranks are taken away",
    "network.final": "Steps at the end with fixed ranks",
    "network.interval": "Steps between choices of ranks",
    "network.max_norm": "Largest norm of a layer",
    "data.trigger": "Trigger word",
    "data.templates": "Caption templates",
    "validation.folder": "Folder with pictures to judge by",
    "validation.share": "Share kept back to judge by",
    "validation.every": "Steps between validations",
    "validation.time_steps": "Time steps of each picture",
    "output.folder": "Folder for the network",
    "output.save_every": "Steps between saved states",
    "output.save_minutes": "Minutes between saved states",
    "output.keep": "States that are kept",
    "output.dtype": "Number format of the file",
    "output.metadata": "Metadata in the file",
    "output.form": "Form of the file",
    "output.network_every": "Steps between networks",
    "output.network_epochs": "Epochs between networks",
    "output.preview_every": "Steps between previews",
    "output.preview_seed": "Seed of the previews",
    "model.v_prediction": "Velocity prediction",
    "training.text_encoder_2_learning_rate": "Learning rate of text encoder 2",
    "training.text_encoder_learning_rate": "Learning rate of the text encoder",
    "training.block_learning_rates": "Learning rates by block",
    "training.schedule": "Schedule of the learning rate",
    "training.schedule_steps": "Schedule by steps",
    "training.restarts": "Restarts of the schedule",
    "training.min_snr_gamma": "Min-SNR gamma",
    "training.huber_c": "Huber threshold",
    "training.ema": "EMA decay",
    "training.debiased": "Debiased weights",
    "training.max_grad_norm": "Largest gradient norm",
    "adapter.kind": "Kind of adapter",
    "adapter.in_channels": "Channels of the control picture",
    "adapter.downscale": "Pixels a cell",
    "adapter.blocks": "Residual blocks a level",
    "embedding.word": "New word",
    "embedding.vectors": "Vectors of the word",
    "embedding.init_text": "Text to start from",
    "embedding.start_from": "Start from an embedding's file",
    "embedding.learning_rate": "Learning rate of the vectors",
    "embedding.norm": "Length of the vectors",
    "embedding.rates": "Rates of the vectors by steps",
    "embedding.file": "Files for word and network",
    "embedding.picture": "A picture that holds the word",
    "generate.negative": "Negative prompt",
    "generate.cfg": "CFG scale",
    "generate.batch": "Pictures",
    "compare.other": "Compare with",
    "remark.sd_version": "For base model",
    "remark.negative_text": "Negative text",
    "remark.activation_text": "Words that call it",
    "rename.new": "New name",
    "convert.to": "Form",
    "convert.out": "Name of the converted file",
    "resize.rank": "Largest rank",
    "resize.energy": "Share of the change to keep",
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
        unknown: for each value of the field `KIND` the keys that it does not know: they are hidden, and left out of the config.
    """

    def __init__(
        self, record: Sequence[Setting], defaults: Mapping[str, Any] | None = None, choices: Mapping[str, Sequence[str]] | None = None,
        unknown: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._record = {setting.key: setting for setting in record}
        self._defaults = dict(defaults or {})
        self._choices = dict(choices or {})
        self._unknown = {kind: frozenset(keys) for kind, keys in (unknown or {}).items()}
        self._fields: dict[str, Any] = {}
        self._parts: dict[str, tuple[Any, list[str]]] = {}
        self._waiting: list[Callable[[], None]] = []

    def when_drawn(self, work: Callable[[], None]) -> None:
        """Keeps what is to be done once all fields are there: events that read the whole form."""
        self._waiting.append(work)

    def drawn(self) -> None:
        """Does what waited for all fields."""
        while self._waiting:
            self._waiting.pop(0)()

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
            hidden = self._hidden(self._start(KIND)) if KIND in self._record else frozenset()
            with gr.Accordion(title, open=False, visible=not hidden.issuperset(keys)) as part:
                self._parts[section] = (part, keys)
                for start in range(0, len(keys), 2):
                    self.draw(*keys[start:start + 2])

    def fields(self) -> dict[str, Any]:
        """The fields that were drawn, by key."""
        return dict(self._fields)

    def components(self) -> list[Any]:
        """The fields, in the order in which `config` takes their values."""
        return list(self._fields.values())

    def config(self, values: Iterable[Any]) -> dict[str, dict[str, Any]]:
        """The record that the fields' values make, as nested plain values; an empty optional field is left out, and what the chosen kind does not know."""
        sections: dict[str, dict[str, Any]] = {}
        given = dict(zip(self._fields, values, strict=True))
        hidden = self._hidden(given.get(KIND))
        for key, value in given.items():
            setting = self._record[key]
            if key in hidden:
                continue
            value = _plain(setting, value)
            if value is not None or not setting.optional:
                sections.setdefault(setting.section, {})[setting.name] = value
        return sections

    def parts(self) -> list[Any]:
        """The folded parts."""
        return [part for part, _ in self._parts.values()]

    def unfolded(self, key: str) -> list[Any]:
        """For each of `parts` its update: the one with that key's field is unfolded, the others stay as they are."""
        return [gr.update(open=True) if key in keys else gr.update() for _, keys in self._parts.values()]

    def kind_keys(self) -> list[str]:
        """The fields that not every kind knows."""
        some = set().union(*self._unknown.values()) if self._unknown else set()
        return [key for key in self._fields if key in some]

    def kind_components(self) -> list[Any]:
        """What depends on the chosen kind: the fields of `kind_keys`, then the folded parts."""
        return [*(self._fields[key] for key in self.kind_keys()), *self.parts()] if self._unknown else []

    def show_for(self, kind: str) -> list[Any]:
        """For each of `kind_components` the update that shows or hides it; a part that is the kind's own is unfolded."""
        hidden = self._hidden(kind)
        parts = [gr.update(visible=not hidden.issuperset(keys), **({"open": True} if section == kind else {})) for section, (_, keys) in self._parts.items()]
        return [*(gr.update(visible=key not in hidden) for key in self.kind_keys()), *parts]

    def filled(self, values: Mapping[str, Any], keep: Collection[str] = ()) -> dict[str, Any]:
        """What each field holds, by key, with these settings in it: where none is given, what it started with; `keep`: keys left out unless they are given."""
        return {key: _shown(self._record[key], values.get(key, self._start(key)), self._offered(key)) for key in self._fields
                if key not in keep or key in values}

    def marked(self, error: str, before: str) -> tuple[list[Any], str]:
        """(for each field its update, the key that is marked now): an error that begins with a field's key stands at that field too.

        Args:
            error: a line; empty: there is none.
            before: the key that is marked until now.
        """
        key = next((key for key in self._fields if error.startswith((f"{key} ", f"{key}:", f"{key}="))), "")
        updates = {before: gr.update(info=compat.info(explanation(self._record[before])))} if before in self._fields else {}
        if key:
            updates[key] = gr.update(info=compat.info(f"⚠ {error} · {explanation(self._record[key])}"))
        return [updates.get(one, gr.update()) for one in self._fields], key

    def _hidden(self, kind: Any) -> frozenset[str]:
        """The keys that this kind does not know."""
        return self._unknown.get(str(kind), frozenset())

    def _start(self, key: str) -> Any:
        return self._defaults.get(key, self._record[key].default)

    def _offered(self, key: str) -> Sequence[str] | None:
        return self._choices.get(key) or self._record[key].choices

    def _draw(self, key: str) -> None:
        hidden = self._hidden(self._start(KIND)) if KIND in self._record else frozenset()
        self._fields[key] = _component(self._record[key], self._start(key), self._offered(key), key not in hidden)


def _plain(setting: Setting, value: Any) -> Any:
    """A field's value as the config takes it."""
    if isinstance(value, str):
        value = value.replace(compat.STAR, "*")  # copied from an explanation
    if setting.kind == "list of texts":
        texts = value if isinstance(value, list) else [line.strip() for line in str(value or "").splitlines()]
        return [text for text in texts if text] or (None if setting.optional else [])
    if _is_typed(setting):
        return setting.parse(str(value if value is not None else ""))
    if setting.optional and value == _LEFT_OUT:
        return None
    if setting.kind == "text":
        return (str(value).strip() if value is not None else "") or (None if setting.optional else "")
    return value


def _is_typed(setting: Setting) -> bool:
    """Whether a number has a text field: an empty number box is sent as 0, and a large number is rounded by it."""
    return setting.kind in _NUMBERS and (setting.optional or (setting.maximum or 0) > _EXACT)


def _shown(setting: Setting, value: Any, choices: Sequence[str] | None) -> Any:
    """A value of the config as the setting's field takes it."""
    if setting.kind == "list of texts":
        return list(value or ()) if choices else "\n".join(value or ())
    if choices and value is None:
        return _LEFT_OUT if setting.optional else ""
    if choices or setting.kind == "yes or no":
        return value
    if _is_typed(setting):
        return "" if value is None else str(value)
    return value if setting.kind in _NUMBERS else value or ""


def _component(setting: Setting, value: Any, choices: Sequence[str] | None, visible: bool = True) -> Any:
    """The gradio field of a setting."""
    about = {"label": label(setting), "info": compat.info(explanation(setting)), "elem_id": element_id(setting), "interactive": True, "visible": visible,
             "value": _shown(setting, value, choices)}
    if setting.kind == "list of texts" and choices:
        return gr.CheckboxGroup(choices=list(choices), **about)
    if choices:
        left_out = [_LEFT_OUT] if setting.optional else []  # its value too: gradio 3.41 shows an empty one as nothing, whatever its label
        return gr.Dropdown(choices=[*left_out, *choices], **about)
    if setting.kind == "list of texts":
        return gr.Textbox(lines=2, **about)
    if setting.kind == "yes or no":
        return gr.Checkbox(**about)
    if _is_typed(setting):
        return gr.Textbox(placeholder=_PLACEHOLDERS.get(setting.key, _LEFT_OUT), max_lines=1, **about)
    if setting.kind in _NUMBERS:
        return gr.Number(precision=0 if setting.kind == "whole number" else None, **about)
    return gr.Textbox(lines=_LINES.get(setting.key, 1), **about)
