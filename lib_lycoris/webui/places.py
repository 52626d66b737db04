"""Where the parts of the host's model are while it is trained: on the device, or out of the way."""

from __future__ import annotations

from typing import Any

from modules import devices, lowvram, shared
from torch import nn

UNET, TEXTS, VAE = "unet", "texts", "vae"


class Places:
    """Moves the parts of one model as a training needs them, where the user wants it so: --medvram, or the option to unload when training.

    The host's own hooks for --medvram know one part at a time, and would take a text encoder away before its backward pass; here all that a step
    needs is on the device together, and the host is told that nothing is.
    """

    def __init__(self, model: Any):
        self._parts: dict[str, nn.Module] = {
            UNET: model.model, TEXTS: model.conditioner if hasattr(model, "conditioner") else model.cond_stage_model, VAE: model.first_stage_model,
        }
        self._hooked = bool(getattr(model, "lowvram", False))
        self.moves = self._hooked or bool(shared.opts.data.get("unload_models_when_training", False))
        self._now: set[str] | None = None

    def need(self, *names: str) -> None:
        """These parts are on the device, and where memory is to be saved the others are not."""
        if not self.moves:
            return
        if self._hooked:
            lowvram.module_in_gpu = None
        if self._now == set(names):
            return
        for name, part in self._parts.items():
            if name not in names:
                part.to(devices.cpu)
        for name in names:
            self._parts[name].to(devices.device)
        self._now = set(names)
        devices.torch_gc()

    def give_back(self) -> None:
        """All parts are where the host expects them."""
        if not self.moves or self._now is None:
            return
        self._now = None
        if self._hooked:
            lowvram.module_in_gpu = None
        for part in self._parts.values():
            part.to(devices.cpu if self._hooked else devices.device)
        devices.torch_gc()
