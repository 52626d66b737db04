"""Edge maps of scenes whose captions say neither where the shape is nor how large, so that a picture can know it from the map alone."""
from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image

from .scenes import BACKGROUNDS, COLOURS, SHAPES, SIDE, SIZES, Scene, pixel_distance, render

_LINE = 0.7
"""Half the width of an edge map's lines, in pixels."""
_MARGIN = 0.02
"""Between shape and border, as a share of the side."""
TRAINED_SIZES = ((64, 64), (64, 64), (72, 72), (56, 64), (64, 56))
"""(width, height) of the pictures that a dataset has in turn: the world's own twice as often as its neighbours."""


def draw_map_scene(rng: random.Random) -> Scene:
    """A random scene whose shape is anywhere, of any radius between the world's smallest and largest."""
    radius = rng.uniform(min(SIZES.values()), max(SIZES.values()))
    reach = 0.5 - _MARGIN - 1.08 * radius
    x, y = rng.uniform(-reach, reach), rng.uniform(-reach, reach)
    return Scene(rng.choice(SHAPES), rng.choice(list(COLOURS)), "medium", "middle", rng.choice(list(BACKGROUNDS)), (x, y, radius - SIZES["medium"]))


def map_scenes(count: int, seed: int) -> list[Scene]:
    """So many of them; another seed, others."""
    rng = random.Random(f"maps {seed}")
    return [draw_map_scene(rng) for _ in range(count)]


def map_caption(scene: Scene) -> str:
    """What a scene's caption says beside a map: shape, colour and background."""
    return f"a {scene.colour} {scene.shape} on a {scene.background} background"


def edge_map(scene: Scene, width: int = SIDE, height: int | None = None) -> np.ndarray:
    """The shape's outline, white on black: uint8 [H,W,3]."""
    distance = np.abs(pixel_distance(scene, width, height or width))
    lines = np.round(255 * np.clip(_LINE + 0.5 - distance, 0, 1)).astype(np.uint8)
    return np.repeat(lines[..., None], 3, axis=2)


def draw_map_dataset(folder: Path | str, count: int, seed: int = 0) -> Path:
    """The folder with `count` new pictures: NAME.png, its map NAME.cond.png and its caption NAME.txt."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for number, scene in enumerate(map_scenes(count, seed)):
        size = TRAINED_SIZES[number % len(TRAINED_SIZES)]
        Image.fromarray(np.ascontiguousarray(render(scene, *size))).save(folder / f"scene-{number:04}.png")
        Image.fromarray(edge_map(scene, *size)).save(folder / f"scene-{number:04}.cond.png")
        (folder / f"scene-{number:04}.txt").write_text(map_caption(scene) + "\n", encoding="utf-8")
    return folder
