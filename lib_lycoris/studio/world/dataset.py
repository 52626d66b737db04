"""Draws folders of captioned pictures, the way users have them: name.png beside name.txt."""
from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from .scenes import BACKGROUNDS, COLOURS, CONCEPT_SHAPE, CONCEPT_WORD, Scene, caption, draw_scene, render


def concept_scenes(count: int, seed: int = 0) -> list[Scene]:
    """`count` scenes of the concept, large and in the middle as people photograph what is to be learned; no colour is on the same background twice."""
    rng = random.Random(seed)
    colours, grounds = list(COLOURS), list(BACKGROUNDS)
    rng.shuffle(colours)
    rng.shuffle(grounds)
    pairs = [(colours[i % len(colours)], grounds[(i + i // len(colours)) % len(grounds)]) for i in range(count)]
    return [Scene(CONCEPT_SHAPE, colour, "large" if i % 2 else "medium", "middle", ground, tuple(rng.uniform(-0.015, 0.015) for _ in range(3)))
            for i, (colour, ground) in enumerate(pairs)]


def draw_dataset(folder: Path | str, count: int = 8, shape: str | None = None, word: str | None = None, seed: int = 0) -> Path:
    """The folder with `count` new pictures and their captions.

    Args:
        shape: only this shape; CONCEPT_SHAPE is the one that the embedded checkpoint never saw. None: any known shape.
        word: stands for the shape in the captions; for the concept it is CONCEPT_WORD where none is given.
        seed: of what is drawn.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if shape == CONCEPT_SHAPE:
        word = word or CONCEPT_WORD
        drawn = concept_scenes(count, seed)
    else:
        rng = random.Random(seed)
        drawn = [draw_scene(rng, shape) for _ in range(count)]
    for i, scene in enumerate(drawn):
        Image.fromarray(np.ascontiguousarray(render(scene))).save(folder / f"scene-{i + 1:02}.png")
        (folder / f"scene-{i + 1:02}.txt").write_text(caption(scene, word=word) + "\n", encoding="utf-8")
    return folder
