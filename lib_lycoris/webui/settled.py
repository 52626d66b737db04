"""What of the host's would disturb a training, put aside for its time: each of these is a context that gives everything back as it was."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from modules import sd_unet, shared
from torch import nn

from . import host


@contextmanager
def options(**values: Any) -> Iterator[None]:
    """The host's options have these values, without anybody being told; what the user changes meanwhile stays changed."""
    before = {name: shared.opts.data[name] for name in values if name in shared.opts.data}
    shared.opts.data.update(values)
    try:
        yield
    finally:
        for name, value in values.items():
            if shared.opts.data.get(name) != value:
                continue
            if name in before:
                shared.opts.data[name] = before[name]
            else:
                del shared.opts.data[name]


@contextmanager
def attributes(owner: Any, **values: Any) -> Iterator[None]:
    """An object's attributes have these values."""
    before = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def without_builtin_networks(trees: host.Trees) -> None:
    """Takes the built-in extension's networks off. It merges them into the weights and leaves them there after a picture; the next one asks for its own."""
    builtin: Any = sys.modules.get("networks")
    if host.make_settle() is None:
        return
    builtin.load_networks([])
    with torch.no_grad():  # it copies into parameters that may require gradients
        for module in modules_of(trees):
            if getattr(module, "network_layer_name", None) is not None:
                builtin.network_apply_weights(module)


@contextmanager
def without_hypernetworks() -> Iterator[None]:
    """The host's attention adds no hypernetwork of the last picture's."""
    loaded = getattr(shared, "loaded_hypernetworks", None) or []
    before = list(loaded)
    loaded[:] = []
    try:
        yield
    finally:
        loaded[:] = before


@contextmanager
def without_tiles(modules: Iterable[nn.Module]) -> Iterator[None]:
    """HyperTile, which stays on the layers after a picture, cuts nothing; nor do pictures tile at their edges."""
    from modules import sd_hijack

    found = [params for params in (getattr(module, "__webui_hypertile_params", None) for module in modules) if params is not None]
    before, circular = [params.enabled for params in found], sd_hijack.model_hijack.circular_enabled
    try:
        for params in found:
            params.enabled = False
        sd_hijack.model_hijack.apply_circular(False)
        yield
    finally:
        sd_hijack.model_hijack.apply_circular(circular)
        for params, enabled in zip(found, before, strict=True):
            params.enabled = enabled


def without_other_unet() -> None:
    """Ends the program that runs in the UNet's place (TensorRT, …); the host's next picture starts the one that the user chose."""
    if sd_unet.current_unet is not None:
        sd_unet.apply_unet("None")


class Attention:
    """The way in which a UNet's attention is computed while it is trained.

    Those that the host offers to save memory choose their pieces by what is free and keep no gradients in order, or are in need of a package; torch's own
    has gradients and needs little memory. It is put on the modules themselves, in front of whatever the user has chosen for their class.
    """

    def __init__(self, modules: Iterable[nn.Module]):
        self._modules = [module for module in modules if type(module).__name__.endswith("CrossAttention") and hasattr(module, "to_q")]
        self._before: list[Any] | None = None

    def put_on(self) -> None:
        """The modules compute as training needs it."""
        if self._before is None:
            self._before = [vars(module).get("forward") for module in self._modules]
            forward = _trainable_attention() if self._modules else None
            for module in self._modules:
                module.forward = types.MethodType(forward, module)

    def take_off(self) -> None:
        """The modules compute as the user wants it."""
        if self._before is not None:
            for module, forward in zip(self._modules, self._before, strict=True):
                vars(module).pop("forward", None)
                if forward is not None:
                    module.forward = forward
            self._before = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Within it they compute as training needs it."""
        try:
            self.put_on()
            yield
        finally:
            self.take_off()

    @contextmanager
    def off(self) -> Iterator[None]:
        """Within it, inside `on`, they compute as the user wants it: for a preview."""
        was_on = self._before is not None
        self.take_off()
        try:
            yield
        finally:
            if was_on:
                self.put_on()


@contextmanager
def job(name: str) -> Iterator[None]:
    """The host's state says that this is done now; no live preview decodes meanwhile, and an interrupt that was meant for it does not outlive it."""
    state, parallel = shared.state, getattr(shared, "parallel_processing_allowed", True)
    state.begin(job=name)
    shared.parallel_processing_allowed = False
    try:
        yield
    finally:
        shared.parallel_processing_allowed = parallel
        state.end()
        state.textinfo = None
        state.interrupted = state.skipped = state.stopping_generation = False


@contextmanager
def state_kept() -> Iterator[None]:
    """What the host's state says of the job is afterwards as before; an interrupt that came meanwhile stays."""
    wanted = ("job", "job_no", "job_count", "sampling_step", "sampling_steps", "textinfo", "current_latent", "current_image")
    before = {name: getattr(shared.state, name) for name in wanted if hasattr(shared.state, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(shared.state, name, value)


def modules_of(trees: host.Trees) -> list[nn.Module]:
    """All modules of the trees."""
    return [module for tree in (trees.unet, *trees.text_encoders) for module in tree.modules()]


def _trainable_attention() -> Any:
    from modules import sd_hijack_optimizations
    from modules.hypernetworks import hypernetwork

    if hasattr(torch.nn.functional, "scaled_dot_product_attention"):
        return sd_hijack_optimizations.scaled_dot_product_attention_forward
    return hypernetwork.attention_CrossAttention_forward
