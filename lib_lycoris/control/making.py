"""From a unit and its pictures to what its adapter makes of them: which preprocessor, the control map, the features."""

from __future__ import annotations

import hashlib
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.adapters.parts import Adapter
from lib_lycoris.preprocess.choose import choose_preprocessor, choose_resolution, told_values
from lib_lycoris.preprocess.table import Preprocessor, control_map, find_preprocessor
from lib_lycoris.prompt.unit import AUTO, Unit

See = Callable[[Any], Tensor]
"""CLIP's picture encoder: a picture [H,W,3] uint8 → its last hidden states [1,257,D], before the final norm."""
_KEPT = 16  # pictures per adapter whose features are kept
_FINEST = 4096  # the largest of unit.processor_resolution


def settle(unit: Unit, facts: Any, more: Mapping[str, Preprocessor] | None = None) -> tuple[Preprocessor, int | None]:
    """(the preprocessor that a unit means, the pixels that it works at, None for those of the picture that is made).

    Args:
        unit: its preprocessor may be "auto": that of the adapter.
        facts: the adapter's files.adapters.AdapterFacts, or None.
        more: a host's own preprocessors.

    Raises:
        ConfigError: no preprocessor has that name.
    """
    name = unit.preprocessor
    if name == AUTO:
        name = "none" if facts is None or facts.kind == "style" else choose_preprocessor([facts.preprocessor, facts.task, unit.adapter])
    resolution = unit.processor_resolution or (choose_resolution(facts.resolution, facts.layout, name) if facts is not None else None)
    return find_preprocessor(name, more), resolution


def settled_unit(unit: Unit, facts: Any, more: Mapping[str, Preprocessor] | None = None) -> Unit:
    """The unit as it can be said again, whatever "auto" means elsewhere: preprocessor, resolution, and the values that the adapter was trained with.

    Values that the unit itself gives stay; those of a preprocessor that it names, too. The arguments are `settle`'s.

    Raises:
        ConfigError: no preprocessor has that name.
    """
    preprocessor, resolution = settle(unit, facts, more)
    told: dict[str, Any] = {"preprocessor": preprocessor.name, "processor_resolution": resolution}
    if unit.preprocessor == AUTO and facts is not None and choose_preprocessor([facts.preprocessor]) == preprocessor.name:
        values = told_values(preprocessor, facts.preprocessor_values)
        for field, parameter in zip(("threshold_a", "threshold_b"), preprocessor.parameters, strict=False):
            if getattr(unit, field) is None and parameter.name in values:
                told[field] = float(values[parameter.name])
        if not unit.palette and "palette" in values:
            told["palette"] = values["palette"]
    return replace(unit, **told)


def grown_resolution(resolution: int | None, first: tuple[int, int], size: tuple[int, int], picture: Any = None) -> int | None:
    """A preprocessor's resolution for a hires pass: as much larger as the picture that is made, as far as the one that is looked at has so many pixels.

    A map that was merely enlarged would have lines as much thicker as no adapter knows them.

    Args:
        resolution: for the first pass; None: that of the picture that is made.
        first: (width, height) of the first pass.
        size: of this one.
        picture: [h,w,3] uint8; None: nothing is looked at.
    """
    if resolution is None:
        return None
    wanted = round(resolution * min(size) / min(first))
    return min(_FINEST, max(resolution, wanted if picture is None else min(wanted, *picture.shape[:2])))


def make_map(unit: Unit, facts: Any, picture: Any, size: tuple[int, int], more: Mapping[str, Preprocessor] | None = None) -> Any:
    """The control map [H,W,3] uint8 for a picture of `size` (width, height) that is to be made; the other arguments are `settle`'s.

    Raises:
        ConfigError: no picture where one is needed, or a value that will not do.
    """
    unit = settled_unit(unit, facts, more)
    preprocessor = find_preprocessor(unit.preprocessor, more)
    values = preprocessor.make_values(unit.threshold_a, unit.threshold_b, unit.palette, unit.keypoints)
    return control_map(preprocessor, values, size, picture, unit.processor_resolution, unit.resize_mode)


class FeatureCache:
    """Features of control maps, computed once for each adapter, map and size, as long as the adapter is in memory."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Adapter, OrderedDict[tuple, list[Tensor]]] = weakref.WeakKeyDictionary()

    def features(self, adapter: Adapter, maps: Sequence[Any], device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """Four maps [P,C,h,w] float32 on `device` of P control maps [H,W,3] uint8 of one size.

        Args:
            adapter: a full or light one; it goes back to where it was.
            maps: for one picture or for each of a batch.
            device: where it is computed, if there is room, and where the features stay.
        """
        return self._all(adapter, maps, device, lambda picture: adapter(_pixels(picture).to(_device_of(adapter))))

    def words(self, adapter: Adapter, pictures: Sequence[Any], see: See, device: torch.device | str = "cpu") -> tuple[Tensor, ...]:
        """The words ([P,K,D],) of a style adapter for P pictures [H,W,3] uint8 of any size."""
        return self._all(adapter, pictures, device, lambda picture: adapter(see(picture).float().to(_device_of(adapter))))

    @torch.no_grad()
    def _all(self, adapter: Adapter, pictures: Sequence[Any], device: torch.device | str, make: Callable[[Any], list[Tensor]]) -> tuple[Tensor, ...]:
        kept = self._known.setdefault(adapter, OrderedDict())
        keys = [(picture.shape, hashlib.sha1(np.ascontiguousarray(picture).tobytes(), usedforsecurity=False).digest()) for picture in pictures]
        missing = {key: picture for key, picture in zip(keys, pictures, strict=True) if key not in kept}
        if missing:
            for key, features in _run(adapter, missing, device, make).items():
                kept[key] = features
        for key in keys:
            kept.move_to_end(key)
        found = [kept[key] for key in keys]
        while len(kept) > max(_KEPT, len(set(keys))):
            kept.popitem(last=False)
        picked = found[:1] if len(set(keys)) == 1 else found
        return tuple(torch.cat([features[level].to(device) for features in picked]) for level in range(len(found[0])))


def _run(adapter: Adapter, pictures: Mapping[tuple, Any], device: torch.device | str, make: Callable[[Any], list[Tensor]]) -> dict[tuple, list[Tensor]]:
    """Each picture's features, computed on the device, or on the CPU where the device has no room."""
    home = _device_of(adapter)
    for place in dict.fromkeys((torch.device(device), torch.device("cpu"))):
        try:
            adapter.to(place)
            return {key: make(picture) for key, picture in pictures.items()}
        except torch.cuda.OutOfMemoryError:
            if place.type == "cpu":
                raise
        finally:
            adapter.to(home)
    raise ConfigError("there is no device to run an adapter on")


def _device_of(adapter: Adapter) -> torch.device:
    return next(adapter.parameters()).device


def _pixels(picture: Any) -> Tensor:
    """[H,W,3] uint8 → [1,3,H,W] float32 in 0…1."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255
