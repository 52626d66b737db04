"""A prompt as chunks of 77 tokens, the length that CLIP's text model takes, cut where the WebUI cuts."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .emphasis import BREAK, parse_emphasis

LENGTH = 75
"""Tokens of the prompt in a chunk; with the start and the end token it has 77."""
BACKTRACK = 20
"""A chunk that is full is cut after a comma at most this many tokens back."""


@dataclass(frozen=True)
class Chunk:
    """77 tokens and the weight of each.

    Attributes:
        tokens: start token, 75 tokens of the prompt with an end token and the filling where they are fewer, end token.
        weights: 1.0 for start, end and filling.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]


def empty_chunk(start: int = 49406, end: int = 49407, filling: int | None = None) -> Chunk:
    """The chunk of a prompt without words."""
    return _filled([], start, end, filling)


def make_chunks(text: str, tokenize: Callable[[str], list[int]], comma_token: int | None, start: int = 49406, end: int = 49407, *,
                emphasis: bool = True, backtrack: int = BACKTRACK, filling: int | None = None) -> list[Chunk]:
    """The prompt's chunks, at least one.

    Args:
        tokenize: the ids of a text, without start and end token.
        comma_token: id of ",": a full chunk ends after the last comma if it is near enough; None: it is cut anywhere.
        start, end: ids of the start token and of the end token.
        emphasis: False takes brackets and BREAK literally, with weight 1.
        backtrack: how near, in tokens.
        filling: id of what follows the end token in a chunk that is not full; None: the end token again.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/sd_hijack_clip.py (behaviour).
    """
    chunks: list[Chunk] = []
    current: list[tuple[int, float]] = []
    for piece, weight in parse_emphasis(text) if emphasis else [(text, 1.0)]:
        if emphasis and (piece, weight) == BREAK:
            chunks.append(_filled(current, start, end, filling))
            current = []
            continue
        for token in tokenize(piece):
            if len(current) == LENGTH:
                cut = LENGTH if token == comma_token else _cut(current, comma_token, backtrack)
                chunks.append(_filled(current[:cut], start, end, filling))
                current = current[cut:]
            current.append((token, weight))
    if current or not chunks:
        chunks.append(_filled(current, start, end, filling))
    return chunks


def _cut(tokens: list[tuple[int, float]], comma_token: int | None, backtrack: int) -> int:
    """How many tokens of a full chunk stay in it."""
    commas = [place for place, (token, _) in enumerate(tokens) if token == comma_token]
    return commas[-1] + 1 if commas and LENGTH - commas[-1] <= backtrack else LENGTH


def _filled(tokens: list[tuple[int, float]], start: int, end: int, filling: int | None) -> Chunk:
    missing = LENGTH + 1 - len(tokens)
    after = (end, *[end if filling is None else filling] * (missing - 1))
    return Chunk((start, *(token for token, _ in tokens), *after), (1.0, *(weight for _, weight in tokens), *[1.0] * missing))
