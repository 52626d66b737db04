"""Values that come from the server a moment later: they are put in by the page itself, and never over what was typed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from . import compat

_APPLY = """(told, ...now) => {
    const still = {__type__: "update"};
    const fields = Array(COUNT).fill(still);
    const answer = (rest, offer) => [rest, ...fields, ...Array(OFFERS).fill(offer)];
    if (!told) {
        return answer(still, still);
    }
    const {changes, whole} = JSON.parse(told);
    const text = (value) => Array.isArray(value) ? JSON.stringify(value) : String(value ?? "");
    const untouched = ([place, befores]) => befores.some((before) => text(before) === text(now[place]));
    const all = changes.every(untouched);
    for (const [place, befores, after] of changes) {
        if (whole ? all : untouched([place, befores])) {
            fields[place] = {__type__: "update", value: after};
        }
    }
    return answer("", {__type__: "update", visible: whole && !(all && changes.length)});
}"""
"""Takes what the server told and what the fields hold now; gives what they are to hold. Comparing and filling in happen in the page, in one go: whoever
types while the server thinks, or while its answer is on the way, keeps what was typed."""


class Late:
    """Fields of a page that the server fills in.

    A field is filled in only if it still holds what it held before; with `whole` all of them are, or none.

    Args:
        fields: components, by key.
        name: of the hidden element through which the values come; the page's only one of that name.
    """

    def __init__(self, fields: Mapping[str, Any], name: str) -> None:
        self._places = {key: place for place, key in enumerate(fields)}
        self._fields = list(fields.values())
        with gr.Column(elem_classes=["lycoris-hidden"]):
            self.told = gr.Textbox(label="Values from the server", elem_id=f"lycoris_told_{name}")
        """The component that takes what `tell` gives."""
        self._offers: list[Any] = []

    def offer(self, block: Any) -> None:
        """That block is shown where `whole` values were not filled in, and hidden where they were."""
        self._offers = [block]

    def tell(self, after: Mapping[str, Any], *befores: Mapping[str, Any], whole: bool = False) -> str:
        """What `told` takes.

        Args:
            after: what fields are to hold, by key, as their components hold it; other keys are left as they are.
            befores: what a field may hold so that it counts as untouched; one that none of them names is never filled in.
            whole: fill in all fields or none.
        """
        changes = [[self._places[key], [before[key] for before in befores if key in before], value] for key, value in after.items() if key in self._places]
        return json.dumps({"changes": changes, "whole": whole})

    def values(self, given: Sequence[Any]) -> dict[str, Any]:
        """The fields' values, by key, of an event that had all fields for its inputs."""
        return dict(zip(self._places, given, strict=True))

    def after(self, event: Any) -> None:
        """Once the event has put something into `told`, the page fills it in."""
        # gradio 3.41 goes on to no further step from one without the server, so this is a chain's last
        script = _APPLY.replace("COUNT", str(len(self._fields))).replace("OFFERS", str(len(self._offers)))
        event.then(None, [self.told, *self._fields], [self.told, *self._fields, *self._offers], **compat.in_page(script))
