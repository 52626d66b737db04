"""Prompts joined by AND: several texts that steer one picture, each with its own strength."""
from __future__ import annotations

import re

_AND = re.compile(r"\bAND\b")
_STRENGTH = re.compile(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))\s*$")


def split_composition(text: str) -> list[tuple[str, float]]:
    """The texts between ANDs, each with the strength that a final ":0.7" gives it, else 1.0.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/prompt_parser.py (behaviour).
    """
    parts = []
    for part in _AND.split(text):
        found = _STRENGTH.search(part)
        parts.append((part[:found.start()], float(found[1])) if found else (part.rstrip(), 1.0))
    return parts
