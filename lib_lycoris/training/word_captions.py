"""Captions of which some name a word in training: those are encoded anew in every step, all others once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .backbone import Backbone, Conditioning
from .conditioning import CachedCaptions, NotJoinableError, join, tensors_of

_MOST_KNOWN = 100_000


class WordCaptions:
    """What gives captions their conditioning while a word's vectors are trained and the text encoders are not; to be used while the word is put on.

    Args:
        backbone: the model.
        word: that is trained.
        cached: for the captions that don't name it.
    """

    def __init__(self, backbone: Backbone, word: str, cached: CachedCaptions):
        self._backbone, self._word, self._cached = backbone, word.casefold(), cached
        self._known: dict[str, bool] = {}

    def prepare(self, captions: Sequence[str], tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Encodes those of the captions that don't name the word, or brings them from the cache; `tell` is told (done, all) before each."""
        self._cached.prepare([caption for caption in captions if not self.names_word(caption)], tell)

    def names_word(self, caption: str) -> bool:
        """Whether the word's vectors are in the caption's conditioning: surely not where no gradient reaches them."""
        if self._word in caption.casefold():
            return True
        if caption not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            with torch.enable_grad():
                made = self._backbone.encode_captions([caption])
            self._known[caption] = any(tensor.requires_grad for tensor in tensors_of(made))
        return self._known[caption]

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning of the batch, in the captions' order; gradients flow into the word's vectors."""
        naming = [caption for caption in dict.fromkeys(captions) if self.names_word(caption)]
        if not naming:
            return self._cached.encode(captions)
        if len(naming) == len(set(captions)):
            return self._backbone.encode_captions(list(captions))
        others = {caption: self._cached.encode([caption]) for caption in dict.fromkeys(captions) if caption not in naming}
        made = self._backbone.encode_captions(naming)  # last: a host may take the text encoders away after what needs no gradients
        try:
            rows = others | {caption: row_of(made, place) for place, caption in enumerate(naming)}
            return join([rows[caption] for caption in captions])
        except NotJoinableError:  # captions of different length: the model knows how to fill up the shorter ones
            return self._backbone.encode_captions(list(captions))


def row_of(value: Conditioning, place: int) -> Conditioning:
    """One row of a batch of conditionings, as a batch of one."""
    if isinstance(value, Tensor):
        return value[place : place + 1]
    if isinstance(value, dict):
        return {key: row_of(part, place) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(row_of(part, place) for part in value)
    raise NotJoinableError
