"""What is learned from, as the trainer asks for it: sample by sample, whatever it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Framing:
    """How a picture came to its size, for models that are told so (SDXL). All in pixels, as (height, width) or (top, left)."""

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


class Material(Protocol):
    """The samples of an epoch, each picture as often as it counts. What differs from epoch to epoch follows from (seed, epoch, sample) alone."""

    samples: int

    def bucket(self, sample: int) -> int:
        """A number for the sample's size; the rows of one batch share it."""

    def latents(self, sample: int, epoch: int) -> Tensor:
        """Latents [4,h,w] float32 on the model's device."""

    def caption(self, sample: int, epoch: int) -> str:
        """What the picture shows, with whatever is shuffled or left out in that epoch; the dropout of the whole caption is the trainer's."""

    def mask(self, sample: int, epoch: int) -> Tensor | None:
        """Weights of the loss [1,h,w] float32 on the model's device; None for none."""

    def framing(self, sample: int, epoch: int) -> Framing | None:
        """How the picture came to its size, or None where nobody asks."""

    def control(self, sample: int, epoch: int) -> Tensor | None:
        """The control picture [C,H,W] in 0..1 float32 on the model's device, of the latents' crop and mirroring; None where there is none."""


class PlainMaterial:
    """Latents and captions as they are, the same in every epoch."""

    def __init__(self, latents: Sequence[Tensor], captions: Sequence[str], controls: Sequence[Tensor] | None = None):
        self._latents, self._captions, self._controls = latents, captions, controls
        self.samples = len(latents)
        shapes = list(dict.fromkeys(tensor.shape for tensor in latents))
        self._buckets = [shapes.index(tensor.shape) for tensor in latents]

    def bucket(self, sample: int) -> int:
        return self._buckets[sample]

    def latents(self, sample: int, epoch: int) -> Tensor:
        return self._latents[sample]

    def caption(self, sample: int, epoch: int) -> str:
        return self._captions[sample]

    def mask(self, sample: int, epoch: int) -> Tensor | None:
        return None

    def framing(self, sample: int, epoch: int) -> Framing | None:
        return None

    def control(self, sample: int, epoch: int) -> Tensor | None:
        return None if self._controls is None else self._controls[sample]


class Part:
    """Some samples of a material, numbered anew."""

    def __init__(self, whole: Material, samples: Sequence[int]):
        self._whole, self._samples = whole, list(samples)
        self.samples = len(self._samples)

    def bucket(self, sample: int) -> int:
        return self._whole.bucket(self._samples[sample])

    def latents(self, sample: int, epoch: int) -> Tensor:
        return self._whole.latents(self._samples[sample], epoch)

    def caption(self, sample: int, epoch: int) -> str:
        return self._whole.caption(self._samples[sample], epoch)

    def mask(self, sample: int, epoch: int) -> Tensor | None:
        return self._whole.mask(self._samples[sample], epoch)

    def framing(self, sample: int, epoch: int) -> Framing | None:
        return self._whole.framing(self._samples[sample], epoch)

    def control(self, sample: int, epoch: int) -> Tensor | None:
        return self._whole.control(self._samples[sample], epoch)
