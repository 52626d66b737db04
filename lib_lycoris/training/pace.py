"""How long a step took in earlier trainings on this machine: the only thing that an estimate of time is made from."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from .backbone import Backbone
from .config import TrainConfig

_FEWEST = 5
"""Steps of a training that tells a pace; the first of all are slower."""
_MOST = 200


class Paces:
    """Seconds a step by what the step's time depends on, in a file.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, config: TrainConfig, backbone: Backbone, steps: int, seconds: float) -> None:
        """Keeps how long a training's steps took; a folder that can't be written to costs the next estimate."""
        if steps < _FEWEST or seconds <= 0:
            return
        known = self._read()
        known.pop(_key(config, backbone), None)
        known[_key(config, backbone)] = {"seconds": seconds / steps, "steps": steps, "at": round(time.time())}
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}.new")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(json.dumps(dict(list(known.items())[-_MOST:]), indent=1), encoding="utf-8")
            os.replace(draft, self._path)

    def seconds_a_step(self, config: TrainConfig, backbone: Backbone) -> float | None:
        """Seconds of a step as an earlier training of that kind, size and batch took on this device with this base model; None where there was none."""
        found = self._read().get(_key(config, backbone))
        seconds = found.get("seconds") if isinstance(found, dict) else None
        return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _key(config: TrainConfig, backbone: Backbone) -> str:
    network, training = config.network, config.training
    parts = {
        "device": _device(backbone), "base": backbone.base_model, "numbers": sum(value.numel() for value in backbone.unet.parameters()),
        "kind": network.kind, "rank": network.rank, "groups": list(network.groups), "text": network.text_encoder, "side": config.data.resolution,
        "batch": config.data.batch_size * training.gradient_accumulation, "precision": training.precision, "checkpointing": training.gradient_checkpointing,
        "optimizer": training.optimizer,
    }
    return json.dumps(parts, sort_keys=True)


def _device(backbone: Backbone) -> str:
    if backbone.device.type != "cuda":
        return backbone.device.type
    import torch

    return torch.cuda.get_device_name(backbone.device)
