"""Feature maps on a UNet's block outputs, and off again without a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lib_lycoris.errors import ConfigError
from lib_lycoris.functional.feature_maps import resize_map

from . import naming
from .anchor import Hook
from .places import find_places
from .rows import Rows

_KEPT = 8  # forms of one map (sizes, devices, rows of a call) that are kept ready


class Row(NamedTuple):
    """What a row of a step gets: a picture's map, or a part of it.

    `box` is (top, left, bottom, right) as parts of the picture's height and width: what a tile of it covers. None: all.
    """

    picture: int
    box: tuple[float, float, float, float] | None = None


class FeatureSession:
    """The maps that are on a UNet. Other sessions on the same UNet add theirs, and may end in any order. Use as a context manager to restore at the end.

    Attributes:
        layout: "sd" or "sdxl": of adapters that fit.
        channels: of the four maps.
        added: how many maps were added since `set`: 0 after a sampling means that the UNet's own blocks did not run.
    """

    def __init__(self, unet: nn.Module):
        """A session with nothing on.

        Args:
            unet: SD's or SDXL's UNet in LDM's or diffusers' naming, or a module that holds it.

        Raises:
            ConfigError: it is another model.
        """
        found = find_places(unet)
        self.layout, self.channels = found.layout, found.channels
        self.added = 0
        self._unet = naming.unet_root(unet)
        self._places = found.places
        self._maps: list[_Map] = []
        self._rows: tuple[Row | None, ...] | None = None
        self._counter = Rows("maps of single pictures")
        self._wanted: tuple[Row | None, ...] | None = None
        self._handles: list[RemovableHandle] = []

    @property
    def problems(self) -> list[str]:
        """What went wrong in forwards since `set`, in words: rows that could not be told apart."""
        return list(self._counter.problems)

    def set(self, maps: Sequence[Tensor] | None, rows: Sequence[int | Row | None] | None = None) -> None:
        """Puts these maps on in place of what was on; the UNet's next call has them. None takes all off.

        Args:
            maps: for each place [P,C,h,w], for P pictures or (P = 1) for all. Weights, masks and sums over adapters are already in them. They are brought to
                a block's size, dtype and device at the first call that needs it. Gradients flow into them.
            rows: as `begin_step`.

        Raises:
            ConfigError: they are not this UNet's; what was on stays.
        """
        if maps is not None:
            self._check(maps)
        self._take_off() if maps is None else self._put_on()
        self._maps = [] if maps is None else [_Map(feature) for feature in maps]
        self.added = 0
        self._counter.problems.clear()
        self.begin_step(rows)

    def begin_step(self, rows: Sequence[int | Row | None] | None = None) -> None:
        """The next UNet call holds a step's first rows; without it calls go through the rows over and over.

        Args:
            rows: for each row of a step, which it may take several calls to get through, the number of its picture, a Row, or None for a row without maps;
                None: picture after picture, each call anew.
        """
        self._counter.begin_step()
        self._rows = None if rows is None else tuple(Row(row) if isinstance(row, int) else row for row in rows)

    def restore(self) -> None:
        """Takes everything off: no hook and no map is left."""
        self.set(None)

    def _check(self, maps: Sequence[Tensor]) -> None:
        found = tuple(feature.shape[1] if feature.ndim == 4 else 0 for feature in maps)
        if found != self.channels:
            raise ConfigError(f"maps with {list(found)} channels don't fit this UNet's blocks with {list(self.channels)}: the adapter is for another model")
        pictures = {len(feature) for feature in maps}
        if len(pictures) != 1:
            raise ConfigError(f"maps of {sorted(pictures)} pictures don't go together; give one of each picture at every place")

    def _put_on(self) -> None:
        if not self._handles:
            self._handles = [self._unet.register_forward_pre_hook(Hook(self._begin_call), with_kwargs=True)]
            for number, place in enumerate(self._places):
                self._handles.append(place.module.register_forward_hook(Hook(_Adding(self, number).add)))

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin_call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._counter.begin_call(module, args, kwargs)
        self._wanted = self._find_rows()

    def _find_rows(self) -> tuple[Row | None, ...] | None:
        """What the call's rows get; one entry stands for all of them, None for nothing at all."""
        if self._rows is None:
            pictures = len(self._maps[0].feature)
            if pictures == 1:
                return (Row(0),)
            self._counter.begin_step()  # picture after picture: nobody said how many calls a step has
            rows: tuple[Row | None, ...] = tuple(Row(number) for number in range(pictures))
        else:
            rows = self._rows
        if len(set(rows)) == 1:
            return rows[:1] if rows[0] is not None else None
        numbers = self._counter.numbers(len(rows))
        if numbers is None:
            return None
        wanted = tuple(rows[number] for number in numbers)
        if len(set(wanted)) == 1:
            wanted = wanted[:1]
        return None if wanted == (None,) else wanted

    def __enter__(self) -> FeatureSession:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


class _Adding:
    """One place of a session."""

    def __init__(self, session: FeatureSession, number: int):
        self._session, self._number = session, number

    def add(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """A forward hook: the output, to whose first tensor the map is added."""
        session = self._session
        if session._wanted is None or not session._maps:
            return None
        if isinstance(output, Tensor):
            session.added += 1
            return output + session._maps[self._number].ready(session._wanted, output)
        if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
            return (self.add(module, args, output[0]), *output[1:])
        if isinstance(getattr(output, "sample", None), Tensor):
            output.sample = self.add(module, args, output.sample)
        return output


class _Map:
    """A map [P,C,h,w], in the forms that a UNet's calls have asked for."""

    def __init__(self, feature: Tensor):
        self.feature = feature
        self._ready: dict[tuple, Tensor] = {}

    def ready(self, rows: tuple[Row | None, ...], output: Tensor) -> Tensor:
        """What is added to an output for these rows: [1 or B,C,h,w] in its size, dtype and device."""
        size = tuple(output.shape[-2:])
        traced = torch.is_grad_enabled() and self.feature.requires_grad
        key = (rows, size, output.dtype, output.device, traced)
        found = self._ready.get(key)
        if found is None:
            if len(self._ready) >= _KEPT:
                self._ready.pop(next(iter(self._ready)))
            found = self._ready[key] = self._make(rows, size, output)
        return found

    def _make(self, rows: tuple[Row | None, ...], size: tuple[int, int], output: Tensor) -> Tensor:
        feature = self.feature.to(output.device)
        if all(row is not None and row.box is None for row in rows):
            numbers = [row.picture for row in rows]
            picked = feature if numbers == list(range(len(feature))) else feature[numbers]
            return resize_map(picked, size).to(output.dtype)
        pieces = {row: self._piece(feature, row, size) for row in dict.fromkeys(rows)}
        return torch.cat([pieces[row] for row in rows]).to(output.dtype)

    @staticmethod
    def _piece(feature: Tensor, row: Row | None, size: tuple[int, int]) -> Tensor:
        if row is None:
            return feature.new_zeros(1, feature.shape[1], *size)
        own = feature[row.picture:row.picture + 1]
        if row.box is not None:
            height, width = own.shape[-2:]
            top, left = round(row.box[0] * height), round(row.box[1] * width)
            own = own[..., top:max(top + 1, round(row.box[2] * height)), left:max(left + 1, round(row.box[3] * width))]
        return resize_map(own, size)
