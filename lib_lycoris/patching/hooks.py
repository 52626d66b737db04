"""The mechanism: hooks on one module that put merged parameters in for the time of its forward, or add to its output."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .calls import running_calls
from .merge import merge_bias, merge_weight
from .plan import Effect

Way = Literal["merged", "beside", "trained"]
Settle = Callable[[nn.Module], Hashable]

_MERGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Claim:
    """What one owner wants of a module.

    Attributes:
        effects: the layers, with targets whose `hooked` is the module.
        way: "merged", which falls back to "beside" for a weight that can't take a sum (fp8, quantised, offloaded); "beside"; or "trained": beside,
            with the layer's own parameters in the graph.
        settle: called with the module before its weight is read; lets others finish their changes to it, and returns a token that differs when they
            made any.
    """

    effects: tuple[Effect, ...]
    way: Way = "merged"
    settle: Settle | None = None


class ModulePatch:
    """All claims on one module; between forwards the module holds its own tensors.

    It lives in the module's hook dictionaries and goes with the last claim.
    """

    def __init__(self, module: nn.Module):
        self._module = weakref.ref(module)
        self._claims: dict[Hashable, Claim] = {}
        self._slots: list[_Slot] = []
        self._settles: list[Settle] = []
        self._moved: dict[tuple[int, torch.device], Any] = {}
        self._held: list[tuple[dict, str, Tensor | None, Tensor]] = []
        self._inside = 0
        self._lock = threading.RLock()
        # Last before the forward, first after it: what other hooks see is the host's own, and patches by another copy of this library nest.
        self._handles = [
            module.register_forward_pre_hook(_Hook(self._enter)),
            module.register_forward_hook(_Hook(self._add_beside), prepend=True, with_kwargs=True),
            module.register_forward_hook(_Hook(self._leave), prepend=True, always_call=True),
        ]

    @staticmethod
    def of(module: nn.Module) -> ModulePatch:
        """The module's patch, made if it has none."""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, _Hook):
                return hook.method.__self__
        return ModulePatch(module)

    def claim(self, owner: Hashable, claim: Claim) -> None:
        """Sets what this owner wants; costs nothing when it wants that already."""
        with self._lock:
            self.recover()
            if self._claims.get(owner) != claim:
                self._claims[owner] = claim
                self._rebuild()

    def release(self, owner: Hashable) -> None:
        """Takes back what this owner wants; after the last owner nothing of this is left on the module."""
        with self._lock:
            self.recover()
            if self._claims.pop(owner, None) is not None:
                self._rebuild()
            if not self._claims:
                self._put_back()  # even within a forward: without the hooks nobody else would
                for handle in self._handles:
                    handle.remove()

    def recover(self) -> None:
        """Puts the module's own tensors back when an interrupt left ours in."""
        with self._lock:
            module = self._module()
            if self._held and (module is None or running_calls(module) == 0):
                self._put_back()

    def _rebuild(self) -> None:
        merged: dict[tuple[int, str], _Slot] = {}
        for claim in self._claims.values():
            for effect in claim.effects:
                target = effect.target
                slot = merged.setdefault((id(target.module), target.weight), _Slot(target.module, target.weight, target.bias))
                slot.wanted.append((claim.way, effect))
        self._slots = list(merged.values())
        self._settles = list(dict.fromkeys(claim.settle for claim in self._claims.values() if claim.settle is not None))
        self._moved.clear()

    def _enter(self, module: nn.Module, args: tuple) -> None:
        with self._lock:
            if self._inside or self._held:
                # a call within a call or in another thread; or one that an interrupt ended, and nobody told us
                self._inside = min(self._inside, running_calls(module) - 1)
                if self._inside <= 0:
                    self._put_back()
            if not self._inside:
                token = tuple([settle(module) for settle in self._settles])
                for slot in self._slots:
                    slot.refresh(token)
                for slot in self._slots:
                    slot.put_in(self._held)
            self._inside += 1

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside > 0:
                self._inside = min(self._inside, running_calls(module) - 1)
            if self._inside <= 0:
                self._put_back()

    def _put_back(self) -> None:
        while self._held:
            parameters, name, original, ours = self._held[-1]
            if parameters.get(name) is ours:
                parameters[name] = original
            self._held.pop()
        for slot in self._slots:
            slot.forget_traced()
        self._inside = 0

    def _add_beside(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        effects = [item for slot in self._slots for item in slot.beside]
        if not effects:
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        for way, effect in effects:
            layer = effect.layer if way == "trained" else self._near(effect.layer, x.device)
            output = output + effect.strength * layer.delta_output(x, module).to(output.dtype)
        return output

    def _near(self, layer: Any, device: torch.device) -> Any:
        """The layer with its tensors on this device: a copy where they are elsewhere, as a loaded network belongs to its cache."""
        first = next(layer.parameters(), None) if isinstance(layer, nn.Module) else None
        if first is None or first.device == device:
            return layer
        key = (id(layer), device)
        if key not in self._moved:
            self._moved[key] = copy.deepcopy(layer).to(device)
        return self._moved[key]


class _Slot:
    """A weight of the module and its bias, what is wanted of them, and the merged copies."""

    def __init__(self, module: nn.Module, weight: str, bias: str | None):
        self.wanted: list[tuple[Way, Effect]] = []
        self.beside: list[tuple[Way, Effect]] = []
        self._parameters = module._parameters
        self._names = (weight, bias)
        self._seen: tuple | None = None
        self._sources: tuple[Callable[[], Tensor | None], ...] = ()
        self._copies: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._traced = False

    def refresh(self, token: Hashable) -> None:
        """Makes the copies anew when what they were made from is no longer what the module holds."""
        weight, bias = (None if name is None else self._parameters[name] for name in self._names)
        seen = (_state(weight), _state(bias), token)
        if seen == self._seen and not self._traced and self._intact() and self._sources[0]() is weight and self._sources[1]() is bias:
            return
        fused = bool(self.wanted) and self.wanted[0][1].target.fused
        mergeable = fused or _mergeable(weight)
        self.beside = [] if fused else [(way, effect) for way, effect in self.wanted if way != "merged" or not mergeable]
        merged = [effect for way, effect in self.wanted if fused or (way == "merged" and mergeable)]
        # A fused layer under training has no output of its own to add to, so its merged weight is part of the graph, and new in every forward.
        self._traced = fused and any(way == "trained" for way, _ in self.wanted)
        self._copies = self._merge(weight, bias, merged)
        self._versions = {name: made._version for name, made in self._copies.items()}
        self._sources = tuple((lambda: None) if now is None else weakref.ref(now) for now in (weight, bias))
        self._seen = seen

    def _merge(self, weight: Tensor, bias: Tensor | None, effects: list[Effect]) -> dict[str, Tensor]:
        if not effects:
            return {}
        if self._traced:
            made = (merge_weight(weight, effects), merge_bias(bias, weight, effects))
        else:
            # not as inference tensors: a later forward may want gradients through them
            with torch.inference_mode(False), torch.no_grad():
                made = (_frozen(merge_weight(weight, effects)), _frozen(merge_bias(bias, weight, effects)))
        return {name: tensor for name, tensor in zip(self._names, made, strict=True) if name is not None and tensor is not None}

    def _intact(self) -> bool:
        return all(made._version == self._versions[name] for name, made in self._copies.items())

    def put_in(self, held: list[tuple[dict, str, Tensor | None, Tensor]]) -> None:
        """Swaps the copies in, noting in `held` first what to put back."""
        for name, ours in self._copies.items():
            held.append((self._parameters, name, self._parameters[name], ours))
            self._parameters[name] = ours

    def forget_traced(self) -> None:
        """Lets go of copies that hold a graph."""
        if self._traced:
            self._copies = {}


def _state(parameter: Tensor | None) -> tuple | None:
    """What changes when a parameter gets other values or another place; `.data` written to in place is the one change that it can't tell."""
    if parameter is None:
        return None
    version = 0 if parameter.is_inference() else parameter._version
    return id(parameter), version, parameter.data_ptr(), parameter.dtype, parameter.device


def _mergeable(weight: Tensor) -> bool:
    return weight.dtype in _MERGEABLE and type(weight) in (nn.Parameter, Tensor) and weight.device.type != "meta"


def _frozen(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor, requires_grad=False)


class _Hook:
    """A bound method as a hook that a copied or pickled module does not take along: in the copy it does nothing."""

    def __init__(self, method: Callable):
        self.method = method

    def __call__(self, *args: Any) -> Any:
        return self.method(*args)

    def __reduce__(self) -> tuple:
        return _nothing_hook, ()


def _nothing_hook() -> Callable:
    return _nothing


def _nothing(*args: Any) -> None:
    """A hook without effect."""


def claims_by_module(effects: Iterable[Effect], way: Way, settle: Settle | None = None) -> dict[nn.Module, Claim]:
    """The effects as one claim for each module whose forward they concern."""
    groups: dict[nn.Module, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(effect.target.hooked, []).append(effect)
    return {module: Claim(tuple(group), way, settle) for module, group in groups.items()}
