"""The mechanism: merged parameters go into a module tree for the time of one module's forward, and the tree's own come back after it."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .anchor import Hook, find_owner
from .calls import running_calls
from .slot import Slot, renew

LOCK = threading.RLock()
"""Held while something changes what is on any module, never during a forward."""


class Site(Protocol):
    """A module whose slots take part in a swap."""

    slots: Sequence[Slot]
    settles: Sequence[Any]
    """What `settle` calls; if one has an attribute `token`, then as long as token() gives the same, it has nothing to do on a module unchanged by others."""

    passing: bool
    """Whether copies are not worth keeping from one forward to the next."""

    def settle(self) -> None:
        """Lets hosts finish their changes to the module; copies that no longer hold are stale then."""

    def arrange(self) -> None:
        """Puts the hooks on, or takes them off, that the module's claims need now."""


class Swap:
    """The copies of some sites, in their places for the time of one forward of `module`.

    `module` is the one site itself, or the root of the tree that holds them all. A root does it in one go, for less than the hooks of each layer would
    cost. Only where gradients are wanted it leaves it to the layers: to save memory, hosts run parts of the tree again outside of the root's forward.
    """

    def __init__(self, module: nn.Module, tree: bool):
        self.tree = tree
        self.scattered = False
        self._module = weakref.ref(module)
        self._sites: dict[Site, None] = {}
        self._spare: list[Tensor] = []
        self._entries: list[tuple[dict, str, Tensor]] | None = None
        self._settles: list | None = None
        self._tokens: tuple | None = None
        self._held: list[tuple[dict, str, Tensor | None, Tensor]] = []
        self._inside = 0
        # Last before the forward, first after it: what other hooks see is the host's own, and patches by another copy of this library nest.
        self._handles = [module.register_forward_pre_hook(Hook(self._enter)),
                         module.register_forward_hook(Hook(self._leave), prepend=True, always_call=True)]

    @staticmethod
    def of_tree(root: nn.Module) -> Swap:
        """The root's swap, made if it has none."""
        found = find_owner(root._forward_pre_hooks, Swap)
        return Swap(root, tree=True) if found is None else found

    def join(self, site: Site) -> None:
        """Takes a site in, or notes that its slots changed."""
        self._sites[site] = None
        self._entries = self._settles = self._tokens = None

    def leave(self, site: Site, slots: Iterable[Slot]) -> None:
        """Lets a site go, and with the last one the module."""
        if site not in self._sites:
            return
        del self._sites[site]
        self._entries = self._settles = self._tokens = None
        if self._sites:
            self.keep(slots)
        else:
            self._put_back()  # even within a forward: without the hooks nobody else would
            self._spare.clear()
            for handle in self._handles:
                handle.remove()

    def keep(self, slots: Iterable[Slot]) -> None:
        """Keeps the memory of these slots for the next merge."""
        self._entries = None
        if not self._held:
            self._spare += [piece for slot in slots if (piece := slot.let_go()) is not None]

    def recover(self) -> None:
        """Puts the tree's own tensors back when an interrupt left ours in."""
        if self._held:
            module = self._module()
            if module is None or running_calls(module) == 0:
                self._put_back()

    def refresh(self) -> None:
        """Makes those copies anew that are of something else than what the modules hold; nothing while a forward runs."""
        if self._held:
            return
        self._settle()
        stale = [slot for site in self._sites for slot in site.slots if not slot.fresh()]
        if stale:
            for slot in stale:
                slot.site.settle()
            spare, self._spare = self._spare, []
            renew(stale, spare)
            self._entries = None
            for site in dict.fromkeys(slot.site for slot in stale):
                site.arrange()
        self._spare.clear()

    def _settle(self) -> None:
        """Settles all sites where a host's networks changed since, or where that can't be told."""
        if self._settles is None:
            self._settles = list(dict.fromkeys(settle for site in self._sites for settle in site.settles))
        known = all(hasattr(settle, "token") for settle in self._settles)
        tokens = tuple([settle.token() for settle in self._settles]) if known else None
        if tokens is None or tokens != self._tokens:
            for site in self._sites:
                site.settle()
            self._tokens = tokens

    def _enter(self, module: nn.Module, args: tuple) -> None:
        with LOCK:
            if self._inside or self._held:
                # a call within a call or in another thread; or one that an interrupt ended, and nobody told us
                self._inside = min(self._inside, running_calls(module) - 1)
                if self._inside <= 0:
                    self._put_back()
            if not self._inside:
                if self.tree and self.scattered != torch.is_grad_enabled():
                    self._scatter(torch.is_grad_enabled())
                if not self.scattered:
                    self.refresh()
                    self._put_in()
            self._inside += 1

    def _leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        with LOCK:
            self._inside -= 1
            if self._inside > 0:
                self._inside = min(self._inside, running_calls(module) - 1)
            if self._inside <= 0:
                self._put_back()

    def _put_in(self) -> None:
        if self._entries is None:
            self._entries = [entry for site in self._sites for slot in site.slots for entry in slot.entries]
        if not self.tree and torch.is_grad_enabled():  # a graph may hold the copies for longer than the forward
            for site in self._sites:
                for slot in site.slots:
                    slot.lent = True
        self._held = [(parameters, name, parameters.get(name), ours) for parameters, name, ours in self._entries]
        for parameters, name, ours in self._entries:
            parameters[name] = ours

    def _put_back(self) -> None:
        for parameters, name, original, ours in self._held:
            if parameters.get(name) is ours:
                parameters[name] = original
        self._held = []
        self._inside = 0
        if not self.tree:
            for site in self._sites:
                for slot in site.slots:
                    if slot.traced or site.passing:  # it holds a graph, or memory that the host wants for its next layer
                        slot.let_go()
                        self._entries = None

    def _scatter(self, scattered: bool) -> None:
        self.scattered = scattered
        for site in list(self._sites):
            site.arrange()
