"""Small drawings of numbers as SVG: the same in both gradios, in light and dark, without a library that a page would have to load."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

Points = Sequence[Sequence[float]]

_WIDTH, _HEIGHT = 640, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 12, 34
_COLOURS = ("#ea580c", "#2563eb")


def curves(lines: Mapping[str, Points], what: str) -> str:
    """SVG of curves over steps, as {name: [(step, value), …]}; nothing where none has two points.

    Args:
        lines: at most two, the first in the main colour.
        what: of what it is a drawing, for those who can't see it.
    """
    drawn = {name: [(float(x), float(y)) for x, y in points if math.isfinite(y)] for name, points in lines.items()}
    drawn = {name: points for name, points in drawn.items() if points}
    if not any(len(points) > 1 for points in drawn.values()):
        return ""
    every = [point for points in drawn.values() for point in points]
    right = max(x for x, _ in every)
    low, high = _span([y for _, y in every])

    def place(x: float, y: float) -> tuple[float, float]:
        return (_LEFT + (_WIDTH - _LEFT - _RIGHT) * x / (right or 1), _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - y) / (high - low))

    parts = [_grid(low, high, right, place)]
    for (_, points), colour in zip(drawn.items(), _COLOURS, strict=False):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        x, y = place(*points[-1])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"/>'
                     f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>')
    words = "; ".join(f"{name} {points[-1][1]:.4g} at step {points[-1][0]:.0f}" for name, points in drawn.items())
    legend = " ".join(f'<span><i style="background:{colour}"></i>{escape(name)} {points[-1][1]:.4g}</span>'
                      for (name, points), colour in zip(drawn.items(), _COLOURS, strict=False))
    label = escape(f"{what}: {words}", quote=True)
    return (f'<figure class="lycoris-chart"><figcaption>{escape(what)} {legend}</figcaption><svg role="img" aria-label="{label}" '
            f'viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="xMidYMid meet">{"".join(parts)}</svg></figure>')


def ranks(by_layer: Mapping[str, int], initial: int) -> str:
    """HTML of each block's ranks as bars, with each layer's below when it is opened; `initial` is what every layer began with."""
    if not by_layer:
        return ""
    blocks: dict[str, list[tuple[str, int]]] = {}
    for layer, rank in by_layer.items():
        blocks.setdefault(block_of(layer), []).append((layer, rank))
    most = max(initial, *by_layer.values(), 1)
    rows = "".join(_bar(name, sum(rank for _, rank in layers) / len(layers), most, f"{len(layers)} layers") for name, layers in blocks.items())
    single = "".join(_bar(layer.partition(".")[2] or layer, rank, most, "") for layers in blocks.values() for layer, rank in layers)
    average = sum(by_layer.values()) / len(by_layer)
    return (f'<figure class="lycoris-chart"><figcaption>Ranks by block: {average:.3g} on average now, {initial} at the start</figcaption>'
            f'<div class="lycoris-ranks">{rows}</div><details><summary>Every layer</summary><div class="lycoris-ranks">{single}</div></details></figure>')


def block_of(layer: str) -> str:
    """The block of a layer "component.name" in short words: "text encoder", "down 1", "middle", "up 3", "rest"."""
    component, _, name = layer.partition(".")
    if component != "unet":
        return "text encoder" if component == "te1" else "text encoder 2"
    parts = name.split("_")
    if parts[0] in ("down", "up") and len(parts) > 2 and parts[2].isdigit():
        return f"{parts[0]} {parts[2]}"
    return "middle" if parts[0] == "mid" else "rest"


def _bar(name: str, value: float, most: int, about: str) -> str:
    return (f'<span>{escape(name)}</span><meter min="0" max="{most}" value="{value:.3f}" aria-label="{escape(name, quote=True)}"></meter>'
            f"<span>{value:.3g}{f' · {escape(about)}' if about else ''}</span>")


def _span(values: Sequence[float]) -> tuple[float, float]:
    """A little more than from the least to the most."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _grid(low: float, high: float, right: float, place: Callable[[float, float], tuple[float, float]]) -> str:
    lines = []
    for value in _ticks(low, high, 4):
        _, y = place(0, value)
        lines.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="line"/>'
                     f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for value in (tick for tick in _ticks(0, right, 5) if tick == int(tick)):
        x, _ = place(value, low)
        lines.append(f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{value:.0f}</text>')
    return "".join(lines)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within the range, about that many."""
    rough = (high - low) / count
    if rough <= 0:
        return []
    power = 10 ** math.floor(math.log10(rough))
    step = next(one * power for one in (1, 2, 5, 10) if one * power >= rough)
    first = math.ceil(low / step)
    return [number * step for number in range(first, math.floor(high / step) + 1)]
