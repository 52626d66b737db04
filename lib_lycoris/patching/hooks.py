"""All that is wanted of one module, and the hooks that it needs for that."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from .anchor import Hook, find_owner
from .beside import Beside
from .plan import Effect
from .rows import Rows
from .slot import Base, Slot, Way, Wish
from .swap import LOCK, Swap

Settle = Callable[[nn.Module], Hashable]


@dataclass(frozen=True)
class Claim:
    """What one owner wants of a module.

    Attributes:
        effects: the layers, with targets whose `hooked` is the module.
        way: "merged", which falls back to "beside" for a weight that can't take a sum (fp8, quantised, offloaded) and for a UNet's layers under a dial;
            "beside"; or "trained": beside, with the layer's own parameters in the graph.
        settle: called with the module before its weight is read; lets others finish their changes to it, and returns a token that differs when they
            made any. If it has an attribute `token`, then as long as token() gives the same, it has nothing to do on a module that nobody else changed.
        base: gives the module's tensors by name as they are without a host's networks, or None where they are its own.
        root: the module whose forward runs all others that read the merged weights; None: only the module's own forward is sure to.
        passing: the copies are let go after each forward of the module.
        rows: tells which rows of a dial a call is about; None: dials are one number.
    """

    effects: tuple[Effect, ...]
    way: Way = "merged"
    settle: Settle | None = None
    base: Base | None = None
    root: nn.Module | None = None
    passing: bool = False
    rows: Rows | None = None


class ModulePatch:
    """All claims on one module; between forwards the module holds its own tensors.

    It lives in the module's hook dictionaries and goes with the last claim.
    """

    def __init__(self, module: nn.Module):
        self.slots: list[Slot] = []
        self._module = weakref.ref(module)
        self._claims: dict[Hashable, Claim] = {}
        self.settles: tuple[Settle, ...] = ()
        self._settled: tuple[Hashable, ...] = ()
        self._own: Swap | None = None
        self._tree: Swap | None = None
        self._beside: tuple[tuple, Any] | None = None
        # among hooks that no forward looks at: a layer that is merged by its root's forward costs nothing itself
        self._anchor = module.register_load_state_dict_post_hook(Hook(self._loaded))

    @staticmethod
    def of(module: nn.Module) -> ModulePatch:
        """The module's patch, made if it has none."""
        found = find_owner(module._load_state_dict_post_hooks, ModulePatch)
        return ModulePatch(module) if found is None else found

    def claim(self, owner: Hashable, claim: Claim) -> None:
        """Sets what this owner wants; costs nothing when it wants that already."""
        with LOCK:
            self.recover()
            if self._claims.get(owner) != claim:
                self._claims[owner] = claim
                self._rebuild()

    def release(self, owner: Hashable) -> None:
        """Takes back what this owner wants; after the last owner nothing of this is left on the module."""
        with LOCK:
            self.recover()
            self._drop(owner)

    @staticmethod
    def release_all(patches: Iterable[ModulePatch], owner: Hashable) -> None:
        """Does `release` on each of these."""
        with LOCK:
            patches = list(patches)
            for swap in dict.fromkeys(swap for patch in patches for swap in patch.swaps):
                swap.recover()
            for patch in patches:
                patch._drop(owner)

    def recover(self) -> None:
        """Puts the module's own tensors back when an interrupt left ours in."""
        for swap in self.swaps:
            swap.recover()

    @property
    def passing(self) -> bool:
        """See Site."""
        return any(claim.passing for claim in self._claims.values())

    @property
    def swaps(self) -> list[Swap]:
        """Those that put this module's copies in."""
        return [swap for swap in (self._own, self._tree) if swap is not None]

    def settle(self) -> None:
        """See Site."""
        module = self._module()
        settled = tuple([settle(module) for settle in self.settles])
        if settled != self._settled:
            self._settled = settled
            for slot in self.slots:
                slot.expire()

    def arrange(self) -> None:
        """See Site."""
        root = self._root()
        tree = None if root is None else Swap.of_tree(root)
        if self._tree is not None and self._tree is not tree:
            self._tree.leave(self, self.slots)
        if tree is not None and (self._tree is not tree):
            tree.join(self)
        self._tree = tree
        own = self._merges and (tree is None or tree.scattered)
        if own and self._own is None:
            self._own = Swap(self._module(), tree=False)
            self._own.join(self)
        elif not own and self._own is not None:
            swap, self._own = self._own, None
            swap.leave(self, ())
        self._arrange_beside()

    def _root(self) -> nn.Module | None:
        """The one root that all who want something merged agree on."""
        if not self._merges or any(slot.traced or slot.followed for slot in self.slots):
            return None
        roots = {claim.root for claim in self._claims.values() if claim.way == "merged"}
        return roots.pop() if len(roots) == 1 else None

    @property
    def _merges(self) -> bool:
        return any(slot.merges for slot in self.slots)

    def _arrange_beside(self) -> None:
        wishes = tuple(wish for slot in self.slots for wish in slot.beside)
        if self._beside is not None and self._beside[0] == wishes:
            return
        if self._beside is not None:
            self._beside[1].remove()
            self._beside = None
        if wishes:
            beside = Beside(self.slots)
            handle = self._module().register_forward_hook(Hook(beside.add), prepend=True, with_kwargs=True)
            self._beside = (wishes, handle)

    def _rebuild(self) -> None:
        known = {slot.place: slot for slot in self.slots}
        wanted: dict[tuple, list[Wish]] = {}
        for claim in self._claims.values():
            for effect in claim.effects:
                target = effect.target
                place = (target.module, target.weight, target.bias)
                wanted.setdefault(place, []).append(Wish(effect, claim.way, claim.rows, claim.base))
        gone = [slot for place, slot in known.items() if place not in wanted]
        module = self._module()
        self.slots = [known.get(place) or Slot(self, module, *place) for place in wanted]
        for slot, wishes in zip(self.slots, wanted.values(), strict=True):
            slot.want(wishes)
        self.settles = tuple(dict.fromkeys(claim.settle for claim in self._claims.values() if claim.settle is not None))
        for swap in self.swaps:
            swap.keep(gone)
            swap.join(self)
        self.arrange()

    def _drop(self, owner: Hashable) -> None:
        """Forgets what this owner wants; takes all off after the last one."""
        if self._claims.pop(owner, None) is not None and self._claims:
            self._rebuild()
        if not self._claims:
            self._clear()

    def _clear(self) -> None:
        """Takes off all hooks."""
        slots, self.slots, self.settles = self.slots, [], ()
        if self._tree is not None:
            self._tree.leave(self, slots)
        if self._own is not None:
            self._own.leave(self, ())
        if self._beside is not None:
            self._beside[1].remove()
        self._tree = self._own = self._beside = None
        self._anchor.remove()

    def _loaded(self, *args: Any) -> None:
        """A state was loaded into the module itself."""
        for slot in self.slots:
            slot.expire()


def claims_by_module(effects: Iterable[Effect], way: Way, root: nn.Module | None = None, passing: bool = False, **options: Any) -> dict[nn.Module, Claim]:
    """The effects as one claim for each module whose forward they concern; `root` and `passing` are for those of the UNet, `options` the other fields."""
    groups: dict[nn.Module, list[Effect]] = {}
    for effect in effects:
        groups.setdefault(effect.target.hooked, []).append(effect)
    claims = {}
    for module, group in groups.items():
        in_unet = group[0].target.component == "unet"
        claims[module] = Claim(tuple(group), way, root=root if in_unet else None, passing=passing and in_unet, **options)
    return claims
