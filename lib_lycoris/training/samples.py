"""Pictures as the trainer asks for them: each sample of each epoch with the crop, mirroring and caption that are drawn for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .captions import Drawn, compose
from .control_maps import ControlMaps
from .dataset import Picture, draws_of
from .draws import make_generator
from .latents import Encoded, Latents, Variant
from .material import Framing


class Samples:
    """A Material over pictures whose latents were encoded.

    Args:
        pictures: each is as many samples as it has repeats.
        latents: of all of them.
        seed: of what is drawn.
        device: of the model.
        controls: of all of them, where an adapter is trained.
    """

    def __init__(
        self, pictures: Sequence[Picture], latents: Latents, seed: int, device: torch.device | str, controls: ControlMaps | None = None
    ):
        self._controls = controls
        self._pictures = [pictures[index] for index in draws_of(pictures)]
        self._latents, self._seed, self._device = latents, seed, device
        self._sizes = sorted({picture.frame.size for picture in pictures})
        self.samples = len(self._pictures)

    def bucket(self, sample: int) -> int:
        return self._sizes.index(self._pictures[sample].frame.size)

    def latents(self, sample: int, epoch: int) -> Tensor:
        return self._encoded(sample, epoch).latents.to(self._device)

    def caption(self, sample: int, epoch: int) -> str:
        picture = self._pictures[sample]
        return compose(picture.texts, picture.subset.words, Drawn(self._seed, epoch, sample), picture.concept, picture.path.stem)

    def mask(self, sample: int, epoch: int) -> Tensor | None:
        mask = self._encoded(sample, epoch).mask
        return None if mask is None else mask.to(self._device)

    def framing(self, sample: int, epoch: int) -> Framing | None:
        variant = self.variant(sample, epoch)
        return self._pictures[sample].frame.framing(variant.place, variant.mirrored)

    def control(self, sample: int, epoch: int) -> Tensor | None:
        if self._controls is None:
            return None
        return self._controls.get(self._pictures[sample], self.variant(sample, epoch)).to(self._device)

    def variant(self, sample: int, epoch: int) -> Variant:
        """Which crop is drawn, and whether it is mirrored."""
        picture = self._pictures[sample]
        if not picture.subset.flip and not picture.subset.random_crop:
            return Variant()
        generator = make_generator(self._seed, "variant", epoch, sample)
        mirrored = bool(torch.rand((), generator=generator) < 0.5) and picture.subset.flip
        place = int(torch.randint(max(picture.frame.places, 1), (), generator=generator))
        return Variant(place if picture.subset.random_crop and picture.frame.places > 1 else None, mirrored)

    def fixed_captions(self) -> list[str]:
        """The captions that are the same in every draw, so that they can be encoded beforehand."""
        fixed = (picture for picture in self._pictures if not picture.subset.words.may_vary(picture.texts))
        return list(dict.fromkeys(picture.caption for picture in fixed))

    def _encoded(self, sample: int, epoch: int) -> Encoded:
        return self._latents.get(self._pictures[sample], self.variant(sample, epoch))
