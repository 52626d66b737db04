"""A config as what a command line takes: only what differs from the defaults, quoted for the shell of this machine."""

from __future__ import annotations

import json
import os
import shlex
from typing import Any

from .config import TrainConfig, settings


def to_command_line(config: TrainConfig, windows: bool | None = None) -> str:
    """`python -m lib_lycoris train --set …` that trains the same.

    Args:
        windows: whether it is for cmd.exe; None: as this machine is.
    """
    default = TrainConfig()
    changed = [(item.key, getattr(getattr(config, item.section), item.name)) for item in settings()
               if getattr(getattr(config, item.section), item.name) != getattr(getattr(default, item.section), item.name)]
    words = ["python", "-m", "lib_lycoris", "train"]
    for key, value in changed:
        words += ["--set", f"{key}={_spell(value)}"]
    quote = _quote_windows if (os.name == "nt" if windows is None else windows) else shlex.quote
    return " ".join(quote(word) for word in words)


def _spell(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(list(value), ensure_ascii=False) if isinstance(value, tuple) else str(value)


def _quote_windows(word: str) -> str:
    if word and all(letter.isalnum() or letter in "._-=/\\:+" for letter in word):
        return word
    escaped, slashes = "", 0
    for letter in word:  # as the C runtime reads them: backslashes count only before a quotation mark
        if letter == '"':
            escaped += "\\" * (slashes + 1)
        slashes = slashes + 1 if letter == "\\" else 0
        escaped += letter
    return f'"{escaped}{chr(92) * slashes}"'
