"""A strength that changes over the sampling, as text and as a value: 0.2@0,1@0.5."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from lib_lycoris.errors import RequestError, shown

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_BETWEEN, _MARK = re.compile("[,;]"), re.compile("[@~]")


@dataclass(frozen=True)
class Schedule:
    """Weights at positions of the sampling, with straight lines between them, and level before the first and after the last.

    Attributes:
        points: (weight, position), by rising position. Positions are fractions of the sampling when none is above 1, where 0 is the first step and 1
            the last; else they are steps, counted from 0. Of two points at one position the later one holds from there on: a jump.

    Raises:
        RequestError: no point, a value that is not finite, or a position below 0.
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        if not self.points:
            raise RequestError("a schedule without a weight; write 0.8, or 0.2@0,1@0.5")
        for weight, position in self.points:
            if not (math.isfinite(weight) and math.isfinite(position)) or position < 0:
                raise RequestError(f"{weight}@{position} is no weight at a position of the sampling: both must be finite, the position 0 or more")
        object.__setattr__(self, "points", tuple(sorted(((float(weight), float(position)) for weight, position in self.points), key=lambda point: point[1])))

    @property
    def constant(self) -> bool:
        """Whether it is the same weight all the time."""
        return len({weight for weight, _ in self.points}) == 1

    def at(self, step: float, steps: int) -> float:
        """The weight at a step (counted from 0) of so many."""
        place = clock(step, steps, self.points[-1][1])
        before = [point for point in self.points if point[1] <= place]
        after = [point for point in self.points if point[1] > place]
        if not before or not after:
            return (before or self.points[:1])[-1][0]
        (low, start), (high, end) = before[-1], after[0]
        return low + (high - low) * (place - start) / (end - start)


def clock(step: float, steps: int, last: float) -> float:
    """The place of a step in the unit of positions of which `last` is the largest: fractions from the first step to the last, or steps."""
    return step if last > 1 else min(max(step / max(steps - 1, 1), 0.0), 1.0)


def as_schedule(value: float | Schedule) -> Schedule:
    """The schedule that a number, or a schedule, means."""
    return value if isinstance(value, Schedule) else Schedule(((value, 0.0),))


def parse_schedule(text: str) -> Schedule:
    """The schedule that a text means: a number, or weight@position with "," or ";" between them; "~" may stand for "@".

    "default" is 1. The last weight may come without a position: it is reached at the last step.

    Raises:
        RequestError: the text is none.

    Source: cheald/sd-webui-loractl, loractl/lib/utils.py (behaviour; here the last step is fraction 1, there one near it).
    """
    entries = [[part.strip() for part in _MARK.split(entry)] for entry in _BETWEEN.split(text)]
    if len(entries) == 1 and len(entries[0]) == 1:
        return as_schedule(1.0 if entries[0][0] == "default" else parse_number(entries[0][0]))
    if any(len(entry) > 2 for entry in entries) or any(len(entry) < 2 for entry in entries[:-1]):
        raise RequestError(f"{shown(text, 60)!r} is not a number, nor weights with positions; write 0.8, or 0.2@0,1@0.5")
    points = [(parse_number(entry[0]), parse_number(entry[1])) for entry in entries if len(entry) == 2]
    if len(entries[-1]) == 1:
        if any(position > 1 for _, position in points):
            raise RequestError(f"{shown(text, 60)!r} counts in steps and its last weight has none; write {shown(entries[-1][0], 20)}@20")
        points.append((parse_number(entries[-1][0]), 1.0))
    return Schedule(tuple(points))


def render_schedule(schedule: Schedule) -> str:
    """The shortest text that parses to this schedule."""
    if len(schedule.points) == 1 and schedule.points[0][1] == 0:
        return render_number(schedule.points[0][0])
    return ",".join(f"{render_number(weight)}@{render_number(position)}" for weight, position in schedule.points)


def parse_number(text: str) -> float:
    """The finite number that a text is: 1, 1., .5, -0.5, +0.5, 1e-3.

    Raises:
        RequestError: it is none.
    """
    text = text.strip()
    if not _NUMBER.fullmatch(text):
        hint = "; the decimal mark is a point" if re.fullmatch(r"\d+,\d+", text) else ""
        raise RequestError(f"{shown(text, 60)!r} is not a number{hint}")
    number = float(text)
    if not math.isfinite(number):
        raise RequestError(f"{shown(text, 60)!r} is not a finite number")
    return number


def render_number(number: float) -> str:
    """The shortest text that `parse_number` reads as this number."""
    return repr(float(number)).removesuffix(".0")
