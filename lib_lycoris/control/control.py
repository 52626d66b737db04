"""Several adapters on one UNet for a sampling: added up by their weights or through the CoAdapter fuser, turned with the steps, and off again."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.functional.words import append_words, repeat_end
from lib_lycoris.networks.adapters.fuser import TASKS, CoAdapterFuser
from lib_lycoris.patching.features import FeatureSession, Row

from .part import Part


class Control:
    """What the adapters of one sampling add to a UNet and to its texts. Use as a context manager to restore at the end.

    Attributes:
        session: has the maps on.
        channels: of the maps that fit the UNet.
    """

    def __init__(self, unet: nn.Module, fuser: CoAdapterFuser | None = None):
        """Nothing is on yet.

        Args:
            unet: in LDM's or diffusers' naming.
            fuser: through which those parts go whose task it knows; None: all just add up.

        Raises:
            ConfigError: the UNet, or the fuser's channels, are others than adapters are made for.
        """
        self.session = FeatureSession(unet)
        self.channels = self.session.channels
        if fuser is not None and fuser.channels != self.channels:
            raise ConfigError(f"the fuser's maps have {list(fuser.channels)} channels, this UNet's {list(self.channels)}: it is for another model")
        self._fuser = fuser
        self._parts: list[Part] = []
        self._sums: dict[tuple[bool, ...], tuple[list[Tensor] | None, Tensor | None]] = {}
        self._acting: tuple[bool, ...] = ()
        self._words: Tensor | None = None

    @property
    def problems(self) -> list[str]:
        """What went wrong while the model ran, in words."""
        return self.session.problems

    def add(self, part: Part) -> None:
        """Has a part count in its steps.

        Raises:
            ConfigError: its maps are not this UNet's.
        """
        found = tuple(feature.shape[1] for feature in part.features)
        if not part.speaks and found != self.channels:
            raise ConfigError(f"its maps have {list(found)} channels, the model's blocks {list(self.channels)}: it is for another model")
        self._parts.append(part)
        self._sums.clear()
        self._acting = ()

    def begin_step(self, step: float, steps: int, rows: Sequence[int | Row] | None = None) -> None:
        """The denoiser's next call is of this step. A part acts from its unit's start to its end; what changes, changes here and costs nothing in between.

        Args:
            step: from 0, the same for all calls that a sampler makes in it.
            steps: of the sampling.
            rows: for each row of the step, positive or negative, its picture's number (or a Row, for a tile of it); None: picture after picture.
        """
        acting = tuple(part.unit.acts(step, steps) for part in self._parts)
        if acting != self._acting:
            self._acting = acting
            if acting not in self._sums:
                self._sums[acting] = self._add_up([part for part, acts in zip(self._parts, acting, strict=True) if acts])
            maps, self._words = self._sums[acting]
            self.session.set(maps)
        maps = self._sums[acting][0] if any(acting) else None
        if maps is not None:
            self.session.begin_step(rows if rows is None or len(maps[0]) > 1 else _of_the_first(rows))

    def extend(self, text: Tensor, rows: Sequence[tuple[int, bool]]) -> Tensor:
        """A step's texts [B,T,D] with the words of its style adapters behind them; the texts themselves where there are none.

        Args:
            text: vectors of each row.
            rows: for each row its picture's number, and whether it is of the negative prompt: that gets its own last vectors once more.
        """
        words = self._words
        if words is None:
            return text
        if words.shape[-1] != text.shape[-1]:
            raise ConfigError(f"the style adapter's words are {words.shape[-1]} wide, the model's {text.shape[-1]}: it is for another model")
        extended = []
        for vectors, (picture, negative) in zip(text, rows, strict=True):
            own = words[picture % len(words)][None]
            extended.append(repeat_end(vectors[None], own.shape[1]) if negative else append_words(vectors[None], own))
        return torch.cat(extended)

    def restore(self) -> None:
        """Takes everything off; parts stay and come back with the next step."""
        self._acting, self._words = (), None
        self.session.restore()

    @torch.no_grad()
    def _add_up(self, parts: Sequence[Part]) -> tuple[list[Tensor] | None, Tensor | None]:
        """(the four maps, the words) of parts that act together.

        Source: the order of weights and fuser is that of TencentARC's app_coadapter.py.
        """
        weighted = [part.weighted() for part in parts]
        fused = [number for number, part in enumerate(parts) if self._fuser is not None and part.task in TASKS]
        if fused:
            given = [(parts[number].task, weighted[number]) for number in fused]
            weighted = [*weighted]
            for number, features in zip(fused, _on_device_of(self._fuser, given), strict=True):
                weighted[number] = features
        maps = [part.masked(features) for part, features in zip(parts, weighted, strict=True) if not part.speaks]
        words = [features[0] for part, features in zip(parts, weighted, strict=True) if part.speaks]
        pictures = max((len(each) for each in words), default=1)
        joined = torch.cat([each.expand(pictures, -1, -1) for each in words], dim=1) if words else None
        return ([sum(level[1:], level[0]) for level in zip(*maps, strict=True)] if maps else None), joined

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()


def _on_device_of(fuser: CoAdapterFuser, parts: list[tuple[str, list[Tensor]]]) -> list[list[Tensor]]:
    """The fuser's answer where its own numbers are; back where the features were."""
    home = fuser.seq_proj.device
    there = [feature.device for _, features in parts for feature in features][:1]
    scaled = fuser([(task, [feature.to(home) for feature in features]) for task, features in parts])
    return [[feature.to(there[0]) for feature in features] for features in scaled]


def _of_the_first(rows: Sequence[int | Row]) -> list[int | Row]:
    """Rows of maps that are one for all pictures."""
    return [0 if isinstance(row, int) else row._replace(picture=0) for row in rows]
