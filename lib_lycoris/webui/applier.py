"""The networks that are on the WebUI's model: one change at a time, on whichever model is loaded when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lycoris.errors import CheckpointError, UnknownNetworkError
from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.patching.session import Session
from lib_lycoris.prompt.request import Request

from . import host

CACHE_BYTES = 1 << 30
"""Networks kept in memory beyond those in use, in bytes; some hundred MB is a usual one."""


@dataclass(frozen=True)
class _OnModel:
    model: Any
    identity: tuple[int, ...]
    generation: Generation


class Applier:
    """Puts requests on the model that is loaded and takes them off; safe to be called from several threads."""

    def __init__(self) -> None:
        self.catalogue = Catalogue(host.network_folders())
        self.cache = NetworkCache(CACHE_BYTES)
        self._lock = threading.Lock()
        self._on: _OnModel | None = None
        self._requests: tuple[Request, ...] = ()
        self._turn = 0

    @property
    def turn(self) -> int:
        """Counts the changes; two equal values have the same networks on."""
        return self._turn

    def apply(self, requests: Sequence[Request]) -> list[str]:
        """The problems in words, after these requests and no others are on the model; an empty sequence takes everything off."""
        with self._lock:
            self._turn += 1
            self._requests = tuple(requests)
            return self._put_on(self._requests)

    def restore(self, turn: int | None = None) -> None:
        """Takes everything off; with `turn` only if nothing changed since then."""
        with self._lock:
            if turn in (None, self._turn):
                self._turn += 1
                self._requests = ()
                self._take_off()

    def leave_model(self) -> None:
        """Takes everything off and lets go of the model until the next change or `follow`; another model, or work of the host's own, is coming."""
        with self._lock:
            self._take_off()
            self._on = None

    def follow(self) -> None:
        """Puts the requests of the picture in work on the model that runs now, where that is not the one they were put on (a refiner)."""
        if self._requests and (self._on is None or self._on.model is not host.loaded_model()):
            with self._lock:
                self._put_on(self._requests)

    def _put_on(self, requests: tuple[Request, ...]) -> list[str]:
        if not requests:
            self._take_off()
            return []
        try:
            on = self._on_current_model()
            if on is None:
                return ["lyco: no checkpoint is loaded, so no network can be put on: choose one"]
            problems = on.generation.apply(list(requests))
        except CheckpointError as error:
            self._take_off()
            return [f"lyco: {error}"]
        except BaseException:
            self._take_off()
            raise
        unreachable = host.unreachable_unet()
        return [*problems, f"lyco: {unreachable}"] if unreachable else problems

    def _on_current_model(self) -> _OnModel | None:
        model = host.loaded_model()
        if model is None:
            self._take_off()
            self._on = None
            return None
        trees = host.trees_of(model)
        identity = trees.identity()
        if self._on is None or self._on.model is not model or self._on.identity != identity:
            self._take_off()
            session = Session(trees.unet, trees.text_encoders, settle=host.make_settle())
            self._on = _OnModel(model, identity, Generation(self.catalogue, self.cache, session))
        return self._on

    def _take_off(self) -> None:
        if self._on is not None:
            self._on.generation.restore()

    def list_networks(self) -> list[dict[str, Any]]:
        """For each network on disk its name, its tag, its file and its size in bytes."""
        self.catalogue.scan()
        found = []
        for name in self.catalogue.names():
            try:
                path = self.catalogue.find(name)
                found.append({"name": name, "tag": f"<lyco:{name}:1>", "file": str(path), "bytes": path.stat().st_size})
            except (UnknownNetworkError, OSError):  # deleted between the two looks
                continue
        return found

    def files(self, requests: Sequence[Request]) -> dict[str, Path]:
        """The file of each requested name that has one."""
        found = {}
        for request in requests:
            try:
                found[request.name] = self.catalogue.find(request.name)
            except UnknownNetworkError:
                continue
        return found
