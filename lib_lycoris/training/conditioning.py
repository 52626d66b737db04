"""Captions as the model's conditioning: made anew in every step while a text encoder is trained, otherwise once for each caption."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from .backbone import Backbone, Conditioning


class Captions(Protocol):
    """What gives a batch of captions its conditioning."""

    def encode(self, captions: Sequence[str]) -> Conditioning:
        """Conditioning of the batch, in the captions' order."""


class TrainedCaptions:
    """Through the text encoder every time: its gradient is wanted."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone

    def encode(self, captions: Sequence[str]) -> Conditioning:
        return self._backbone.encode_captions(list(captions))


class CachedCaptions:
    """Each caption encoded once, without a gradient; batches are put together from that."""

    def __init__(self, backbone: Backbone):
        self._backbone = backbone
        self._known: dict[str, Conditioning] = {}

    def encode(self, captions: Sequence[str]) -> Conditioning:
        with torch.no_grad():
            for caption in dict.fromkeys(captions):
                if caption not in self._known:
                    self._known[caption] = self._backbone.encode_captions([caption])
            try:
                return join([self._known[caption] for caption in captions])
            except _NotJoinableError:
                # Captions of different length: the model knows how to fill up the shorter ones.
                return self._backbone.encode_captions(list(captions))


class _NotJoinableError(Exception):
    """These can't be put together into a batch by the trainer."""


def join(rows: Sequence[Conditioning]) -> Conditioning:
    """One batch of conditionings of one row each: Tensors along their first axis, tuples, lists and dicts of Tensors part by part."""
    first: Any = rows[0]
    if isinstance(first, Tensor):
        if any(row.shape[1:] != first.shape[1:] for row in rows):
            raise _NotJoinableError
        return torch.cat(list(rows))
    if isinstance(first, dict):
        return {key: join([row[key] for row in rows]) for key in first}
    if isinstance(first, (tuple, list)) and type(first) in (tuple, list):
        return type(first)(join(parts) for parts in zip(*rows, strict=True))
    raise _NotJoinableError


def make_captions(backbone: Backbone, trained: bool) -> Captions:
    """The way of encoding that fits: with gradients where the text encoder is trained."""
    return TrainedCaptions(backbone) if trained else CachedCaptions(backbone)


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[Any]:
    """The context in which forward passes run: half precision where asked for; for fp32 full precision, also within a host's own autocast.

    Raises:
        ConfigError: the device can't compute in that precision.
    """
    kind = torch.device(device).type
    if precision == "fp32":
        # A dtype that torch 2.1 takes without a warning; and it knows no autocast of other devices, so there is none to switch off.
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=False) if kind in ("cpu", "cuda") else nullcontext()
    if precision == "fp16" and kind == "cpu":
        raise ConfigError('training.precision = "fp16": the model is on the CPU, fp16 needs a GPU; use "fp32" or "bf16"')
    try:
        return torch.autocast(kind, dtype={"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    except RuntimeError as error:
        raise ConfigError(f'training.precision = "{precision}": this {kind} device can\'t compute in it; use "fp32"') from error
