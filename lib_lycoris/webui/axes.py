"""Axes for the host's X/Y/Z plot: network, strength, block preset. Each changes the first `<lyco:…>` of the prompt."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modules import scripts

from lib_lycoris.errors import LycoError, RequestError, UnknownNetworkError, shown
from lib_lycoris.library.shelf import Shelf
from lib_lycoris.prompt.blocks import parse_blocks
from lib_lycoris.prompt.edit import Tag, change_tags, find_tags, written_name

PREFIX = "[Lyco] "
NOTHING = "None"


def add_axes(shelf: Shelf, presets: Callable[[], Mapping[str, str]], strength: Callable[[], float],
             more: Callable[[Callable[..., Any]], Sequence[Any]] = lambda axis: ()) -> None:
    """Puts the axes at the end of the plot's list, in the place of those of an earlier start; nothing where the host has no such script.

    Args:
        shelf: the networks to choose from.
        presets: gives the block presets of now.
        strength: gives the strength for a network that the prompt does not name yet.
        more: makes further axes of ours with the plot's own class.
    """
    for module in {id(data.module): data.module for data in scripts.scripts_data}.values():
        if hasattr(module, "AxisOption") and isinstance(getattr(module, "axis_options", None), list):
            kept = [option for option in module.axis_options if not option.label.startswith(PREFIX)]
            module.axis_options[:] = [*kept, *_make_axes(module.AxisOption, shelf, presets, strength), *more(module.AxisOption)]


def _make_axes(axis: Callable[..., Any], shelf: Shelf, presets: Callable[[], Mapping[str, str]], strength: Callable[[], float]) -> list[Any]:
    def names() -> list[str]:
        return [NOTHING, *(network.name for network in shelf.networks())]

    def confirm_networks(p: Any, names: Sequence[str]) -> None:
        for name in names:
            if name != NOTHING:
                _confirm_network(shelf, name)

    def put_network(p: Any, name: str, names: Sequence[str]) -> None:
        _change(p, lambda tag: None if name == NOTHING else tag.renamed(name), f"<lyco:{written_name(name)}:{strength():g}>" if name != NOTHING else "")

    def confirm_blocks(p: Any, texts: Sequence[str]) -> None:
        for text in texts:
            try:
                parse_blocks(text, presets())
            except RequestError as error:
                raise RequestError(f"{PREFIX}block preset: {error}") from None
        _confirm_tag(p)

    def put_blocks(p: Any, text: str, texts: Sequence[str]) -> None:
        _change(p, lambda tag: tag.with_argument("lbw", text))

    def put_strength(te: bool, unet: bool) -> Callable[[Any, float, Sequence[float]], None]:
        def put(p: Any, value: float, values: Sequence[float]) -> None:
            text = f"{round(value, 8):g}"
            _change(p, lambda tag: tag.with_strength(text if te else None, text if unet else None))

        return put

    def confirm_strength(p: Any, values: Sequence[float]) -> None:
        for value in values:
            if not abs(value) < sys.float_info.max:
                raise RequestError(f"{PREFIX}strength {value} is no finite number: give a number like 0.8")
        _confirm_tag(p)

    return [
        axis(f"{PREFIX}network", str, put_network, confirm=confirm_networks, choices=names, cost=0.3),
        axis(f"{PREFIX}strength", float, put_strength(True, True), confirm=confirm_strength),
        axis(f"{PREFIX}strength, text encoder", float, put_strength(True, False), confirm=confirm_strength),
        axis(f"{PREFIX}strength, UNet", float, put_strength(False, True), confirm=confirm_strength),
        axis(f"{PREFIX}block preset", str, put_blocks, confirm=confirm_blocks, choices=lambda: [name for name, text in presets().items() if ":" not in text]),
    ]


def _confirm_network(shelf: Shelf, name: str) -> None:
    if ">" in name:
        raise RequestError(f"{PREFIX}network {shown(name)!r} can't stand in a tag, it has a '>': rename the file, or give its hash")
    try:
        shelf.find(name)
    except UnknownNetworkError as error:
        raise UnknownNetworkError(f"{PREFIX}network: {error}; {NOTHING} means no network") from None


def _confirm_tag(p: Any) -> None:
    if not find_tags(p.prompt):
        raise LycoError("this axis changes the first <lyco:…> of the prompt, and there is none: write one, like <lyco:NAME:1>")


def _change(p: Any, change: Callable[[Tag], Tag | None], without: str = "") -> None:
    """Changes the first tag of the prompt, and of the hires prompt where that has one; a prompt without one gets `without` at its end."""
    p.prompt = change_tags(p.prompt, change, first=True) if find_tags(p.prompt) else p.prompt + without
    hires = getattr(p, "hr_prompt", None)
    if isinstance(hires, str) and find_tags(hires):
        p.hr_prompt = change_tags(hires, change, first=True)
