"""Words in training, as the host's own text encoders see them: found by their tokens like its embeddings, without a change to its list of those."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from modules import sd_hijack
from torch import Tensor, nn

from .settled import attributes

Vectors = Mapping[str, Tensor]


class _Word:
    """What the host's text encoders want of an embedding."""

    shorthash = None

    def __init__(self, name: str, vectors: Vectors):
        self.name, self.vectors = name, len(next(iter(vectors.values())))
        # a dict where there are two text encoders; SD 2's one asks for no key
        self.vec: Tensor | dict[str, Tensor] = dict(vectors) if len(vectors) > 1 else next(iter(vectors.values()))


class _Words:
    """The host's list of embeddings with some words before it; whatever else is asked of it or done to it is the list's own.

    A list that is read anew meanwhile, as other embeddings are made or deleted, therefore takes nothing away here.
    """

    def __init__(self, behind: Any, words: Sequence[tuple[list[int], _Word]]):
        self._behind, self._words = behind, sorted(words, key=lambda word: -len(word[0]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)

    def find_embedding_at_position(self, tokens: list[int], offset: int) -> tuple[Any, int | None]:
        """(the embedding whose tokens stand there, how many they are): the longest, and of two as long the word in training."""
        found, length = self._behind.find_embedding_at_position(tokens, offset)
        for ids, word in self._words:
            if len(ids) >= (length or 1) and tokens[offset : offset + len(ids)] == ids:
                return word, len(ids)
        return found, length


class Words:
    """The words in training of one model.

    Args:
        model: the host's; may be set anew where the host has loaded the checkpoint again.
        family: "sd1", "sd2" or "sdxl".
    """

    def __init__(self, model: Any, family: str):
        self.model, self._family = model, family
        self._put_on: dict[str, Vectors] = {}

    @contextmanager
    def put_on(self, vectors: Mapping[str, Vectors]) -> Iterator[None]:
        """Within it `used` knows these words and their vectors, beside those that it knows already."""
        before, self._put_on = self._put_on, {**self._put_on, **vectors}
        try:
            yield
        finally:
            self._put_on = before

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within it the host's text encoders find the words; to be opened around each call of them, so that between calls nothing of the host is another."""
        if not self._put_on:
            yield
            return
        words = []
        for name, vectors in self._put_on.items():
            word = _Word(name, vectors)
            spelled = {tuple(embedder.tokenize([name])[0]) for embedder in self.embedders.values()}
            words += [(list(ids), word) for ids in spelled if ids]
        hijack = sd_hijack.model_hijack
        with attributes(hijack, embedding_db=_Words(hijack.embedding_db, words)):
            yield

    @property
    def embedders(self) -> dict[str, Any]:
        """The host's text encoders by what their vectors are called."""
        conditioner = getattr(self.model, "conditioner", None)
        if conditioner is None:
            return {{"sd1": "clip_l", "sd2": "clip_h"}[self._family]: self.model.cond_stage_model}
        texts = [embedder for embedder in conditioner.embedders if embedder.input_key == "txt"]
        return {_table(embedder).textual_inversion_key: embedder for embedder in texts}

    def rows(self, text: str) -> dict[str, Tensor]:
        """By text encoder the table's rows [K,D] float32 of the text's tokens, on the CPU."""
        return {encoder: _weight(embedder)[torch.tensor(embedder.tokenize([text])[0], dtype=torch.long)] for encoder, embedder in self.embedders.items()}

    def count(self, text: str) -> int:
        """How many tokens the text has, without those that open and end a chunk; the most of any text encoder."""
        return max(len(embedder.tokenize([text])[0]) for embedder in self.embedders.values())

    def statistics(self) -> dict[str, tuple[Tensor, Tensor, float]]:
        """By text encoder the mean [D], deviation [D] and median length of the table's rows."""
        found = {}
        for encoder, embedder in self.embedders.items():
            table = _weight(embedder)
            found[encoder] = (table.mean(0), table.std(0), float(table.norm(dim=1).median()))
        return found


def _table(embedder: Any) -> Any:
    """The module that the host has put in a token table's place to mix vectors into its answers."""
    return next(module for module in embedder.modules() if hasattr(module, "textual_inversion_key"))


def _weight(embedder: Any) -> Tensor:
    """The token table [49408,D] float32 on the CPU."""
    table = _table(embedder)
    table = table.wrapped if isinstance(table.wrapped, nn.Module) else table
    return table.weight.detach().float().cpu()
