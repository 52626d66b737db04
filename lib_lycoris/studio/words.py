"""The embeddings that a prompt or a caption may name: found by their tokens as the WebUI finds them, their vectors put in the token table's place for one call.

Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/textual_inversion/textual_inversion.py, `find_embedding_at_position`, and
modules/sd_hijack.py, `EmbeddingsWithFixes` (behaviour).
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, LycoError, shown
from ..prompt.chunks import LENGTH, Chunk, Found
from .bpe import tokenize

Vectors = Mapping[str, Tensor]
"""For each text encoder [n,D]."""
Tell = Callable[[str], None]


@dataclass(eq=False)
class _Offer:
    """Some embeddings by word, read when a text names one."""

    vectors: Mapping[str, Vectors]
    tell: Tell | None
    bad: set[str] = field(default_factory=set)
    shadows: set[str] = field(default_factory=set)


class Words:
    """The embeddings that texts may name, for a model with these text encoders.

    Args:
        tokenizer: transformers' CLIPTokenizer.
        encoders: for each text encoder its module.
    """

    def __init__(self, tokenizer: Any, encoders: Mapping[str, nn.Module]):
        self._tokenizer, self._encoders = tokenizer, encoders
        self._ids: dict[str, tuple[int, ...]] = {}
        self._by_first: dict[int, list[tuple[tuple[int, ...], str, _Offer]]] = {}

    @contextmanager
    def given(self, vectors: Mapping[str, Vectors], tell: Tell | None = None) -> Iterator[None]:
        """Within it texts that name one of these words get its vectors, before words that were given earlier.

        Args:
            vectors: {word: {text encoder: float32 [n,D]}}; looked into whenever a text names the word, so that it may read files and change.
            tell: told in a line, once each, why a word is read as plain text; None: it is an error.

        Raises:
            ConfigError: a word without letters; or when a text names it (without `tell`) an embedding for other text encoders.
        """
        before = self._by_first
        offer = _Offer(vectors, tell)
        self._by_first = {first: list(entries) for first, entries in before.items()}
        for word in vectors:
            ids = self._ids_of(word)
            if ids:
                self._by_first.setdefault(ids[0], []).insert(0, (ids, word, offer))
            elif tell is None:
                raise ConfigError(f"embedding {shown(word)!r}: a word needs at least one letter that the tokenizer knows; rename it")
        for entries in self._by_first.values():
            entries.sort(key=lambda entry: -len(entry[0]))
        try:
            yield
        finally:
            self._by_first = before

    def find(self, tokens: Sequence[int], place: int) -> Found | None:
        """The longest word that begins at that place; one that was given later goes before an equal one.

        Raises:
            LycoError: its vectors can't be read or don't fit, and nobody is told instead.
        """
        for ids, word, offer in self._by_first.get(tokens[place], ()):
            if tuple(tokens[place : place + len(ids)]) == ids and word not in offer.bad:
                found = self._vectors(word, offer)
                if found is not None:
                    self._tell_of_shadow(word, ids, offer)
                    return Found(found, len(ids), len(next(iter(found.values()))))
        return None

    def _vectors(self, word: str, offer: _Offer) -> Vectors | None:
        try:
            vectors = offer.vectors[word]
            problem = self._misfit(vectors)
            if problem is not None:
                raise ConfigError(f"embedding {shown(word)!r} {problem}")
            return vectors
        except LycoError as error:
            if offer.tell is None:
                raise
            offer.bad.add(word)
            offer.tell(f"{error}: it was read as plain words")
            return None

    def _tell_of_shadow(self, word: str, ids: tuple[int, ...], offer: _Offer) -> None:
        """Tells that a word is one of the tokenizer's own, which can't be named any more."""
        if len(ids) == 1 and offer.tell is not None and word not in offer.shadows:
            offer.shadows.add(word)
            offer.tell(f"embedding {shown(word)!r} has the name of a word that is a token already and stands for it: rename its file if you mean the word")

    def _misfit(self, vectors: Vectors) -> str | None:
        """Why these vectors can't be used with this model, in words."""
        if set(vectors) != set(self._encoders):
            theirs, ours = " and ".join(map(shown, vectors)), " and ".join(self._encoders)
            return f"has vectors for {theirs}, this model needs them for {ours}: it is for another base model"
        for encoder, module in self._encoders.items():
            width, shape = token_table(module).shape[1], tuple(vectors[encoder].shape)
            if len(shape) != 2 or shape[1] != width:
                return f"has vectors of shape {list(shape)} for {encoder}, this model's are {width} wide: it is for another model"
            if not 1 <= shape[0] <= LENGTH:
                return f"has {shape[0]} vectors, a chunk of a prompt takes 1 to {LENGTH}: use another"
        if len({len(each) for each in vectors.values()}) > 1:
            return f"has different numbers of vectors for {' and '.join(vectors)}: get it again"
        return None

    def _ids_of(self, word: str) -> tuple[int, ...]:
        if word not in self._ids:
            self._ids[word] = tuple(tokenize(self._tokenizer, word))
        return self._ids[word]


def token_table(encoder: nn.Module) -> Tensor:
    """A text encoder's vectors [V,D] of all tokens."""
    return encoder.get_input_embeddings().weight


@contextmanager
def rows_in_place(encoder: nn.Module, name: str, chunks: Sequence[Chunk]) -> Iterator[None]:
    """Within it the encoder, called with these chunks' tokens [B,77], takes their embeddings' vectors for those of the table.

    The model's parameters are not touched, gradients flow into the vectors, and nothing of it stays on the model.

    Args:
        encoder: transformers' text model.
        name: what it is called in the vectors.
    """
    if not any(chunk.words for chunk in chunks):
        yield
        return

    def put_in(module: nn.Module, arguments: Any, rows: Tensor) -> Tensor:
        rows = rows.clone()
        for row, chunk in enumerate(chunks):
            for place, vectors in chunk.words:
                rows[row, place : place + len(vectors[name])] = vectors[name].to(rows)
        return rows

    handle = encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        yield
    finally:
        handle.remove()


def word_rows(tokenizer: Any, encoders: Mapping[str, nn.Module], text: str) -> dict[str, Tensor]:
    """For each text encoder the token table's rows float32 [k,D] of a text's tokens, copied; [0,D] for an empty text."""
    ids = torch.tensor(tokenize(tokenizer, text), dtype=torch.long)
    return {name: token_table(module).detach()[ids.to(token_table(module).device)].float().clone() for name, module in encoders.items()}


def word_statistics(encoders: Mapping[str, nn.Module]) -> dict[str, tuple[Tensor, Tensor, float]]:
    """For each text encoder mean [D] and standard deviation [D] of the token table, and the median length of its rows."""
    return {name: _statistics(token_table(module).detach().float()) for name, module in encoders.items()}


def _statistics(table: Tensor) -> tuple[Tensor, Tensor, float]:
    return table.mean(dim=0), table.std(dim=0), float(table.norm(dim=1).median())
