"""One adapter's place in a picture as plain values: what the page, the infotext, the API and the README say of it, in one record."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ConfigError, shown
from ..setting import Section, section_settings, setting

RESIZE_MODES = ("just resize", "crop and resize", "resize and fill")
HIRES = ("both", "low", "high")
AUTO = "auto"
"""The preprocessor that belongs to the adapter."""

LEVELS = 4
"""How many sizes of features an adapter gives; a `level_weights` has one number for each, from the largest size to the smallest."""


@dataclass(frozen=True)
class Unit(Section):
    """What is asked of one adapter; pictures come beside it."""

    section = "unit"

    enabled: bool = setting(True, "Whether the unit acts.")
    adapter: str = setting("", "Name of the adapter's file, as the list has it.")
    preprocessor: str = setting(AUTO, "What makes the control map out of the picture: a preprocessor's name, or auto for the one that belongs to the adapter.")
    processor_resolution: int | None = setting(
        None, "Shorter side, in pixels, at which the preprocessor works. Left out: what the adapter was trained with, else that of the picture that is made.",
        minimum=16, maximum=4096)
    threshold_a: float | None = setting(None, "The preprocessor's first value. Left out: its own default.")
    threshold_b: float | None = setting(None, "The preprocessor's second value. Left out: its own default.")
    palette: str = setting("", "Colours for the preprocessor palette, as #rrggbb with a share behind a colon: #aa3300:2 #ffffff.")
    keypoints: str = setting("", "OpenPose's JSON for the preprocessor skeleton; it is too long for an infotext.")
    weight: float = setting(1.0, "How strongly the adapter acts.", minimum=-4.0, maximum=4.0)
    level_weights: str = setting("", "A factor for each of the four sizes of features, the largest first: 1, 0.8, 0.6, 1. Left out: all 1.")
    start: float = setting(0.0, "Where in the sampling it begins to act: 0 is the first step.", minimum=0.0, maximum=1.0)
    end: float = setting(1.0, "Where in the sampling it stops: 1 is after the last step.", minimum=0.0, maximum=1.0)
    resize_mode: str = setting("crop and resize", "How a picture of another shape gets to the size of the one that is made.", choices=RESIZE_MODES)
    hires: str = setting("both", "The passes of a hires fix in which it acts: both, low (the first) or high (the second).", choices=HIRES)
    strict: bool = setting(False, "Stop with an error where the adapter can't act, instead of making the picture without it.")
    save_map: bool = setting(False, "Add the control map to the pictures.")

    @property
    def active(self) -> bool:
        """Whether there is anything to do."""
        return self.enabled and bool(self.adapter)

    def levels(self) -> tuple[float, ...]:
        """The weights of the four sizes of features, `weight` in them."""
        return tuple(self.weight * factor for factor in parse_levels(self.level_weights))

    def acts(self, step: float, steps: int) -> bool:
        """Whether it acts at a step, counted from 0, of so many; at least at one of them unless `start` and `end` are equal."""
        first, behind = int(self.start * steps + 0.5), int(self.end * steps + 0.5)
        if first == behind and self.start < self.end:
            first = min(first, steps - 1)
            behind = first + 1
        return first <= step < behind

    def in_pass(self, hires: bool) -> bool:
        """Whether it acts in the hires pass, or in the first."""
        return self.hires in ("both", "high" if hires else "low")

    def _check_together(self) -> None:
        if self.start > self.end:
            raise ConfigError(f"unit.start = {self.start:g} lies behind unit.end = {self.end:g}: give a start that comes before the end")
        parse_levels(self.level_weights)


def parse_levels(text: str) -> tuple[float, ...]:
    """The four factors of "1, 0.8, 0.6, 1"; all 1 for an empty text, and one number stands for all four.

    Raises:
        ConfigError: another count, or no finite numbers.
    """
    words = [word for word in re.split(r"[\s,;]+", text.strip()) if word]
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError:
        numbers = (float("nan"),)
    if len(numbers) not in (0, 1, LEVELS) or not all(abs(number) <= 100 for number in numbers):
        raise ConfigError(f"unit.level_weights = {shown(text)!r}: expected {LEVELS} numbers of -100 to 100 with commas, the largest size of features first")
    return numbers if len(numbers) == LEVELS else (numbers or (1.0,)) * LEVELS


def unit_from_dict(values: Mapping[str, Any]) -> Unit:
    """The unit of a mapping by field names, as the API takes it; what is not named keeps its default.

    Raises:
        ConfigError: an unknown name (with the nearest), or a value that a field does not take.
    """
    known = [item.name for item in fields(Unit)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            raise ConfigError(f"unit.{shown(name)}: no such field" + (f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"))
    return Unit(**values)


def unit_to_dict(unit: Unit) -> dict[str, Any]:
    """The fields by name; `unit_from_dict` gives the same unit again."""
    return {item.name: getattr(unit, item.name) for item in fields(Unit)}


_ALWAYS = ("adapter", "preprocessor", "weight")
_NEVER = ("enabled", "strict", "save_map", "keypoints")
"""What does not change the picture, or is, like pictures, too long."""


def render_unit(unit: Unit) -> str:
    """The unit for an infotext: "adapter=canny; preprocessor=canny; weight=0.8" and what else differs from its default."""
    said = (item for item in section_settings(Unit)
            if item.name not in _NEVER and (item.name in _ALWAYS or getattr(unit, item.name) != item.default))
    return "; ".join(f"{item.name}={_written(getattr(unit, item.name))}" for item in said)


_PAIR = re.compile(r'\s*([a-z_]+)\s*=\s*("(?:\\.|[^"\\])*"|[^;]*?)\s*(?:;|$)')


def parse_unit(text: str) -> Unit:
    """The unit that `render_unit` wrote, however the program that pasted it trimmed blanks; fields of another version are passed over.

    Raises:
        ConfigError: no such text, or a value that a field does not take.
    """
    record = {item.name: item for item in section_settings(Unit)}
    values: dict[str, Any] = {}
    place = 0
    while place < len(text):
        found = _PAIR.match(text, place)
        if found is None or found.end() == place:
            raise ConfigError(f"{shown(text)!r} is no adapter's unit: expected NAME=VALUE; NAME=VALUE, as in adapter=canny; weight=0.8")
        place = found.end()
        name, written = found.groups()
        if name in record:
            values[name] = record[name].parse(_read(written)) if record[name].kind != "text" else _read(written)
    return Unit(**values)


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value) if isinstance(value, float) else str(value)
    plain = re.fullmatch(r"[^;\"\s](?:[^;\"\n\r\t]*[^;\"\s])?", text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _read(written: str) -> str:
    if not written.startswith('"'):
        return written
    try:
        return json.loads(written)
    except ValueError:
        raise ConfigError(f"{shown(written)} is no quoted text: write it as JSON does") from None

