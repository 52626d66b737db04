"""New names for files: which can be, and several files renamed together or not at all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lib_lycoris.errors import ConfigError, LycoError, shown

_FORBIDDEN = '<>:"|?*/\\'
"""What can't stand in a file's name on every system, or would end a tag."""

_LONGEST_NAME = 120


def checked_name(name: str) -> str:
    """The name, fit for a file on every system.

    Raises:
        ConfigError: it can't be a file's name.
    """
    wrong = next((letter for letter in name if letter in _FORBIDDEN or not letter.isprintable()), None)
    if wrong is not None:
        raise ConfigError(f"name {shown(name)!r} holds {shown(wrong)!r}, which can't stand in a file's name everywhere: choose another")
    if not name or name.startswith(".") or name[-1] in ". " or len(name) > _LONGEST_NAME:
        raise ConfigError(f"name {shown(name)!r} can't be a file's: 1 to {_LONGEST_NAME} characters, no full stop at its start, none and no blank at its end")
    return name


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Renames files, all or none.

    Raises:
        LycoError: something lies in a place, or it can't be renamed.
    """
    for old, goal in moves:
        if os.path.lexists(goal) and not (os.path.lexists(old) and os.path.samefile(old, goal) and old.name.lower() == goal.name.lower()):
            raise LycoError(f"{shown(goal.name)!r} is there already in {shown(goal.parent)}: choose another name")
    done: list[tuple[Path, Path]] = []
    try:
        for old, goal in moves:
            os.rename(old, goal)
            done.append((old, goal))
    except OSError as error:
        for old, goal in reversed(done):
            os.rename(goal, old)
        raise LycoError(f"{shown(old)} could not be renamed: {error.strerror or error}; everything is called what it was") from error
