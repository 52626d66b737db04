"""One of the host's pictures in work: what its batch asks for, and what of the host's is ours for its time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from . import host
from .applier import Applier
from .conds import Conds
from .problems import tell
from .tags import TAG, Batch, Passes, cut_negatives, read_passes
from .tiles import region_tags


class Work:
    """Kept on the host's `p` as `lyco_work`; ends with its `close`."""

    def __init__(self, p: Any, applier: Applier):
        self.applier = applier
        self.passes = Passes()
        self._owner = weakref.ref(p)
        self._prompts: Any = None
        self._checkpoint: Any = None

    @staticmethod
    def of(p: Any, applier: Applier) -> Work:
        """The one of this `p`, made if it has none (a copied `p` brings its original's along)."""
        work = getattr(p, "lyco_work", None)
        if work is None or work._owner() is not p or work.applier is not applier:
            for name in _STAND_INS:
                if isinstance(vars(p).get(name), _STAND_INS[name]):
                    delattr(p, name)
            work = p.lyco_work = Work(p, applier)
        return work

    def begin(self, p: Any, params_list: Sequence[Any]) -> Batch:
        """What the pass that `p` begins asks for, put on; a batch is read once, as its negative prompts lose their tags by it."""
        self._checkpoint = host.loaded_checkpoint()
        if self._prompts is not p.prompts:
            self._prompts = p.prompts
            self.passes = read_passes(p, params_list)
            cut_negatives(p)
        elif any(params in params_list for params in region_tags(p, TAG)):
            tell(p, ["lyco: tags in the prompts of Tiled Diffusion's regions were left out: put them into the picture's own prompt, they act on regions too"])
        if self.passes:
            self._stand_in(p)
        batch = self.passes.of(getattr(p, "is_hr_pass", False))
        tell(p, [*batch.problems, *self.applier.apply(batch, self)])
        return batch

    @property
    def asks(self) -> bool:
        """Whether the picture in work asks for anything."""
        return bool(self.passes) and self._owner() is not None

    def prepare(self, batch: Batch) -> bool:
        """Whether what this batch asks for is on the model that is loaded now; put on if it was not.

        A checkpoint that came in the middle of a pass is a refiner.
        """
        batch = replace(batch, refiner=host.loaded_checkpoint() != self._checkpoint)
        tell(self._owner(), self.applier.prepare(batch, self))
        return bool(batch) and self.applier.has(batch)

    def follow(self) -> bool:
        """Whether what the pass in work asks for is on the model that runs now."""
        return self.prepare(self.passes.of(getattr(self._owner(), "is_hr_pass", False)))

    def text_steps(self, steps: int) -> list[int]:
        """The steps at which some networks on the text encoders change, from 0 on."""
        return sorted({0, *(step for step in self.applier.text_steps(steps) if 0 < step < steps)})

    def has_one_text(self, batch: Batch, steps: int) -> bool:
        """Whether all prompts of the batch are encoded with the same networks, at every step."""
        keys = {self.applier.text_key(picture, negative, step, steps)
                for picture in range(len(batch.positive)) for negative in (False, True) for step in self.text_steps(steps)}
        return len(keys) == 1

    def _stand_in(self, p: Any) -> None:
        """Gives this one picture our way to encode prompts, and has its `close` take the networks off: after an exception it is all that the host calls."""
        if not hasattr(p, "close"):  # no picture: a bare object of another extension
            return
        for name, make in _STAND_INS.items():
            if not isinstance(vars(p).get(name), make):
                setattr(p, name, make(p, self))


class _Close:
    """A picture's `close` that takes its networks off before."""

    def __init__(self, p: Any, work: Work):
        self.owner = weakref.ref(p)
        self._work = work

    def __call__(self) -> None:
        p = self.owner()
        if p is not None:
            self._work.applier.restore(self._work)
            type(p).close(p)


_STAND_INS = {"get_conds_with_caching": Conds, "close": _Close}
