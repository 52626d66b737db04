"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from lib_lycoris.errors import LycoError, shown


def write_whole(path: str | os.PathLike[str], pieces: Iterable[bytes | memoryview]) -> None:
    """Writes these bytes; an older file stays until the new one is on the disk.

    Raises:
        LycoError: the folder is missing, full or not writable; the older file is unchanged.
    """
    goal = Path(os.path.realpath(path))
    draft = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(draft, "xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, goal)
    except OSError as error:
        advice = "free some space or choose another folder; what was there before is unchanged"
        raise LycoError(f"{shown(path)} could not be written: {error.strerror or error}; {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
