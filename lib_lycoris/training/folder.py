"""The folder that a training writes to: there, writable, and nobody else's for a training of that name."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import BusyError, ConfigError, shown
from .config import OutputSettings

_LOCK, _NOTE = ".lock", ".running.json"


def make_folder(settings: OutputSettings) -> Path:
    """The output folder, made and writable: better known now than after an hour.

    Raises:
        ConfigError: it can't be made or written to.
    """
    folder = Path(settings.folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output.folder = {settings.folder}: can't be made ({error.strerror or error}); choose another") from error
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"output.folder = {settings.folder}: is not writable; choose another or change its permissions")
    return folder


def check_folder(settings: OutputSettings) -> None:
    """Returns where the output folder is writable, or can be made; nothing is made.

    Raises:
        ConfigError: it can't.
    """
    folder = Path(settings.folder).expanduser()
    there = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    if not there.is_dir():
        raise ConfigError(f"output.folder = {settings.folder}: {there} is a file; choose another")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"output.folder = {settings.folder}: {there} is not writable; choose another or change its permissions")


@contextmanager
def held(folder: Path, name: str) -> Iterator[list[str]]:
    """Within it no other training writes states to that folder; gives in words what was odd about it.

    The lock is the system's own and ends with its process, however that ends: a killed training stands in nobody's way.

    Raises:
        BusyError: another training has it.
        ConfigError: the folder can't be written to.
    """
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise BusyError(f"{folder} belongs to a training {name!r} that is under way{_who(folder)}: wait for its end or stop it, or choose another "
                        "output.name") from None
    except NotImplementedError:  # a disk that knows no locks
        yield [f"{folder} is on a disk without locks: don't start another training {name!r} there before this one has ended"]
        return
    except OSError as error:
        raise ConfigError(f"output.folder: {folder} can't be written to ({error.strerror or error}); choose another or change its permissions") from error
    try:
        left = _read_note(folder)
        _write_note(folder)
        yield [f"the training {name!r} before this one was killed{_who(folder, left)}; what it saved is still there"] if left else []
    finally:
        with contextlib.suppress(OSError):  # the folder may be gone
            (folder / _NOTE).unlink()
        with contextlib.suppress(OSError):
            lock.release()


def _read_note(folder: Path) -> dict[str, Any] | None:
    """Who has the folder, or had it when it was killed; None where nobody had."""
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(folder: Path) -> None:
    note = {"process": os.getpid(), "machine": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):  # a full disk: the note is for words alone
        (folder / _NOTE).write_text(json.dumps(note), encoding="utf-8")


def _who(folder: Path, note: dict[str, Any] | None = None) -> str:
    note = _read_note(folder) if note is None else note
    return f" (process {shown(note['process'], 20)} on {shown(note['machine'], 60)}, since {shown(note['since'], 30)})" if note and _is_whole(note) else ""


def _is_whole(note: dict[str, Any]) -> bool:
    return {"process", "machine", "since"} <= note.keys()
