"""Networks on a model, and off again without a trace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.utils.hooks import RemovableHandle

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.network import Network

from . import naming
from .anchor import Hook
from .hooks import Claim, ModulePatch, Settle, claims_by_module
from .plan import Effect, Plan, make_plan
from .rows import Rows, Telling
from .slot import Base
from .swap import LOCK
from .targets import Target, find_targets
from .weighting import Weighting


class Session:
    """What is on a model just now. Other sessions on the same model add to it and may end in any order.

    Use as a context manager to restore at the end. A model that was switched needs a new session. Gradients flow through what is on to the layer's input; the
    weights that something was merged into get none themselves.
    """

    def __init__(self, unet: nn.Module | None, text_encoders: Sequence[nn.Module] = (), settle: Settle | None = None, beside: bool = False,
                 base: Base | None = None, per_layer: bool = False):
        """A session with nothing on.

        Args:
            unet: a UNet in LDM's or diffusers' naming, or a module that holds it.
            text_encoders: te1, te2; None for one that the model lacks.
            settle: settle(module) → token, called before a module's weight is read: a host lets its own networks be merged there; another token than
                before means another merge. If it has an attribute `token`, then as long as token() gives the same value, it has nothing to do on a
                module that nobody else changed, and is not called.
            beside: adds every delta to the layer's output instead of its weight.
            base: base(module) → the module's tensors by name as they are without the host's networks, or None where they are its own. Networks whose ΔW
                depends on the weight are made for these. An nn.MultiheadAttention's are "in_proj_weight", "out_proj.weight", ….
            per_layer: merges each layer of the UNet at its own forward and lets go of the copy after it, instead of all at the UNet's forward: for hosts
                that move single layers to the device and back, and for callers who run parts of the UNet alone. Slower.
        """
        self.targets = find_targets(unet, text_encoders)
        self.plan = Plan()
        self._unet = None if unet is None else naming.unet_root(unet)
        self._root = None if per_layer or self._unet is None or not (naming.is_ldm(self._unet) or naming.is_diffusers(self._unet)) else self._unet
        self._options = {"settle": settle, "base": base, "passing": per_layer}
        self._way = "beside" if beside else "merged"
        self._rows = Rows()
        self._counter: RemovableHandle | None = None
        self._cuts: dict[tuple[int, int], tuple[Layer, Layer]] = {}
        self._patches: dict[nn.Module, ModulePatch] = {}

    @property
    def problems(self) -> list[str]:
        """What went wrong in forwards since `apply`, in words: strengths of rows that could not be told apart."""
        return list(self._rows.problems)

    def apply(self, networks: Iterable[tuple[Network, float | tuple[float, float] | Weighting]]) -> list[str]:
        """Puts these networks on in place of what was on; gives the names of the layers that had no home (why: `plan.leftovers`).

        Strength is a number, (text encoder, unet) or a Weighting. Cheap when nothing changed; weights are merged when they are next run, or by `merge`.

        Raises:
            ConfigError: a strength is not a finite number; what was on stays.
        """
        networks = list(networks)
        used: dict[tuple[int, int], tuple[Layer, Layer]] = {}
        self.plan = make_plan(networks, self.targets, lambda layer, ranks: self._cut(used, layer, ranks))
        self._cuts = used
        self._rows.problems.clear()
        claims = claims_by_module(self.plan.effects, self._way, self._root, rows=self._rows, **self._options)
        for module, claim in claims.items():
            self._claim(module, claim)
        gone = [module for module in self._patches if module not in claims]
        ModulePatch.release_all([self._patches.pop(module) for module in gone], self)  # after the claims, which take over their memory
        self._count_rows(any(effect.dial is not None and effect.target.component == "unet" for effect in self.plan.effects))
        return [leftover.name for leftover in self.plan.leftovers]

    def merge(self) -> None:
        """Merges now what else would be merged at the next forward; nothing while a forward runs."""
        with LOCK:
            for swap in dict.fromkeys(swap for patch in self._patches.values() for swap in patch.swaps):
                swap.refresh()

    def begin_step(self, telling: Telling | None = None) -> None:
        """The next UNet call takes the dials' rows from the first on. Without it, calls go through the rows over and over.

        Args:
            telling: tells which of the step's rows a UNet call holds, given its first tensor; for those who cut a step otherwise than row after row.
        """
        self._rows.begin_step(telling)

    def restore(self) -> None:
        """Takes everything off: no hook, no copy is left, and every module holds its own tensors."""
        self.apply([])

    def _cut(self, used: dict, layer: Layer, ranks: int) -> Layer:
        """The layer of the first ranks, the same one as long as it is on, so that nothing is merged again without need."""
        key = (id(layer), ranks)
        if key not in used:
            used[key] = self._cuts.get(key) or (layer, layer.truncated(ranks))
        return used[key][1]

    def _count_rows(self, wanted: bool) -> None:
        if wanted and self._counter is None:
            self._counter = self._unet.register_forward_pre_hook(Hook(self._rows.begin_call), with_kwargs=True)
        elif not wanted and self._counter is not None:
            self._counter.remove()
            self._counter = None

    def _claim(self, module: nn.Module, claim: Claim) -> None:
        if module not in self._patches:
            self._patches[module] = ModulePatch.of(module)
        self._patches[module].claim(self, claim)

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
