"""The text that a picture carries on how it was made, read: prompt, negative prompt, and what stands behind them by name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

_NEGATIVE = "Negative prompt:"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_LEAST = 3
"""So many named values make a line that is no prompt's last one."""


@dataclass(frozen=True)
class Infotext:
    """What a picture says of itself.

    Attributes:
        prompt, negative: as they were typed.
        fields: the named values, as text, in their order.
    """

    prompt: str = ""
    negative: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def parse_infotext(text: str) -> Infotext:
    """The parts of an infotext as the WebUI writes it; a text without named values is all prompt.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/infotext_utils.py (format).
    """
    lines = text.strip().split("\n")
    last = _PAIR.findall(lines[-1])
    if len(last) < _LEAST and not (last and len(lines) > 1 and lines[-1].startswith("Steps:")):
        lines, last = [*lines, ""], []
    prompt: list[str] = []
    negative: list[str] = []
    goal = prompt
    for line in lines[:-1]:
        if goal is prompt and line.strip().startswith(_NEGATIVE):
            goal, line = negative, line.strip()[len(_NEGATIVE):].strip()
        goal.append(line)
    return Infotext("\n".join(prompt).strip(), "\n".join(negative).strip(), {name.strip(): _plain(value) for name, value in last})


def _plain(value: str) -> str:
    """A value without its quotation marks."""
    value = value.strip()
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value
    return value
