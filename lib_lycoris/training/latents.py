"""Pictures as latents, encoded once and kept in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import TrainingError
from .backbone import Backbone
from .dataset import Dataset, read_picture
from .draws import make_generator


def encode_dataset(
    backbone: Backbone, dataset: Dataset, resolution: int, seed: int, tell: Callable[[int, int], None] | None = None
) -> list[Tensor]:
    """Latents [4,h,w] float32 of every picture, on the model's device. Each is drawn from (seed, index) alone and encoded by itself.

    Args:
        tell: told (done, all).

    Raises:
        DatasetError: a picture can't be read.
        TrainingError: the autoencoder gives no numbers for a picture.
    """
    latents = []
    with torch.no_grad():
        for index, picture in enumerate(dataset.pictures):
            if tell is not None:
                tell(index, len(dataset.pictures))
            pixels = read_picture(picture.path, resolution)[None].to(backbone.device)
            encoded = backbone.encode_pictures(pixels, make_generator(seed, "latents", index))[0].float()
            if not torch.isfinite(encoded).all():
                advice = "load the model in float32, or take the picture out"
                raise TrainingError(f"picture {picture.path}: the autoencoder gives values that are not finite; {advice}")
            latents.append(encoded.to(backbone.device))
    return latents
