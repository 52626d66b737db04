"""How well pictures follow edge maps of scenes: the map's shape against the one that was drawn."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...patching.features import FeatureSession
from ...training.pictures import to_pixels
from ..checkpoint import StudioModel
from ..conditioning import encode_prompt
from ..generate import GenerateSettings, draw_pictures
from ..guidance import Guidance
from ..noise import PictureNoise
from ..picture import decode_latent
from ..sampler import SAMPLERS
from ..schedule import NoiseLevels, alphas_cumprod, make_sigmas
from ..steering import Texts
from .maps import edge_map, map_caption
from .measure import shape_mask
from .scenes import Scene, coverage

Adapter = Callable[[Tensor], Sequence[Tensor]]
"""A picture [N,3,H,W] in 0..1 → feature maps."""
STEPS, GUIDANCE = 20, 3.0
HIRES_STEPS, HIRES_STRENGTH = 12, 0.6
"""Of the second pass: its steps, and at which share of the time steps it begins."""


@dataclass(frozen=True, eq=False)
class FollowedMaps:
    """Pictures for edge maps, and how they agree.

    Attributes:
        scenes: whose outlines the maps were.
        maps, pictures: uint8 [H,W,3] each.
        overlaps: for each, intersection over union of the scene's shape and the picture's, 0..1.
    """

    scenes: tuple[Scene, ...]
    maps: tuple[np.ndarray, ...]
    pictures: tuple[np.ndarray, ...]
    overlaps: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean overlap."""
        return float(np.mean(self.overlaps))


def overlap(picture: np.ndarray, scene: Scene) -> float:
    """Intersection over union of what stands out in a picture uint8 [H,W,3] and the scene's shape at its size."""
    drawn, wanted = shape_mask(picture), coverage(scene, picture.shape[1], picture.shape[0]) > 0.5
    return float((drawn & wanted).sum() / (drawn | wanted).sum())


def follow_maps(model: StudioModel, adapter: Adapter | None, scenes: Sequence[Scene], width: int = 0, height: int = 0, first_seed: int = 1000) -> FollowedMaps:
    """A picture for each scene's map and caption.

    Args:
        adapter: None draws without the maps.
        width, height: in pixels; the model's own where nothing is said.
        first_seed: of the first picture, the others have the next ones.
    """
    width, height = width or model.side, height or model.side
    pictures = []
    for number, scene in enumerate(scenes):
        with _following(model, adapter, [scene], width, height):
            pictures += _draw(model, map_caption(scene), [first_seed + number], width, height)
    return _followed(scenes, pictures)


def follow_batch(model: StudioModel, adapter: Adapter, scenes: Sequence[Scene], first_seed: int = 1000) -> FollowedMaps:
    """The same in one batch: a map for each picture, and the first scene's caption for all, without its shape's name."""
    scene, side = scenes[0], model.side
    with _following(model, adapter, scenes, side, side):
        pictures = _draw(model, f"a {scene.colour} shape on a {scene.background} background", [first_seed + place for place in range(len(scenes))], side, side)
    return _followed(scenes, pictures)


def follow_hires(model: StudioModel, adapter: Adapter | None, scenes: Sequence[Scene], factor: int = 2, first_seed: int = 1000) -> FollowedMaps:
    """Pictures `factor` times as large: drawn at the model's own size, scaled up, noised and drawn again under features of the map at the new size."""
    small = follow_maps(model, adapter, scenes, first_seed=first_seed).pictures
    side, pictures = model.side * factor, []
    for number, (scene, picture) in enumerate(zip(scenes, small, strict=True)):
        with _following(model, adapter, [scene], side, side):
            pictures.append(_draw_again(model, map_caption(scene), picture, side, first_seed + number))
    return _followed(scenes, pictures)


def _following(model: StudioModel, adapter: Adapter | None, scenes: Sequence[Scene], width: int, height: int) -> FeatureSession:
    """A session, to be ended, with the features of the scenes' maps at that size."""
    session = FeatureSession(model.unet)
    if adapter is not None:
        maps = np.stack([edge_map(scene, width, height) for scene in scenes])
        with torch.no_grad():
            session.set(adapter(torch.from_numpy(maps).permute(0, 3, 1, 2).float() / 255))
    return session


def _draw(model: StudioModel, prompt: str, seeds: list[int], width: int, height: int) -> list[np.ndarray]:
    settings = GenerateSettings(prompt=prompt, seed=seeds[0], steps=STEPS, sampler="Euler", cfg=GUIDANCE, width=width, height=height, batch=len(seeds))
    return [picture.pixels for picture in draw_pictures(model, settings, Texts(prompt, ""), seeds, [])]


@torch.no_grad()
def _draw_again(model: StudioModel, prompt: str, picture: np.ndarray, side: int, seed: int) -> np.ndarray:
    """The picture at another size, noised and denoised from there, as a second pass does it."""
    from PIL import Image

    large = to_pixels(Image.fromarray(picture), (0, 0, picture.shape[1], picture.shape[0]), (side, side))
    latent = model.vae.encode(large[None].to(model.vae.device, model.vae.dtype)).latent_dist.mean * model.latent_scale
    levels = NoiseLevels(alphas_cumprod(model.betas))
    steps = round(HIRES_STEPS / HIRES_STRENGTH)
    sigmas = make_sigmas(levels, "uniform", steps)[steps - HIRES_STEPS:]
    guidance = Guidance(model, levels, [(encode_prompt(model, prompt), 1.0)], encode_prompt(model, ""), GUIDANCE)
    noise = PictureNoise([seed], tuple(latent.shape[1:]), model.device)
    result = SAMPLERS["Euler"].run(guidance, latent.float() + noise.draw() * sigmas[0], sigmas, noise.draw, lambda step, denoised: None)
    return decode_latent(model, result)


def _followed(scenes: Sequence[Scene], pictures: Sequence[np.ndarray]) -> FollowedMaps:
    maps = tuple(edge_map(scene, picture.shape[1], picture.shape[0]) for scene, picture in zip(scenes, pictures, strict=True))
    overlaps = tuple(overlap(picture, scene) for picture, scene in zip(pictures, scenes, strict=True))
    return FollowedMaps(tuple(scenes), maps, tuple(pictures), overlaps)
