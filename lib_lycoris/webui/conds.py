"""Encoded prompts where the host's own way of encoding them is not enough: other networks for each picture, for negative prompts, or for some of the steps."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from modules import prompt_parser, sd_samplers_common, shared

from .tags import Batch

if TYPE_CHECKING:
    from .work import Work


class Conds:
    """Stands in for one picture's own `get_conds_with_caching`, in the instance alone; the host's class and its other pictures know nothing of it.

    The host asks it for the conds of the first pass, of the hires pass and, after a refiner was loaded, again: so whatever is on the text encoders
    is right for just these. What the host's key to its cache of conds can't tell apart never gets into that cache.
    """

    def __init__(self, p: Any, work: Work):
        self.owner = weakref.ref(p)
        self._work = work

    def __call__(self, function: Callable, required_prompts: Any, steps: int, caches: list, extra_network_data: dict, hires_steps: int | None = None) -> Any:
        """The conds, as the host's method of this name gives them."""
        p = self.owner()
        hires = hires_steps is not None  # `is_hr_pass` does not tell: conds of the hires pass may be asked for before the first one runs
        batch, cached = self._batch_of(p, hires)

        def ask(prompts: Any, caches: list) -> Any:
            return type(p).get_conds_with_caching(p, function, prompts, steps, caches, extra_network_data, hires_steps)

        if not (self._work.passes and self._work.prepare(batch)):
            return ask(required_prompts, caches)
        self._work.applier.embeddings.renew()
        try:
            text = _Text(self._work, getattr(required_prompts, "is_negative_prompt", False), _steps_run(p, hires))
            pictures = range(len(required_prompts))
            if cached and not any(batch.negative) and self._work.has_one_text(batch, text.steps):
                text.use(0, 0)
                return ask(required_prompts, caches)
            multiplier = max(1, (hires_steps if hires else steps) // max(1, _steps_asked(p, hires)))
            made: dict[Hashable, Any] = {}
            timelines = [_timeline(text, picture, required_prompts, multiplier, made, lambda prompt: ask(prompt, [[None, None]])) for picture in pictures]
            if hasattr(next(iter(made.values())), "batch"):
                return prompt_parser.MulticondLearnedConditioning(shape=(len(timelines),), batch=[_combine(parts) for parts in timelines])
            return [_splice([(start, conds[0]) for start, conds in parts]) for parts in timelines]
        finally:
            self._work.follow()

    def _batch_of(self, p: Any, hires: bool) -> tuple[Batch, bool]:
        """The batch whose networks count, and whether the host's key to its cache stands for it."""
        passes = self._work.passes
        if hires and not p.is_hr_pass and shared.opts.hires_fix_use_firstpass_conds:
            return replace(passes.first, hires=True), passes.first.positive == passes.hires.positive
        return passes.of(hires), True


@dataclass(frozen=True)
class _Text:
    """The networks on the text encoders for positive or for negative prompts, by picture and step."""

    work: Work
    negative: bool
    steps: int

    def changes(self, picture: int) -> list[tuple[int, Hashable]]:
        """(first step, key) of each stretch of steps with the same networks."""
        keys = [(step, self.work.applier.text_key(picture, self.negative, step, self.steps)) for step in self.work.text_steps(self.steps)]
        return [next(stretch) for _, stretch in groupby(keys, key=lambda item: item[1])]

    def use(self, picture: int, step: int) -> None:
        """Puts those of a picture and a step on."""
        self.work.applier.use_text(picture, self.negative, step, self.steps)


def _timeline(text: _Text, picture: int, prompts: Any, multiplier: int, made: dict[Hashable, Any], encode: Callable[[Any], Any]) -> list[tuple[int, Any]]:
    """(first call of the denoiser, conds of the one prompt) for each stretch of steps; equal ones are encoded once."""
    parts = []
    for step, key in text.changes(picture):
        known = (key, prompts[picture])
        if known not in made:
            text.use(picture, step)
            made[known] = encode(prompt_parser.SdConditioning([prompts[picture]], copy_from=prompts))
        parts.append((step * multiplier, made[known]))
    return parts


def _combine(parts: Sequence[tuple[int, Any]]) -> list[Any]:
    """A prompt's parts (AND), each with its conds over all stretches."""
    first = parts[0][1].batch[0]
    return [prompt_parser.ComposableScheduledPromptConditioning(_splice([(start, conds.batch[0][index].schedules) for start, conds in parts]), each.weight)
            for index, each in enumerate(first)]


def _splice(parts: Sequence[tuple[int, Sequence[Any]]]) -> list[Any]:
    """One schedule out of several: each counts from its first call on until the next one's."""
    made: list[Any] = []
    for number, (start, schedule) in enumerate(parts):
        end = parts[number + 1][0] - 1 if number + 1 < len(parts) else max(schedule[-1].end_at_step, start)
        entries = [entry for entry in schedule if entry.end_at_step >= start] or [schedule[-1]]
        within = [entry for index, entry in enumerate(entries) if index == 0 or entries[index - 1].end_at_step < end]
        made += [entry._replace(end_at_step=min(entry.end_at_step, end)) for entry in within[:-1]]
        made.append(within[-1]._replace(end_at_step=end))
    return made


def _steps_asked(p: Any, hires: bool) -> int:
    """The number of steps by which the host counts a prompt's own schedule."""
    return (p.hr_second_pass_steps or p.steps) if hires else p.steps


def _steps_run(p: Any, hires: bool) -> int:
    """The number of steps that the sampling will take: in img2img only those after its starting point."""
    if hires or not hasattr(p, "init_images"):
        return _steps_asked(p, hires)
    return max(1, sd_samplers_common.setup_img2img_steps(p)[1] + 1)
