"""One weight of a module and its bias: what is wanted of them, the merged copies, and whether these still hold."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .buffers import Buffers
from .merge import Job, merge_all, merge_bias, merge_in_graph
from .plan import Effect
from .rows import Rows
from .traced import TracedWeight

Way = Literal["merged", "beside", "trained"]
Base = Callable[[nn.Module], "Mapping[str, Tensor] | None"]

_MERGEABLE = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Wish(NamedTuple):
    """An effect, and how its owner wants it put on: `rows` tells which rows a dial is asked for, `base` gives the tensors without a host's networks."""

    effect: Effect
    way: Way
    rows: Rows | None = None
    base: Base | None = None


class _Record(NamedTuple):
    """A parameter as it was when its copy was made, and the copy, if there is one."""

    name: str
    source: Callable[[], Tensor | None]
    version: int | None
    pointer: int
    dtype: torch.dtype | None
    ours: nn.Parameter | Tensor | None
    our_version: int


class Slot:
    """A weight of the module and its bias."""

    def __init__(self, site: Any, hooked: nn.Module, module: nn.Module, weight: str, bias: str | None):
        self.site = site
        self.place = (module, weight, bias)
        self.wishes: tuple[Wish, ...] = ()
        self.beside: tuple[Wish, ...] = ()
        self.merges = False
        """Whether something is to be merged, if the weight can take it."""
        self.traced = False
        self.followed = False
        """Whether what is put in lets each forward compute what is trained; it holds no graph itself."""
        self._fused = False
        self._effects: list[Effect] = []
        self.lent = False
        self._hooked = weakref.ref(hooked)
        self._parameters = module._parameters
        self._prefix = "" if hooked is module else "out_proj."
        self._names = (weight, bias)
        self._records: tuple[_Record, ...] = ()
        self._stale = True
        self._dials: tuple = ()
        self._piece: Tensor | None = None
        self._job: Job | None = None

    def want(self, wishes: Iterable[Wish]) -> None:
        """Sets what is wanted; copies of something else are stale from now on."""
        wishes = tuple(wishes)
        if wishes == self.wishes:
            return
        self.wishes = wishes
        self._fused = bool(wishes) and wishes[0].effect.target.fused
        # A fused layer under training has no output of its own to add to, so its merged weight is part of the graph, and new in every forward.
        self.traced = self._fused and any(wish.way == "trained" for wish in wishes)
        self._stale = True
        self._split(True)
        self.merges = bool(self._effects)

    @property
    def entries(self) -> list[tuple[dict, str, Tensor]]:
        """What to put in: (parameters, name, ours)."""
        return [(self._parameters, record.name, record.ours) for record in self._records if record.ours is not None]

    def fresh(self) -> bool:
        """Whether the copies are of what the module holds; `.data` written to in place is the one change that this can't tell."""
        if self._stale or self.traced:
            return False
        parameters = self._parameters
        for name, source, version, pointer, dtype, ours, our_version in self._records:
            now = parameters.get(name)
            if now is not source():
                return False
            if now is not None and (now.data_ptr() != pointer or now.dtype is not dtype or (version is not None and now._version != version)):
                return False
            if ours is not None and ours._version != our_version:
                return False
        return not self._dials or all(dial.turns == turns for dial, turns in self._dials)

    def expire(self) -> None:
        """The copies are of something that is no more."""
        self._stale = True

    def prepare(self) -> Job | None:
        """The merge that makes the copies fresh, for merge_all; None where there is nothing to merge."""
        weight = self._parameters.get(self._names[0])
        self._split(weight is not None and (self._fused or _mergeable(weight)))
        effects = self._effects
        self._dials = tuple((effect.dial, effect.dial.turns) for effect in effects if effect.dial is not None)
        self._job = None
        if effects and not self.traced and not self.followed:
            self._job = Job(weight.detach(), self.base(effects, self._names[0]).detach(), effects)
        return self._job

    def finish(self) -> None:
        """Takes over what merge_all made."""
        effects = self._effects
        weight, bias = (self._parameters.get(name) for name in self._names)
        made: tuple[Tensor | None, Tensor | None] = (None, None)
        if effects and self.traced:
            made = merge_in_graph(weight, effects), merge_bias(bias, bias, weight, effects)
        elif effects and self.followed:
            made = TracedWeight.of(weight, effects), None
        elif effects:
            own = None if self._names[1] is None else merge_bias(bias, self.base(effects, self._names[1]), weight, effects)
            made = _frozen(self._job.out), _frozen(own)
        self._piece, self._job, self.lent = (self._job.piece if self._job else None), None, False
        named = [(name, now, ours) for name, now, ours in zip(self._names, (weight, bias), made, strict=True) if name is not None]
        self._records = tuple(_record(name, now, ours) for name, now, ours in named)
        self._stale = False

    def let_go(self) -> Tensor | None:
        """Drops the copies; gives their memory where nobody else can hold it."""
        piece = None if self.lent else self._piece
        self._piece, self._records, self._stale = None, (), True
        return piece

    def own(self, name: str) -> Tensor | None:
        """The module's own parameter, also while ours is in its place."""
        now = self._parameters.get(name)
        return next((record.source() for record in self._records if record.name == name and record.ours is not None and record.ours is now), now)

    def base(self, effects: Iterable[Effect], name: str) -> Tensor | None:
        """The parameter as it is without any network: the base that effects on it are made for."""
        own = self.own(name)
        bases = [wish.base for wish in self.wishes if wish.base is not None]
        if not bases or not any(getattr(effect.layer, "weight_dependent", False) for effect in effects):
            return own
        hooked = self._hooked()
        known = next(filter(None, (base(hooked) for base in bases)), {})
        return known.get(f"{self._prefix}{name}", own)

    def _split(self, mergeable: bool) -> None:
        self._effects = [wish.effect for wish in self.wishes if mergeable and self._into_weight(wish)]
        self.beside = tuple(wish for wish in self.wishes if not (mergeable and self._into_weight(wish)))
        self.followed = not self._fused and any(wish.way == "trained" for wish in self.wishes if wish not in self.beside)

    def _into_weight(self, wish: Wish) -> bool:
        if wish.way == "trained" and wish.effect.layer.way() != "beside":
            return True
        return self._fused or (wish.way == "merged" and (wish.effect.dial is None or wish.effect.target.component != "unet"))


