"""Figures as pictures within the page: bars by block, lines of singular values. They take the page's colours, light or dark; every text in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

_WIDTH, _HEIGHT = 640, 300
_LEFT, _BOTTOM, _TOP = 52, 34, 10
_MARGIN = 1.15
_SMALLEST = 1e-6
"""Of the largest singular value; what is below is rounding."""

CSS = """
.lycoris-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 0.12rem 0.6rem; align-items: center; font-size: 0.85rem; }
.lycoris-bars { max-width: 900px; margin-bottom: 0.8rem; }
.lycoris-bars .bars { display: flex; flex-direction: column; gap: 1px; }
.lycoris-bars .bars span { display: block; height: 0.7rem; border-radius: 2px; background: #ea580c; min-width: 1px; }
.lycoris-bars .bars.two span { height: 0.4rem; }
.lycoris-bars .bars span + span { background: #2563eb; }
.lycoris-bars .figure { text-align: right; font-variant-numeric: tabular-nums; }
.lycoris-bars .head { opacity: 0.75; font-size: 0.8rem; }
.lycoris-lines svg { width: 100%; height: auto; max-width: 900px; }
.lycoris-lines text { fill: currentColor; font-size: 11px; }
.lycoris-legend { display: flex; flex-wrap: wrap; gap: 0.1rem 0.8rem; font-size: 0.8rem; }
.lycoris-legend i { display: inline-block; width: 0.9rem; height: 3px; margin-right: 0.3rem; vertical-align: middle; }
.lycoris-first { color: #ea580c; font-weight: 600; } .lycoris-second { color: #2563eb; font-weight: 600; }
"""


def norm_bars(norms: Mapping[str, float | None]) -> str:
    """HTML of a bar for each block's ‖ΔW‖; None is a norm that only the base weight would tell."""
    longest = max((norm for norm in norms.values() if norm), default=1.0)
    rows = [_cells(block, [(norm or 0.0) / longest], "needs a checkpoint" if norm is None else f"{norm:.4g}") for block, norm in norms.items()]
    return f'<div class="lycoris-bars">{_head("Block", "How much it changes", "‖ΔW‖")}{"".join(rows)}</div>'


def compared_bars(first: Mapping[str, float | None], second: Mapping[str, float | None], alike: Mapping[str, float | None]) -> str:
    """HTML of two bars for each block, and how much both pull the same way there."""
    longest = max((norm for norms in (first, second) for norm in norms.values() if norm), default=1.0)
    blocks = list(dict.fromkeys((*first, *second)))
    rows = [_cells(block, [(norms.get(block) or 0.0) / longest for norms in (first, second)], _percent(alike.get(block))) for block in blocks]
    return f'<div class="lycoris-bars">{_head("Block", "How much each changes (‖ΔW‖)", "Alike")}{"".join(rows)}</div>'


def spectrum_lines(spectra: Mapping[str, Sequence[float]]) -> str:
    """HTML of a line for each block: its singular values, largest first, on a logarithmic scale; nothing where there are none."""
    seen = {block: [value for value in values if value > max(values) * _SMALLEST] for block, values in spectra.items() if values and max(values) > 0}
    seen = {block: values for block, values in seen.items() if values}
    if not seen:
        return ""
    count = max(max(len(values) for values in seen.values()), 2)
    place = _Place(count, min(map(min, seen.values())) / _MARGIN, max(map(max, seen.values())) * _MARGIN)
    lines = [_line(place, values, _colour(number, len(seen)), block) for number, (block, values) in enumerate(seen.items())]
    legend = [f'<span><i style="background:{_colour(number, len(seen))}"></i>{escape(block)}</span>' for number, block in enumerate(seen)]
    words = f"Singular values of {len(seen)} blocks, from 1 to {count}"
    return (f'<div class="lycoris-lines"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">{place.axes()}{"".join(lines)}</svg>'
            f'<div class="lycoris-legend">{"".join(legend)}</div></div>')


class _Place:
    """Where a value stands in the picture: its number across, its logarithm upwards."""

    def __init__(self, count: int, low: float, high: float) -> None:
        self._count, self._low, self._high = count, low, high

    def across(self, number: float) -> float:
        return _LEFT + (number - 1) / (self._count - 1) * (_WIDTH - _LEFT - 12)

    def up(self, value: float) -> float:
        return _TOP + math.log(self._high / value) / math.log(self._high / self._low) * (_HEIGHT - _TOP - _BOTTOM)

    def marks(self) -> list[float]:
        """Round values within the picture: powers of ten, and where these are few 2 and 5 between them too."""
        powers = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
        found = [step * 10.0**power for power in powers for step in ((1,) if len(powers) > 4 else (1, 2, 5)) if self._low <= step * 10.0**power <= self._high]
        return found or [self._low, self._high]

    def axes(self) -> str:
        """The grid and its figures."""
        grid = [f'<line x1="{_LEFT}" x2="{_WIDTH - 12}" y1="{self.up(mark):.1f}" y2="{self.up(mark):.1f}" stroke="currentColor" stroke-opacity="0.2"/>'
                f'<text x="{_LEFT - 6}" y="{self.up(mark) + 4:.1f}" text-anchor="end">{mark:.3g}</text>' for mark in self.marks()]
        counts = sorted({1, self._count, *(1 + round((self._count - 1) * part / 4) for part in (1, 2, 3))})
        ticks = [f'<text x="{self.across(count):.1f}" y="{_HEIGHT - 18}" text-anchor="middle">{count}</text>' for count in counts]
        return "".join((*grid, *ticks)) + f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 3}" text-anchor="middle">n-th largest singular value</text>'


def _line(place: _Place, values: Sequence[float], colour: str, block: str) -> str:
    points = " ".join(f"{place.across(number):.1f},{place.up(value):.1f}" for number, value in enumerate(values, start=1))
    first = f'<circle cx="{place.across(1):.1f}" cy="{place.up(values[0]):.1f}" r="2.5" fill="{colour}"/>' if len(values) == 1 else ""
    return f'<g><title>{escape(block)}</title><polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>{first}</g>'


def _colour(number: int, count: int) -> str:
    """From red to violet, as bright on a light page as on a dark one."""
    hue = round(280 * number / max(count - 1, 1))
    light = 48 if hue < 50 else 40 if hue < 200 else 64  # green is light and blue dark to the eye: all are to be seen on white and on black
    return f"hsl({hue} 75% {light}%)"


def _cells(title: str, shares: Sequence[float], figure: str) -> str:
    bars = "".join(f'<span style="width:{100 * share:.1f}%"></span>' for share in shares)
    return f'<div>{escape(title)}</div><div class="bars{" two" if len(shares) > 1 else ""}">{bars}</div><div class="figure">{escape(figure)}</div>'


def _head(*titles: str) -> str:
    return "".join(f'<div class="head">{escape(title)}</div>' for title in titles)


def _percent(alike: float | None) -> str:
    return "–" if alike is None else f"{100 * alike:.0f} %"
