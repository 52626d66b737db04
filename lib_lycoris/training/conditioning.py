"""Captions as the model's conditioning: made anew in every step while a text encoder is trained, otherwise once for each caption."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError
from .backbone import Backbone, Conditioning
from .cache import DiskCache, key_of, mark_of

_KIND = "captions"
_PROBE = "a probe of the text encoder, 1 2 3"


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
    """Each caption encoded once, without a gradient; batches are put together from that.

    Args:
        backbone: the model.
        cache: where captions are kept that `prepare` is given, so that the next training need not encode them; None for nowhere.
        about: what else than the text encoder's own numbers their encoding follows from, as clip skip and the checkpoint's hash.
        most_bytes: of what is kept in memory; beyond that the captions that were not used for longest are encoded again.
    """

    def __init__(self, backbone: Backbone, cache: DiskCache | None = None, about: str = "", most_bytes: int = 1 << 30):
        self._backbone, self._cache, self._most_bytes = backbone, cache, most_bytes
        self._known: OrderedDict[str, Conditioning] = OrderedDict()
        self._bytes = 0
        self._mark = key_of(about, mark_of(tensors_of(self._encode_one(_PROBE)))) if cache is not None else ""

    def prepare(self, captions: Sequence[str], tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Encodes these captions now, or brings them from the cache; `tell` is told (done, all) before each."""
        for number, caption in enumerate(captions):
            tell(number, len(captions))
            if caption not in self._known:
                found = self._read(caption)
                self._keep(caption, self._encode_one(caption) if found is None else found)
                if found is None:
                    self._write(caption)

    def encode(self, captions: Sequence[str]) -> Conditioning:
        rows = {}
        for caption in dict.fromkeys(captions):
            if caption not in self._known:
                self._keep(caption, self._encode_one(caption))
            self._known.move_to_end(caption)
            rows[caption] = self._known[caption]
            self._shrink()
        try:
            return join([rows[caption] for caption in captions])
        except NotJoinableError:
            # Captions of different length: the model knows how to fill up the shorter ones.
            with torch.no_grad():
                return self._backbone.encode_captions(list(captions))

    @torch.no_grad()
    def _encode_one(self, caption: str) -> Conditioning:
        return self._backbone.encode_captions([caption])

    def _keep(self, caption: str, conditioning: Conditioning) -> None:
        self._known[caption] = conditioning
        self._bytes += _size(conditioning)

    def _shrink(self) -> None:
        while self._bytes > self._most_bytes and len(self._known) > 1:
            self._bytes -= _size(self._known.popitem(last=False)[1])

    def _read(self, caption: str) -> Conditioning | None:
        found = None if self._cache is None else self._cache.read(_KIND, key_of("caption", self._mark, caption))
        return None if found is None else _unpack(found[1], {name: value.to(self._backbone.device) for name, value in found[0].items()})

    def _write(self, caption: str) -> None:
        if self._cache is None:
            return
        tensors: dict[str, Tensor] = {}
        form = _pack(self._known[caption], tensors)
        if form is not None:
            self._cache.write(_KIND, key_of("caption", self._mark, caption), tensors, form)


def _pack(value: Conditioning, tensors: dict[str, Tensor]) -> Any:
    """The form of a conditioning as plain values, with its tensors put into `tensors`; None where a file can't hold it."""
    if type(value) is Tensor and not vars(value):
        tensors[str(len(tensors))] = value
        return str(len(tensors) - 1)
    if type(value) is dict and all(isinstance(key, str) for key in value):
        parts: Any = {key: _pack(part, tensors) for key, part in value.items()}
        return None if None in parts.values() else {"dict": parts}
    if type(value) in (tuple, list):
        parts = [_pack(part, tensors) for part in value]
        return None if None in parts else {type(value).__name__: parts}
    return None


def _unpack(form: Any, tensors: Mapping[str, Tensor]) -> Conditioning:
    """The conditioning of that form."""
    if isinstance(form, str):
        return tensors[form]
    kind, parts = next(iter(form.items()))
    if kind == "dict":
        return {key: _unpack(part, tensors) for key, part in parts.items()}
    return (tuple if kind == "tuple" else list)(_unpack(part, tensors) for part in parts)


def tensors_of(value: Conditioning) -> list[Tensor]:
    """All tensors in a conditioning that can be looked into."""
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def _size(value: Conditioning) -> int:
    """Bytes of its tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(value))


class NotJoinableError(Exception):
    """These can't be put together into a batch by the trainer."""


def join(rows: Sequence[Conditioning]) -> Conditioning:
    """One batch of conditionings of one row each: Tensors along their first axis, tuples, lists and dicts of Tensors part by part."""
    first: Any = rows[0]
    if isinstance(first, Tensor):
        if any(row.shape[1:] != first.shape[1:] for row in rows):
            raise NotJoinableError
        return torch.cat(list(rows))
    if isinstance(first, dict):
        return {key: join([row[key] for row in rows]) for key in first}
    if isinstance(first, (tuple, list)) and type(first) in (tuple, list):
        return type(first)(join(parts) for parts in zip(*rows, strict=True))
    raise NotJoinableError


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
