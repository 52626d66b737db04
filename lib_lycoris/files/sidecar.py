"""What stands beside a network file: the user's own remarks as JSON, previews, descriptions.

Source: the JSON's keys are those of AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/ui_extra_networks_user_metadata.py and
extensions-builtin/Lora/ui_edit_user_metadata.py.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib_lycoris.errors import ConfigError, LycoError, shown

WEIGHT = "preferred weight"
VERSION = "sd version"
TEXTS = ("description", VERSION, "activation text", "negative text", "notes")
KEYS = (*TEXTS, WEIGHT)
"""The keys that the WebUI's own editors write too; others are kept as they are."""

VERSIONS = ("SD1", "SD2", "SDXL", "Unknown")
_LONGEST = 1_000_000
_PICTURES = ("png", "jpg", "jpeg", "webp", "gif")
_BESIDE = (".json", ".txt", ".description.txt", ".civitai.info", *(f"{part}.{kind}" for part in ("", ".preview") for kind in _PICTURES))


def json_beside(path: Path) -> Path:
    """Where the remarks on the network at `path` stand."""
    return path.with_suffix(".json")


def read_remarks(path: Path) -> dict[str, Any]:
    """The user's remarks on the network at `path`: what the JSON beside it holds for `KEYS`, each a text or a finite number; what is odd is left out.

    The file may have come with the network from anywhere, so nothing in it is believed.
    """
    try:
        held = _read_object(json_beside(path))
    except LycoError:
        return {}
    remarks: dict[str, Any] = {key: held[key] for key in TEXTS if isinstance(held.get(key), str)}
    weight = held.get(WEIGHT)
    if isinstance(weight, (int, float)) and not isinstance(weight, bool) and abs(weight) < 1e6:
        remarks[WEIGHT] = float(weight)
    return remarks


def write_remarks(path: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The remarks on the network at `path` after these changes; what is not named stays, other programs' keys too. The file appears whole or not at all.

    Raises:
        ConfigError: a key or value that no remark can have.
        LycoError: the JSON there is damaged, or can't be written.
    """
    checked = check_remarks(changes)
    goal = json_beside(path)
    held = {**_read_object(goal), **checked}
    draft = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.tmp")
    try:
        draft.write_text(json.dumps(held, indent=4, ensure_ascii=False), encoding="utf-8")
        os.replace(draft, goal)
    except (OSError, ValueError) as error:
        raise LycoError(f"{shown(goal)} could not be written: {shown(error)}; what was there before is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return read_remarks(path)


def check_remarks(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, after a look at every key and value.

    Raises:
        ConfigError: an unknown key (the nearest known one is named), a value of another type, a version or weight that can't be.
    """
    for key, value in changes.items():
        if key not in KEYS:
            near = difflib.get_close_matches(str(key), KEYS, 1, 0.4)
            raise ConfigError(f"remark {shown(key)!r} is unknown; {f'did you mean {near[0]!r}?' if near else f'known are {KEYS}'}")
        if key == WEIGHT:
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or abs(value) > 100:
                raise ConfigError(f"{WEIGHT} {shown(value)!r} is no number between -100 and 100; 0 means none")
        elif not isinstance(value, str) or len(value) > _LONGEST // 10:
            raise ConfigError(f"remark {key!r} is no text of at most {_LONGEST // 10} characters ({type(value).__name__}): give a text")
        elif key == VERSION and value not in ("", *VERSIONS):
            raise ConfigError(f"{VERSION} {shown(value)!r} is unknown; known are {', '.join(VERSIONS)}")
    return dict(changes)


def find_sidecars(path: Path, siblings: tuple[str, ...] = ()) -> list[Path]:
    """The files that belong to the network at `path` alone: none where another network of that stem, with an extension of `siblings`, lies beside it."""
    if any(path.with_suffix(other) != path and path.with_suffix(other).exists() for other in siblings):
        return []
    stem = path.with_suffix("")
    return [found for found in (stem.with_name(stem.name + ending) for ending in _BESIDE) if found.is_file() or found.is_symlink()]


def _read_object(path: Path) -> dict[str, Any]:
    """What the JSON file holds; nothing where there is none.

    Raises:
        LycoError: it is no JSON object, or can't be read.
    """
    try:
        if not path.is_file():
            return {}
        if path.stat().st_size > _LONGEST:
            raise LycoError(f"{shown(path)} has more than {_LONGEST} bytes, no remarks are that long: move it away")
        held = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise LycoError(f"{shown(path)} can't be read as JSON ({shown(error)}): repair it or move it away") from error
    if not isinstance(held, dict):
        raise LycoError(f"{shown(path)} holds a JSON {type(held).__name__} where an object has to be: repair it or move it away")
    return held
