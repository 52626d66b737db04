"""A training's config and state on disk, so that a page finds it again after the program was ended or killed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .config import TrainConfig
from .job_state import BUSY, INTERRUPTED, JobState

_log = logging.getLogger(__name__)
_VERSION = 1


class JobRecord:
    """The newest training of one host, in a file.

    Args:
        path: of the file; None: nothing is kept.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def write(self, config: TrainConfig | None, state: JobState) -> None:
        """Keeps them, whole or not at all; a disk that is full stops no training."""
        if self._path is None or config is None:
            return
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps({"version": _VERSION, "config": config.to_dict(), "state": state.to_dict()}), encoding="utf-8")
            os.replace(draft, self._path)
        except OSError as error:
            _log.warning("the training's state for the page could not be kept in %s: %s", self._path, error.strerror or error)
            with contextlib.suppress(OSError):
                draft.unlink()

    def read(self) -> tuple[TrainConfig | None, JobState]:
        """(config, state) as they were kept; a training that was under way then was interrupted. Nothing where there is no such file, or none to be used."""
        plain = self._read()
        try:
            state = JobState.from_dict(plain["state"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None, JobState()
        try:
            config = TrainConfig.from_dict({section: _without_none(values) for section, values in plain["config"].items()})
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError):  # of another version
            config = None
        return config, _as_left(state)

    def _read(self) -> dict[str, Any]:
        if self._path is None:
            return {}
        try:
            plain = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return plain if isinstance(plain, dict) and plain.get("version") == _VERSION else {}


def _as_left(state: JobState) -> JobState:
    if state.phase not in BUSY:
        return state
    line = f"The program ended during this training, at step {state.step} of {state.steps}: resume goes on from the newest saved state"
    return replace(state, version=state.version + 1, phase=INTERRUPTED, doing="", seconds_left=None, log=(*state.log, line))


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
