"""The networks that are on the WebUI's model: one change at a time, on whichever model is loaded when it is asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib_lycoris.errors import CheckpointError, UnknownNetworkError
from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.patching.rows import Telling
from lib_lycoris.patching.session import Session
from lib_lycoris.prompt.blocks import PRESETS
from lib_lycoris.prompt.request import Request

from . import host
from .embeddings import Embeddings
from .tags import Batch

CACHE_BYTES = 1 << 30
"""Networks kept in memory beyond those in use, in bytes; some hundred MB is a usual one."""


@dataclass(frozen=True)
class _OnModel:
    model: Any
    identity: tuple[int, ...]
    generation: Generation


class Applier:
    """Puts requests on the model that is loaded and takes them off; safe to be called from several threads.

    Attributes:
        presets: names for block weights in a tag, as Generation's.
        embeddings: the host's embeddings that are ours; those packed with networks come and go with them.
    """

    def __init__(self) -> None:
        self.catalogue = Catalogue(host.network_folders())
        self.cache = NetworkCache(CACHE_BYTES)
        self.presets = PRESETS
        self.embeddings = Embeddings()
        self._lock = threading.RLock()
        self._on: _OnModel | None = None
        self._batch = Batch()
        self._applied: Batch | None = None
        self._owner: Any = None

    @property
    def idle(self) -> bool:
        """Whether nothing is asked for."""
        return not self._batch

    def apply(self, batch: Batch, owner: Any = None) -> list[str]:
        """The problems in words, after what this batch asks for and nothing else is on the model; an empty one takes everything off."""
        with self._lock:
            self._batch, self._owner = batch, owner
            return self._put_on()

    def prepare(self, batch: Batch, owner: Any) -> list[str]:
        """The problems, after this batch is on the model that is loaded now: none, and nothing is done, where it was on it for this owner."""
        with self._lock:
            return [] if self.has(batch) and self._owner is owner else self.apply(batch, owner)

    def has(self, batch: Batch) -> bool:
        """Whether this batch is on the model that is loaded now."""
        return self._applied == batch and self._on is not None and self._on.model is host.loaded_model()

    def restore(self, owner: Any = None) -> None:
        """Takes everything off; with `owner` only if what is on was put on for it."""
        with self._lock:
            if owner is None or owner is self._owner:
                self._batch, self._owner = Batch(), None
                self._take_off()

    def leave_model(self) -> None:
        """Takes everything off and lets go of the model until the next `apply` or `prepare`; another model, or work of the host's own, is coming."""
        with self._lock:
            self._take_off()
            self._on = None

    def begin_step(self, step: int, steps: int, rows: Callable[[], Sequence[tuple[int, bool]]],
                   telling: Callable[[int], Telling | None] = lambda count: None) -> list[str]:
        """Turns strengths that differ between rows or steps to their values for the denoiser's next call; gives the problems of the calls before.

        Args:
            step: the sampler's, from 0.
            steps: how many there are.
            rows: gives for each row of the denoiser's batch its picture and whether it is a negative one; asked only if it matters.
            telling: gives for the number of rows who tells which of them a UNet call holds; None: they are counted.
        """
        with self._lock:
            if self._applied is None or self._on is None or not self._on.generation.dynamic:
                return []
            found = rows()
            self._on.generation.begin_step(step, steps, found, telling(len(found)))
            return [f"lyco: {problem}" for problem in self._on.generation.session.problems]

    def text_key(self, picture: int, negative: bool, step: int, steps: int) -> Hashable:
        """Equal values mean the same networks on the text encoders; only while `has` is true, as the two below."""
        return self._on.generation.text_key(picture, negative, step, steps)

    def text_steps(self, steps: int) -> list[int]:
        """The steps at which some networks on the text encoders change."""
        return self._on.generation.text_steps(steps)

    def use_text(self, picture: int, negative: bool, step: int, steps: int) -> None:
        """Puts on the text encoders what counts for one prompt at one step."""
        with self._lock:
            self._on.generation.use_text(picture, negative, step, steps)

    def _put_on(self) -> list[str]:
        batch = self._batch
        if not batch:
            self._take_off()
            return []
        try:
            on = self._on_current_model()
            if on is None:
                return ["lyco: no checkpoint is loaded, so no network can be put on: choose one"]
            problems = on.generation.apply_pictures([list(each) for each in batch.positive], [list(each) for each in batch.negative],
                                                    batch.hires, batch.refiner)
            self._applied = batch
            self.embeddings.put_on(on.generation.embeddings)
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
            session = Session(trees.unet, trees.text_encoders, host.make_settle(), base=host.make_base(), per_layer=host.moves_layers(model))
            self._on = _OnModel(model, identity, Generation(self.catalogue, self.cache, session, self.presets))
        return self._on

    def _take_off(self) -> None:
        self._applied = None
        self.embeddings.take_off()
        if self._on is not None:
            self._on.generation.restore()

    def files(self, requests: Sequence[Request]) -> dict[str, Path]:
        """The file of each requested name that has one."""
        found = {}
        for request in requests:
            try:
                found[request.name] = self.catalogue.find(request.name)
            except UnknownNetworkError:
                continue
        return found
