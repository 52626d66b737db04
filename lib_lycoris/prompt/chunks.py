"""A prompt as chunks of 77 tokens, the length that CLIP's text model takes, cut where the WebUI cuts."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .emphasis import BREAK, parse_emphasis

LENGTH = 75
"""Tokens of the prompt in a chunk; with the start and the end token it has 77."""
BACKTRACK = 20
"""A chunk that is full is cut after a comma at most this many tokens back."""


class Found(NamedTuple):
    """An embedding's word, found in a row of tokens.

    Attributes:
        word: what stands for the embedding.
        length: how many tokens its name takes.
        count: how many vectors come in their place.
    """

    word: Any
    length: int
    count: int


Find = Callable[[Sequence[int], int], "Found | None"]
"""The word that begins at a place of a row of tokens, if one does."""


@dataclass(frozen=True)
class Chunk:
    """77 tokens and the weight of each.

    Attributes:
        tokens: start token, 75 tokens of the prompt with an end token and the filling where they are fewer, end token.
        weights: 1.0 for start, end and filling.
        words: (place of its first vector among the 77, word) of each embedding; at its places the tokens are 0.
    """

    tokens: tuple[int, ...]
    weights: tuple[float, ...]
    words: tuple[tuple[int, Any], ...] = ()


class _Item(NamedTuple):
    token: int
    weight: float
    word: Any = None


def empty_chunk(start: int = 49406, end: int = 49407, filling: int | None = None) -> Chunk:
    """The chunk of a prompt without words."""
    return _filled([], start, end, filling)


def make_chunks(text: str, tokenize: Callable[[str], list[int]], comma_token: int | None, start: int = 49406, end: int = 49407, *,
                emphasis: bool = True, backtrack: int = BACKTRACK, filling: int | None = None, find: Find | None = None) -> list[Chunk]:
    """The prompt's chunks, at least one. An embedding's vectors stay together: where they don't fit any more, the next chunk begins with them.

    Args:
        tokenize: the ids of a text, without start and end token.
        comma_token: id of ",": a full chunk ends after the last comma if it is near enough; None: it is cut anywhere.
        start, end: ids of the start token and of the end token.
        emphasis: False takes brackets and BREAK literally, with weight 1.
        backtrack: how near, in tokens.
        filling: id of what follows the end token in a chunk that is not full; None: the end token again.
        find: finds the words of embeddings; None: there are none.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/sd_hijack_clip.py (behaviour).
    """
    chunks: list[Chunk] = []
    current: list[_Item] = []

    def close(cut: int) -> None:
        """Ends the chunk after `cut` items; the others begin the next."""
        chunks.append(_filled(current[:cut], start, end, filling))
        del current[:cut]

    for piece, weight in parse_emphasis(text) if emphasis else [(text, 1.0)]:
        if emphasis and (piece, weight) == BREAK:
            close(len(current))
            continue
        tokens, place = tokenize(piece), 0
        while place < len(tokens):
            if len(current) == LENGTH:
                close(LENGTH if tokens[place] == comma_token else _cut(current, comma_token, backtrack))
            found = find(tokens, place) if find is not None else None
            if found is None:
                current.append(_Item(tokens[place], weight))
                place += 1
                continue
            if len(current) + found.count > LENGTH:
                close(len(current))
            current.extend(_Item(0, weight, found.word if vector == 0 else None) for vector in range(found.count))
            place += found.length
    if current or not chunks:
        close(len(current))
    return chunks


def _cut(items: list[_Item], comma_token: int | None, backtrack: int) -> int:
    """How many tokens of a full chunk stay in it."""
    commas = [place for place, item in enumerate(items) if item.token == comma_token]
    return commas[-1] + 1 if commas and LENGTH - commas[-1] <= backtrack else LENGTH


def _filled(items: list[_Item], start: int, end: int, filling: int | None) -> Chunk:
    missing = LENGTH + 1 - len(items)
    after = (end, *[end if filling is None else filling] * (missing - 1))
    words = tuple((place + 1, item.word) for place, item in enumerate(items) if item.word is not None)
    return Chunk((start, *(item.token for item in items), *after), (1.0, *(item.weight for item in items), *[1.0] * missing), words)
