"""How well a checkpoint, with or without a network, draws what captions of the world ask for."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import StudioModel, load_checkpoint
from ..generate import GenerateSettings, Networks, generate
from .measure import read_picture
from .scenes import Scene, caption, held_back_scenes

PARTS = ("shape", "colour", "size", "position", "background")


@dataclass(frozen=True, eq=False)
class Followed:
    """Pictures for captions, and which parts of the captions they show.

    Attributes:
        scenes: what was asked for.
        pictures: uint8 [H,W,3] each.
        right: bool [N, len(PARTS)].
    """

    scenes: tuple[Scene, ...]
    pictures: tuple[np.ndarray, ...]
    right: np.ndarray

    def share(self, *parts: str) -> float:
        """Share of the pictures, 0..1, in which all these parts are right."""
        return float(self.right[:, [PARTS.index(part) for part in parts]].all(1).mean())

    def render(self) -> str:
        """One line with every part's share."""
        return f"{len(self.scenes)} captions: " + ", ".join(f"{part} {self.share(part):.1%}" for part in PARTS)


def draw_scenes(model: StudioModel, asked: Sequence[Scene], word: str | None = None, networks: Networks | None = None, tag: str = "", first_seed: int = 1000,
                sampler: str = "Euler", steps: int = 20, cfg: float = 5.0, on_picture: Callable[[int], None] | None = None) -> Followed:
    """Pictures for the full captions of scenes, one seed each, and how they measure up.

    Args:
        word: stands for the shape in the captions.
        networks, tag: apply what `tag`, as "<lyco:name:1>", asks for.
        on_picture: told how many pictures are done.
    """
    pictures = []
    for i, scene in enumerate(asked):
        settings = GenerateSettings(prompt=f"{caption(scene, word=word)}{' ' + tag if tag else ''}", seed=first_seed + i, steps=steps, sampler=sampler, cfg=cfg,
                                    width=model.side, height=model.side)
        pictures.append(generate(model, settings, networks)[0].pixels)
        if on_picture is not None:
            on_picture(i + 1)
    readings = [read_picture(picture) for picture in pictures]
    right = np.array([[getattr(found, part) == getattr(scene, part) for part in PARTS] for scene, found in zip(asked, readings, strict=True)])
    return Followed(tuple(asked), tuple(pictures), right)


def followed_captions(checkpoint: Path | str | None = None, count: int = 200, sampler: str = "Euler", steps: int = 20, cfg: float = 5.0) -> Followed:
    """How many of `count` held-back captions a checkpoint follows; None is the embedded one."""
    return draw_scenes(load_checkpoint(checkpoint), held_back_scenes(count), sampler=sampler, steps=steps, cfg=cfg)
