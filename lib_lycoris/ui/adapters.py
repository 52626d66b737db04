"""The accordion for T2I-Adapters: in txt2img and img2img of the WebUI, and in the studio's Generate tab."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from ..errors import ConfigError, LycoError
from ..prompt.unit import Unit
from ..prompt.unit_values import AUTO_FUSER, FIELDS, NO_FUSER, UNITS, fuser_value, split_unit, unit_values
from . import compat, text
from .adapter_unit import RESTORED, adapter_choices, draw_unit, restored_unit, shown_values

_BEGIN = "Adapters that fit the loaded checkpoint; put files into models/T2I-Adapter and refresh."
_FUSER = "Makes one of several adapters that were trained with it (coadapter-…). By itself: where two act that it knows, or one called coadapter…"


@dataclass(frozen=True)
class AdapterPage:
    """What the accordion shows and does, as plain functions of plain values; they raise a `LycoError` where they can't.

    Attributes:
        names: gives the adapters that fit the loaded checkpoint.
        describe: takes an adapter's name, gives {"words": one line on it, "preprocessor": the one that belongs to it, "resolution": pixels or None}.
        preprocessors: gives for each {"name", "label", "help", "source", "parameters": [{"name", "help", "minimum", "maximum", "default", "whole"}]}.
        preview: takes a unit as a mapping (pictures among it) and the picture's (width, height), gives the control map [H,W,3] uint8.
        fusers: gives the CoAdapter fusers that fit the loaded checkpoint.
        begin: what stands there before an adapter is chosen.
    """

    names: Callable[[], Sequence[str]]
    describe: Callable[[str], Mapping[str, Any]]
    preprocessors: Callable[[], Sequence[Mapping[str, Any]]]
    preview: Callable[[Mapping[str, Any], tuple[int, int]], Any]
    fusers: Callable[[], Sequence[str]]
    begin: str = _BEGIN

    @staticmethod
    def over(adapters: Any, begin: str = _BEGIN) -> AdapterPage:
        """The page over a host's adapters, which have these functions."""
        return AdapterPage(adapters.names, adapters.describe, adapters.preprocessors, adapters.preview, adapters.fusers, begin)

    def draw(self, tab: str, size: Sequence[Any]) -> Drawn:
        """Draws the accordion: see `draw_adapters`."""
        return draw_adapters(self, tab, size)

    def show(self, unit: Unit) -> dict[str, Any]:
        """What the controls show of a unit: see `shown_values`."""
        return shown_values(unit, self)


@dataclass(frozen=True)
class Drawn:
    """The accordion's controls: for each unit by name those whose values come, and the rest; for all of them the fuser; and the accordion itself."""

    units: Sequence[Mapping[str, Any]]
    rest: Sequence[Mapping[str, Any]]
    fuser: Any
    accordion: Any

    @property
    def controls(self) -> list[Any]:
        """All controls whose values come, in the order of the values."""
        return [*(unit[name] for unit in self.units for name in FIELDS), self.fuser]

    @property
    def restored(self) -> list[Any]:
        """What `restore` gives updates for."""
        units = [{**unit, **extra}[name] for unit, extra in zip(self.units, self.rest, strict=True) for name in RESTORED]
        return [*units, self.fuser, self.accordion]

    def restore(self, page: AdapterPage, units: Sequence[Mapping[str, Any]], fuser: str) -> list[Any]:
        """The updates that set up these units, given by their fields with pictures as paths; the others are switched off."""
        found: list[Any] = []
        for number in range(len(self.units)):
            values = units[number] if number < len(units) else {}
            told = restored_unit(page, values) if values.get("adapter") else {"enabled": False}
            found += [told[name] if name in told else gr.update() for name in RESTORED]
        acting = any(values.get("adapter") for values in units)
        return [*found, gr.update(value=fuser or AUTO_FUSER, **_offered_fusers(page, fuser or AUTO_FUSER)), gr.update(open=True) if acting else gr.update()]

    def problems(self, lines: Sequence[str]) -> list[str]:
        """For each unit the HTML of the lines that are about it."""
        return [text.problems([line for line in lines if line.startswith((f"adapter {number} ", f"adapter {number}:"))])
                for number in range(1, len(self.units) + 1)]

    def offers(self, page: AdapterPage) -> list[tuple[Any, Callable[[str], Any]]]:
        """(a dropdown of files, what gives for its choice the update that offers what there is now)."""
        return [*((unit["adapter"], lambda name: gr.update(choices=adapter_choices(page, name))) for unit in self.units),
                (self.fuser, lambda name: gr.update(**_offered_fusers(page, name)))]


def draw_adapters(page: AdapterPage, tab: str, size: Sequence[Any] = ()) -> Drawn:
    """Draws the accordion into the surrounding gradio context.

    Args:
        page: what it does.
        tab: "txt2img", "img2img", or the studio's "generate".
        size: the host's components for width and height, where it has drawn them.
    """
    units, rest = [], []
    with gr.Accordion("T2I-Adapters (Lyco)", open=False, elem_id=f"lyco_adapters_{tab}", elem_classes=["lyco-adapters"]) as accordion:
        with gr.Tabs():
            for number in range(UNITS):
                with gr.Tab(f"Adapter {number + 1}"):
                    unit, extra = draw_unit(page, tab, number, size)
                units.append(unit)
                rest.append(extra)
        fuser = gr.Dropdown(**_offered_fusers(page, AUTO_FUSER), value=AUTO_FUSER, label="CoAdapter fuser", elem_id=f"lyco_adapters_{tab}_fuser", info=_FUSER)
    for extra in rest:
        extra["refresh"].click(lambda chosen: gr.update(**_offered_fusers(page, chosen)), [fuser], [fuser], **compat.quiet())
    for component in [fuser, *(each for unit in (*units, *rest) for each in unit.values())]:
        component.do_not_save_to_config = True  # three units have the same labels, and the host keeps defaults by label
    return Drawn(units, rest, fuser, accordion)


def _offered_fusers(page: AdapterPage, chosen: str) -> dict[str, Any]:
    """The dropdown's arguments: what there is now, and what is chosen; without any fuser there is nothing to choose, and it is hidden."""
    names = list(dict.fromkeys([*page.fusers(), *([] if chosen in (AUTO_FUSER, NO_FUSER) else [chosen])]))
    choices = [("by itself", AUTO_FUSER), ("none, they add up", NO_FUSER), *((name, name) for name in names)]
    return {"choices": choices, "visible": bool(names)}


def wanted_adapters(values: Sequence[Any]) -> dict[str, Any]:
    """What the accordion's controls ask of a picture: {"units", "fuser"}; nothing where no unit is on.

    Raises:
        ConfigError: a value that a unit does not take; the line begins with "adapter 2:".
    """
    units = unit_values(values)
    asked = [unit if unit["enabled"] and unit["adapter"] else {"enabled": False} for unit in units]
    while asked and not asked[-1]["enabled"]:
        asked.pop()
    for number, unit in enumerate(asked, start=1):
        try:
            split_unit(unit)
        except LycoError as error:
            raise ConfigError(f"adapter {number}: {error}") from error
    return {"units": asked, "fuser": fuser_value(values)} if asked else {}


def forgotten_adapters(values: Sequence[Any]) -> list[str]:
    """A line for each unit that is on and has no adapter."""
    return [f"adapter {number}: it is on, but no adapter is chosen, so it did nothing" for number, unit in enumerate(unit_values(values), start=1)
            if unit["enabled"] and not unit["adapter"]]
