"""Networks on a model, and off again without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network

from .hooks import Claim, ModulePatch, Settle, claims_by_module
from .plan import Effect, Plan, make_plan
from .targets import Target, find_targets


class Session:
    """What is on a model just now. Other sessions on the same model add to it and may end in any order.

    Use as a context manager to restore at the end. A model that was switched needs a new session.
    """

    def __init__(self, unet: nn.Module | None, text_encoders: Sequence[nn.Module] = (), settle: Settle | None = None, beside: bool = False):
        """A session with nothing on.

        Args:
            unet: a UNet in LDM's or diffusers' naming, or a module that holds it.
            text_encoders: te1, te2.
            settle: settle(module) → token, called before a module's weight is read: a host lets its own networks be merged there; another token than
                before means another merge.
            beside: adds every delta to the layer's output instead of its weight.
        """
        self.targets = find_targets(unet, text_encoders)
        self.plan = Plan()
        self._settle = settle
        self._way = "beside" if beside else "merged"
        self._patches: dict[nn.Module, ModulePatch] = {}

    def apply(self, networks: Iterable[tuple[Network, float | tuple[float, float]]]) -> list[str]:
        """Puts these networks on in place of what was on; gives the names of the layers that had no home (why: `plan.leftovers`).

        Strength is a number, or (text encoder, unet). Cheap when nothing changed; weights are merged when a layer next runs.

        Raises:
            ConfigError: a strength is not a finite number; what was on stays.
        """
        self.plan = make_plan(networks, self.targets)
        claims = claims_by_module(self.plan.effects, self._way, self._settle)
        for module in [module for module in self._patches if module not in claims]:
            self._release(module)
        for module, claim in claims.items():
            self._claim(module, claim)
        return [leftover.name for leftover in self.plan.leftovers]

    def restore(self) -> None:
        """Takes everything off: no hook, no copy is left, and every module holds its own tensors."""
        self.apply([])

    def _claim(self, module: nn.Module, claim: Claim) -> None:
        if module not in self._patches:
            self._patches[module] = ModulePatch.of(module)
        self._patches[module].claim(self, claim)

    def _release(self, module: nn.Module) -> None:
        self._patches[module].release(self)
        del self._patches[module]

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def patch(unet: nn.Module | None, text_encoders: Sequence[nn.Module] = (), settle: Settle | None = None) -> Session:
    """A session for a UNet and its text encoders; see Session."""
    return Session(unet, text_encoders, settle)


class Attachment:
    """Layers in training on a model; `remove` takes them off."""

    def __init__(self, claims: Mapping[nn.Module, Claim]):
        self._patches: dict[nn.Module, ModulePatch] = {}
        try:
            for module, claim in claims.items():
                self._patches[module] = ModulePatch.of(module)
                self._patches[module].claim(self, claim)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Takes the layers off; a second time does nothing."""
        for module in list(self._patches):
            self._patches.pop(module).release(self)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def attach(targets: Mapping[tuple[str, str], Target], layers: Mapping[tuple[str, str], Layer], strength: float = 1.0) -> Attachment:
    """Layers put beside their targets for training, as a handle with `remove`; gradients flow to the layers' own parameters.

    Args:
        targets: from find_targets.
        layers: by the target's key; none becomes a part of the model's module tree.
        strength: of all of them.

    Raises:
        ConfigError: a layer's key is no target, or its shape is another.
    """
    effects = []
    for key, layer in layers.items():
        target = targets.get(key)
        if target is None:
            raise ConfigError(f"the model has no layer {key[1]!r} in {key[0]!r} to train; take names from find_targets")
        if not layer.fits(target.shape):
            raise ConfigError(f"the layer for {key[1]!r} does not fit its weight of shape {list(target.shape)}; make it from the target's shape")
        effects.append(Effect(target, layer, strength))
    return Attachment(claims_by_module(effects, "trained"))
