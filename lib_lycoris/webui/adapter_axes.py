"""Axes for the host's X/Y/Z plot that change a picture's first adapter: which, its weight, its start and end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lib_lycoris.prompt.unit import Unit

from .adapters import Adapters

PREFIX = "[Lyco] adapter"
_CHANGES = "lyco_adapter_changes"


def make_axes(axis: Callable[..., Any], adapters: Adapters) -> list[Any]:
    """The axes; each leaves a note on the `p` of its cell, which `changed` reads."""

    def put(name: str, read: Callable[[Any], Any] = lambda value: value) -> Callable[[Any, Any, Sequence[Any]], None]:
        def apply(p: Any, value: Any, values: Sequence[Any]) -> None:
            setattr(p, _CHANGES, {**getattr(p, _CHANGES, {}), name: read(value)})

        return apply

    def confirm_names(p: Any, values: Sequence[str]) -> None:
        for value in values:
            if value != "None":
                adapters.path_of(value)

    def confirm(name: str) -> Callable[[Any, Sequence[float]], None]:
        def check(p: Any, values: Sequence[float]) -> None:
            for value in values:
                Unit(**{name: value})

        return check

    return [
        axis(PREFIX, str, put("adapter", lambda value: "" if value == "None" else value), confirm=confirm_names, choices=lambda: ["None", *adapters.names()],
             cost=0.3),
        *(axis(f"{PREFIX} {name}", float, put(name), confirm=confirm(name)) for name in ("weight", "start", "end")),
    ]


def changed(p: Any, units: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The units of a plot's cell: the first that is enabled (or the first of all, then enabled) with what the axes say."""
    changes = getattr(p, _CHANGES, None)
    if not changes:
        return list(units)
    place = next((number for number, unit in enumerate(units) if unit.get("enabled", True) and unit.get("adapter")), 0)
    first = {**(units[place] if units else {}), "enabled": changes.get("adapter") != "", **changes}  # the axis' "None" is meant, and no mistake to be told
    return [*units[:place], first, *units[place + 1 :]]
