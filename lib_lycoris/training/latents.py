"""Pictures as latents, with their masks: every crop and mirror image that a draw may want is encoded once, before the first step.

A picture's latents are one sample of the autoencoder's posterior, drawn from the picture's content and crop alone: neither the training's seed nor the
other pictures change it, so that what is cached is exactly what would be encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from ..errors import TrainingError
from .backbone import Backbone
from .cache import DiskCache, key_of, mark_of
from .dataset import Picture
from .draws import make_generator
from .masks import alpha_mask, read_mask, to_cells
from .pictures import content_hash, open_image, orientation, read_bytes, to_pixels, to_rgb
from .processes import Processes

_KIND = "latents"
_PROBE = 64


@dataclass(frozen=True)
class Variant:
    """One way in which a picture is seen: which crop (None: the middle), and whether from the other side."""

    place: int | None = None
    mirrored: bool = False


@dataclass(frozen=True)
class Encoded:
    """Latents [4,h,w] float32, and the mask [1,h,w] float32 of a picture that has one."""

    latents: Tensor
    mask: Tensor | None


def variants_of(picture: Picture) -> list[Variant]:
    """All ways in which a draw may see the picture."""
    places = range(picture.frame.places) if picture.subset.random_crop and picture.frame.places > 1 else (None,)
    return [Variant(place, mirrored) for mirrored in ((False, True) if picture.subset.flip else (False,)) for place in places]


class Latents:
    """What was encoded, by picture and variant; in memory, and where a cache is given on the disk too.

    Args:
        backbone: the model.
        mask_floor: the weight of what is masked out entirely.
        cache: None keeps all in memory alone.
    """

    def __init__(self, backbone: Backbone, mask_floor: float = 0.0, cache: DiskCache | None = None):
        self._backbone, self._floor, self._cache = backbone, mask_floor, cache
        self._held: dict[str, Encoded] = {}
        self._mark = _mark(backbone) if cache is not None else ""
        self._mask_contents: dict[Path, str] = {}
        self.encoded = 0
        """How often the autoencoder was asked."""

    def encode(self, pictures: Sequence[Picture], tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Encodes whatever of these pictures is not there yet; `tell` is told (done, all) before each.

        Raises:
            DatasetError: a picture or mask can't be read.
            TrainingError: the autoencoder gives no numbers for a picture.
        """
        for number, picture in enumerate(pictures):
            tell(number, len(pictures))
            missing = [variant for variant in variants_of(picture) if not self._recall(picture, variant)]
            if missing:
                self._encode(picture, missing)
            if self._cache is not None:
                self._cache.note(picture.content)

    def share(self, pictures: Sequence[Picture], processes: Processes) -> None:
        """Hands all of them to all processes, after each has encoded its share: the first of so many pictures as there are processes, the second, …"""
        for number, picture in enumerate(pictures):
            owner, keys = number % processes.count, [self._key(picture, variant) for variant in variants_of(picture)]
            layers, packed = torch.zeros(2, dtype=torch.long), None
            if owner == processes.rank:
                held = [self._held[key] for key in keys]
                packed = torch.stack([one.latents if one.mask is None else torch.cat([one.latents, one.mask]) for one in held])
                layers = torch.tensor([len(held[0].latents), int(held[0].mask is not None)])
            processes.copy_(layers, owner)
            channels, masked = layers.tolist()
            if packed is None:
                packed = torch.empty(len(keys), channels + masked, picture.frame.size[1] // 8, picture.frame.size[0] // 8)
            processes.copy_(packed, owner)
            self._held.update({key: Encoded(one[:channels], one[channels:] if masked else None) for key, one in zip(keys, packed, strict=True)})

    def get(self, picture: Picture, variant: Variant) -> Encoded:
        """What `encode` made of that variant of the picture."""
        return self._held[self._key(picture, variant)]

    def _recall(self, picture: Picture, variant: Variant) -> bool:
        """Whether it is in memory, brought there from the disk where need be."""
        key = self._key(picture, variant)
        if key not in self._held and self._cache is not None:
            found = self._cache.read(_KIND, key_of(key, self._mark))
            if found is not None and _fits(found[0], picture):
                self._held[key] = Encoded(found[0]["latents"], found[0].get("mask"))
        return key in self._held

    def _encode(self, picture: Picture, variants: Sequence[Variant]) -> None:
        data = read_bytes(picture.path)
        whole = open_image(picture.path, data)
        mask = self._mask(picture, whole, data)
        image = to_rgb(whole, None if picture.subset.masks == "alpha" else "white")
        for variant in variants:
            key, box, size = self._key(picture, variant), picture.frame.box(variant.place), picture.frame.size
            pixels = to_pixels(image, box, size)
            cells = None if mask is None else to_cells(mask, box, size, self._floor)
            if variant.mirrored:
                pixels, cells = pixels.flip(-1), None if cells is None else cells.flip(-1)
            made = Encoded(self._latents(picture, pixels, key).cpu(), cells)
            self._held[key] = made
            if self._cache is not None:
                tensors = {"latents": made.latents} if cells is None else {"latents": made.latents, "mask": cells}
                self._cache.write(_KIND, key_of(key, self._mark), tensors)

    @torch.no_grad()
    def _latents(self, picture: Picture, pixels: Tensor, key: str) -> Tensor:
        self.encoded += 1
        found = self._backbone.encode_pictures(pixels[None].to(self._backbone.device), make_generator("latents", key))[0].float()
        if not torch.isfinite(found).all():
            advice = "load the model in float32, or take the picture out"
            raise TrainingError(f"picture {picture.path}: the autoencoder gives values that are not finite; {advice}")
        return found

    def _mask(self, picture: Picture, image: Image.Image, data: bytes) -> Image.Image | None:
        if picture.subset.masks == "alpha":
            return alpha_mask(image)
        return None if picture.mask is None else read_mask(picture.mask, image.size, orientation(picture.path, data))

    def _key(self, picture: Picture, variant: Variant) -> str:
        """What the latents follow from, but for the model."""
        box = ",".join(f"{side:.3f}" for side in picture.frame.box(variant.place))
        masks = [] if picture.subset.masks == "none" else [picture.subset.masks, self._mask_content(picture), f"{self._floor:g}"]
        return key_of("latents", picture.content, picture.frame.size, box, variant.mirrored, *masks)

    def _mask_content(self, picture: Picture) -> str:
        if picture.mask is None:
            return ""
        if picture.mask not in self._mask_contents:
            self._mask_contents[picture.mask] = content_hash(read_bytes(picture.mask))
        return self._mask_contents[picture.mask]


def _fits(tensors: dict[str, Tensor], picture: Picture) -> bool:
    latents = tensors.get("latents")
    return latents is not None and latents.dim() == 3 and tuple(latents.shape[1:]) == (picture.frame.size[1] // 8, picture.frame.size[0] // 8)


@torch.no_grad()
def _mark(backbone: Backbone) -> str:
    """What names the autoencoder: what it makes of one small picture of slopes, whatever file and precision it came from."""
    slope = torch.linspace(-1, 1, _PROBE)
    picture = torch.stack([slope.expand(_PROBE, -1), slope[:, None].expand(-1, _PROBE), slope.outer(slope)])
    return mark_of([backbone.encode_pictures(picture[None].to(backbone.device), make_generator("probe"))])
