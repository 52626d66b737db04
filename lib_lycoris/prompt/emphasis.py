"""Emphasis in a prompt's text: (more), [less], (just:1.3), escaped \\( brackets \\) and BREAK, with the meaning they have in the WebUI."""
from __future__ import annotations

import re

ROUND, SQUARE = 1.1, 1 / 1.1
"""What a pair of ( ) and of [ ] multiplies the weight by."""
BREAK = ("BREAK", -1)
"""The pair that ends a chunk of tokens."""

_PARTS = re.compile(r"""
    \\(?P<escaped>[()\[\]\\]?)                                        # a lone backslash stands for nothing
  | (?P<open>[(\[])
  | :\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
  | (?P<close>[)\]])
  | (?P<text>[^\\()\[\]:]+|:)
""", re.VERBOSE)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse_emphasis(text: str) -> list[tuple[str, float]]:
    """The text in pieces, each with its weight; ("BREAK", -1) where the text says BREAK outside of brackets.

    Round and square brackets are counted apart and may overlap; what is never closed counts to the end; a closing bracket that nothing opened is
    text.
    Inside brackets BREAK is weighted like a word, as in the WebUI, and then breaks nothing.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/prompt_parser.py (behaviour; a weight that is no number, which is an error there, is
    text here).
    """
    pieces: list[list] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def weigh(since: int, factor: float) -> None:
        for piece in pieces[since:]:
            piece[1] *= factor

    for part in _PARTS.finditer(text):
        kind, value = part.lastgroup, part.group()
        if kind == "escaped":
            pieces.append([part["escaped"], 1.0])
        elif kind == "open":
            opened[value].append(len(pieces))
        elif kind == "weight" and opened["("]:
            weigh(opened["("].pop(), float(part["weight"]))
        elif value == ")" and opened["("]:
            weigh(opened["("].pop(), ROUND)
        elif value == "]" and opened["["]:
            weigh(opened["["].pop(), SQUARE)
        else:
            for number, plain in enumerate(_BREAK.split(value)):
                if number:
                    pieces.append(list(BREAK))
                pieces.append([plain, 1.0])
    for since in opened["("]:
        weigh(since, ROUND)
    for since in opened["["]:
        weigh(since, SQUARE)
    return _join(pieces) or [("", 1.0)]


def _join(pieces: list[list]) -> list[tuple[str, float]]:
    """Neighbours of equal weight as one piece."""
    joined: list[tuple[str, float]] = []
    for text, weight in pieces:
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined
