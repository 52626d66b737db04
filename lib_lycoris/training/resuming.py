"""Whether a saved state can be gone on from, and what of it may surprise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..setting import show
from .backbone import Backbone
from .checkpoint import State, States
from .config import TrainConfig
from .processes import Processes

_SHAPING = ("embedding.word", "embedding.vectors", "embedding.start_from")
"""Beside [network], what the trained numbers' shapes and meaning follow from."""


def read_state(states: States, resume: bool, processes: Processes) -> tuple[State | None, list[str]]:
    """The newest saved state, if the training is to be resumed and there is one, and what was odd about it, in words.

    Raises:
        TrainingError: there are states but none can be used, or not all processes see the same.
    """
    state, problems = states.read_latest() if resume else (None, [])
    if processes.count > 1:
        processes.agree(-1 if state is None else state.step, "step of the saved state", f"put {states.folder} on a disk that all of them see")
    return state, problems


def odd_about_resuming(config: TrainConfig, backbone: Backbone, state: State | None, states: States, resume: bool, processes: Processes) -> list[str]:
    """In words, what the user may not expect about saved states.

    Raises:
        ConfigError: the state was trained with another [network] or [adapter].
    """
    if state is None:
        return _odd_about_beginning(config, states, resume)
    then, now = _with_defaults(state.config), config.to_dict()
    changed = [f"{section}.{key}" for section in now for key in now[section] if then[section][key] != now[section][key]]
    for key in changed:
        if key.startswith(("network.", "adapter.")) or key in _SHAPING:
            section, _, name = key.partition(".")
            before = then[section][name]
            raise ConfigError(f"{key} = {now[section][name]}: the saved state was trained with {before}; set it back or do not resume")
    problems = [f"resumed with another {key}: {_value(now, key)}, before {_value(then, key)}" for key in changed if not key.startswith("output.")]
    if state.checkpoint != checkpoint_mark(backbone):
        problems.append(f"resumed on another checkpoint, {backbone.checkpoint_name}")
    count = int(state.numbers.get("processes", 1))
    if count != processes.count:
        problems.append(f"resumed on {processes.count} processes, before there were {count}: a step learns from another number of pictures now")
    return problems


def _value(config: Mapping[str, Mapping[str, Any]], key: str) -> str:
    section, _, name = key.partition(".")
    value = config[section][name]
    return "left out" if value is None else show(value)


def _with_defaults(held: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """A saved config with what it did not know yet at its default."""
    return {section: {**values, **held.get(section, {})} for section, values in TrainConfig().to_dict().items()}


def _odd_about_beginning(config: TrainConfig, states: States, resume: bool) -> list[str]:
    name, left = config.output.name, states.latest_path()
    if resume:
        return [f"no saved state of {name} in {config.output.folder}: the training begins at step 0"]
    if left is None:
        return []
    return [f"an earlier training {name} left {left.name}; it stays until this one has come to its end, resuming goes on from the newest"]


def checkpoint_mark(backbone: Backbone) -> str:
    """What tells one model from another: the hash of its file, or its name where it has none."""
    return backbone.checkpoint_hash or backbone.checkpoint_name
