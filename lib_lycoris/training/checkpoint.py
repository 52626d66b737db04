"""Resumable states of a training on disk: written whole or not at all, checksummed, the newest few kept.

A state is a file NAME-states/step-00000200-SESSION.state in safetensors' format: the trained parameters, the optimiser's tensors, and in the metadata
the rest as JSON. Its ending is one that no list of networks looks for, where the output folder is one of networks. Everything random in a training
follows from (seed, epoch, sample), so that the step is the whole state of its random numbers.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import LycoError, NetworkFileError, TrainingError
from ..files.hashes import tensor_hash
from ..files.safetensors import read_header, read_tensors, write_tensors

_VERSION = 1
_NAME = re.compile(r"step-(\d+)-([0-9a-f]+)\.(?:state|safetensors)")  # the latter is how the first ones were called


@dataclass(frozen=True)
class State:
    """All that a training needs to go on after `step` steps."""

    step: int
    session: str
    """Of the whole training, over all its pauses."""
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)
    """What is no tensor: the averaged loss, the loss scaler, seconds gone."""
    checkpoint: str = ""
    """Of the model that is trained on: its hash, or its name where it has none."""


def new_session() -> str:
    """A name for a training, eight hexadecimal digits that no other has."""
    return secrets.token_hex(4)


class States:
    """The states of trainings with one name in one folder."""

    def __init__(self, folder: Path, name: str, keep: int):
        self.folder = folder / f"{name}-states"
        self._keep = keep

    def write(self, state: State, last: bool = True) -> Path:
        """Writes a state, then removes what is no longer to be kept: this training's older states, and where it is the training's last, those of an
        earlier training of that name, of which only the newest stays till then.

        Raises:
            TrainingError: the disk is full, the folder gone or not writable; what was there before stays.
        """
        path = self.folder / f"step-{state.step:08}-{state.session}.state"
        about = {
            "version": _VERSION, "step": state.step, "session": state.session, "config": state.config, "numbers": state.numbers,
            "checkpoint": state.checkpoint, "saved_at": time.time(),
        }
        try:
            self.folder.mkdir(exist_ok=True)  # without its parents: a folder that is gone is told, not made anew on whatever disk is there now
            write_tensors(path, state.tensors, {"lyco_state": json.dumps(about), "lyco_checksum": tensor_hash(state.tensors)})
        except (LycoError, OSError) as error:
            raise TrainingError(f"the training's state after step {state.step} could not be saved: {error}{self._kept_words()}") from error
        self._prune(state.session, last)
        return path

    def read_latest(self) -> tuple[State | None, list[str]]:
        """The newest state that is whole, or None where there is none at all; and in words what was passed over.

        Raises:
            TrainingError: there are states, and all of them are damaged.
        """
        problems: list[str] = []
        candidates = []
        for path in self._paths():
            try:
                about = _read_about(path)
                candidates.append((about["saved_at"], about["step"], path, about))
            except NetworkFileError as error:
                problems.append(f"{error}; an older state is used")
        for _, _, path, about in sorted(candidates, key=lambda item: item[:2], reverse=True):
            try:
                return _read_state(path, about), problems
            except NetworkFileError as error:
                problems.append(f"{error}; an older state is used")
        if problems:
            last = problems[-1].rpartition(";")[0]
            raise TrainingError(f"no state in {self.folder} can be used, the last one tried said: {last}; start again without resuming")
        return None, []

    def latest_path(self) -> Path | None:
        """The newest state's file, unread."""
        return max(self._paths(), key=lambda path: path.stat().st_mtime_ns, default=None)

    def _paths(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def _prune(self, session: str, last: bool) -> None:
        own = [path for path in self._paths() if _NAME.fullmatch(path.name)[2] == session]
        others = [] if last else sorted(set(self._paths()) - set(own), key=lambda path: path.stat().st_mtime_ns)
        kept = {*own[-self._keep :], *others[-1:]}
        drafts = self.folder.glob(".step-*.tmp")  # left by a process that was killed while it wrote
        for path in [*(path for path in self._paths() if path not in kept), *drafts]:
            with contextlib.suppress(OSError):  # another program reads it just now: the next state's turn
                path.unlink()

    def _kept_words(self) -> str:
        with contextlib.suppress(OSError):
            latest = self.latest_path()
            if latest is not None:
                return f"; the state before, {latest.name}, is kept: make room and resume"
        return ""


def _read_about(path: Path) -> dict[str, Any]:
    """What a state's header says."""
    header = read_header(path)
    try:
        about = json.loads(header.metadata["lyco_state"])
        if about["version"] != _VERSION:
            raise NetworkFileError(f"{path} is of another version of Lyco Studio ({about['version']})")
        return {**about, "checksum": header.metadata["lyco_checksum"], "saved_at": float(about["saved_at"]), "step": int(about["step"])}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, NetworkFileError):
            raise
        raise NetworkFileError(f"{path} is no training state") from error


def _read_state(path: Path, about: Mapping[str, Any]) -> State:
    tensors = read_tensors(path)
    if tensor_hash(tensors) != about["checksum"]:
        raise NetworkFileError(f"{path} is damaged: its checksum differs")
    return State(about["step"], about["session"], about["config"], tensors, about["numbers"], about["checkpoint"])
