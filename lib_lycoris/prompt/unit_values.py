"""A unit's values as a page's controls or an API's client give them: which there are, in which order, and what empty ones mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from .unit import Unit, unit_from_dict

UNITS = 3
NOTHING = "None"
UNSET = -1
"""What a slider of a preprocessor says that has no such value, or whose own default counts."""

FIELDS = ("enabled", "adapter", "picture", "preprocessor", "processor_resolution", "threshold_a", "threshold_b", "palette", "keypoints", "weight",
          "start", "end", "resize_mode", "hires", "level_weights", "mask", "pictures", "save_map", "strict")
"""The controls of a unit, in the order in which their values come. None of the first three is ever a mapping: by that an API's unit is told from a page's."""

PICTURES = ("picture", "mask", "pictures")
FUSER, AUTO_FUSER, NO_FUSER = "fuser", "auto", "none"
"""Beside the units: the name of a CoAdapter fuser's file; "auto", one that fits where adapters act that it knows; "none"."""

INFOTEXT, INFOTEXT_FUSER = "Lyco adapter {}", "Lyco adapter fuser"
"""What infotexts call a unit, by its number from 1, and the fuser that was used."""
_OTHER_NAMES = {"image": "picture", "images": "pictures", "input_image": "picture", "model": "adapter", "module": "preprocessor",
                "processor_res": "processor_resolution", "guidance_start": "start", "guidance_end": "end"}
"""As ControlNet's API calls them."""


def unit_values(values: Sequence[Any]) -> list[dict[str, Any]]:
    """One mapping of values for each unit: of the page's controls, or what an API's client gave in the first arguments' places."""
    given = [value for value in values[:UNITS] if isinstance(value, Mapping)]
    if given:
        return [{_OTHER_NAMES.get(name, name): each for name, each in value.items() if name != FUSER} for value in given]
    count = len(FIELDS)
    return [plain_values(values[start : start + count]) for start in range(0, len(values) - len(values) % count, count)]


def fuser_value(values: Sequence[Any]) -> str:
    """The fuser that is wanted: the page's last value, behind all units; of an API's client what the first unit says that names one."""
    given = [value for value in values[:UNITS] if isinstance(value, Mapping)]
    named = [value[FUSER] for value in given if FUSER in value] if given else values[len(FIELDS) * UNITS :][:1]
    return str(named[0] or AUTO_FUSER) if named else AUTO_FUSER


def told_fuser(fields: Mapping[str, Any]) -> str:
    """The fuser with which an infotext's picture is made again: where several units acted without one, none."""
    if fields.get(INFOTEXT_FUSER):
        return str(fields[INFOTEXT_FUSER])
    acted = sum(bool(fields.get(INFOTEXT.format(number))) for number in range(1, UNITS + 1))
    return NO_FUSER if acted > 1 else AUTO_FUSER


def plain_values(controls: Sequence[Any]) -> dict[str, Any]:
    """The values of one unit's controls as a unit has them."""
    values = dict(zip(FIELDS, controls, strict=True))
    values["adapter"] = "" if values["adapter"] in (None, NOTHING) else values["adapter"]
    values["processor_resolution"] = int(values["processor_resolution"]) if (values["processor_resolution"] or 0) >= 16 else None
    for name in ("threshold_a", "threshold_b"):
        values[name] = None if values[name] is None or values[name] <= UNSET else values[name]
    for name in ("palette", "keypoints", "level_weights"):
        values[name] = (values[name] or "").strip()
    values["pictures"] = [Path(getattr(file, "name", file)) for file in values["pictures"] or ()]
    return values


def split_unit(values: Mapping[str, Any]) -> tuple[Unit, dict[str, Any]]:
    """The unit, and the pictures beside it, out of one mapping.

    Raises:
        ConfigError: a name that is no field, or a value that a field does not take.
    """
    wrong = [name for name in values if not isinstance(name, str)]
    if wrong:
        raise ConfigError(f"unit.{shown(wrong[0])}: no such field")
    pictures = {name: values[name] for name in PICTURES if values.get(name) is not None and not (name == "pictures" and not values[name])}
    return unit_from_dict({name: value for name, value in values.items() if name not in PICTURES}), pictures