def renew(slots: Iterable[Slot], spare: Iterable[Tensor] = ()) -> None:
    """Makes the copies of these slots anew, in memory of their old ones and of `spare` where it fits."""
    slots = list(slots)
    jobs = [slot.prepare() for slot in slots]
    pieces = [piece for piece in (*spare, *(slot.let_go() for slot in slots)) if piece is not None]
    merge_all([job for job in jobs if job is not None], Buffers(pieces))
    traced = [slot for slot in slots if slot.traced]
    # not as inference tensors: a later forward may want gradients through them
    with torch.inference_mode(False), torch.no_grad():
        for slot in slots:
            if not slot.traced:
                slot.finish()
    for slot in traced:
        slot.finish()


def _record(name: str, now: Tensor | None, ours: Tensor | None) -> _Record:
    our_version = 0 if ours is None else ours._version
    if now is None:
        return _Record(name, _none, None, 0, None, ours, our_version)
    return _Record(name, weakref.ref(now), None if now.is_inference() else now._version, now.data_ptr(), now.dtype, ours, our_version)


def _none() -> None:
    return None


def _mergeable(weight: Tensor) -> bool:
    return weight.dtype in _MERGEABLE and type(weight) in (nn.Parameter, Tensor) and weight.device.type != "meta"


def _frozen(tensor: Tensor | None) -> nn.Parameter | None:
    return None if tensor is None else nn.Parameter(tensor, requires_grad=False)
