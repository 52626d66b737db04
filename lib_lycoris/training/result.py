"""What came of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .config import TrainConfig


@dataclass(frozen=True)
class TrainResult:
    """What came of a training."""

    path: Path | None
    """The network; None where it was stopped before its first step."""
    steps: int
    """Steps done, with those of earlier parts of a resumed run."""
    loss: float
    """The smoothed loss at the end; NaN before the first step."""
    seconds: float
    """From the call to its end, pauses included."""
    stopped: bool = False
    """Whether it was stopped before its last step; it can be resumed."""
    state: Path | None = None
    """The state from which it can be resumed."""
    problems: tuple[str, ...] = ()
    """What was odd but did not stop it, in words."""
    validation: tuple[tuple[int, float], ...] = ()
    """(step, loss) of each validation, the first before the first step."""
    ranks: Mapping[str, int] | None = None
    """The rank that each layer ("component.layer") kept, where a method takes some away (AdaLoRA)."""


def typed_for(config: TrainConfig, path: Path) -> str | None:
    """What is typed to use the file: an embedding's own name, or a network's tag, with the word behind it that was trained with the network.

    None for an adapter, which is chosen beside the prompt, with a control picture.
    """
    if config.network.kind == "adapter":
        return None
    if config.network.kind == "embedding":
        return path.stem
    # PEFT's form with a text encoder is a folder with a network for each model: each has a tag of its own
    parts = sorted(path.glob("*/adapter_model.safetensors"), reverse=True)
    names = [part.relative_to(path.parent).with_suffix("").as_posix() for part in parts] or [path.stem]
    return "".join(f"<lyco:{name}:1>" for name in names) + (f" {config.word}" if config.word else "")
