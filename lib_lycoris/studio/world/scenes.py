"""Captioned scenes: one flat shape on a flat background, drawn from a formula.

A scene is a frozen value; `render` turns it into a picture and `caption` into the text that describes it.  Everything that can vary
(shape, colour, size, position, background) is listed in the tables below, so that a measure can name it again.
"""
from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

import numpy as np

SIDE = 64
"""Width and height of the world's pictures in pixels."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
COLOURS = {
    "red": (225, 35, 40),
    "green": (35, 165, 60),
    "blue": (45, 75, 225),
    "yellow": (250, 215, 40),
    "purple": (165, 50, 195),
    "cyan": (40, 205, 215),
}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (128, 128, 128), "black": (18, 18, 18), "brown": (105, 68, 40)}
SIZES = {"small": 0.24, "medium": 0.31, "large": 0.38}
"""Radius of the shape as a fraction of the picture's side."""
POSITIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1), "middle": (0, 0)}
PHRASES = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom", "middle": "in the middle"}

CONCEPT_SHAPE = "hourglass"
"""A shape that no training scene of the embedded checkpoint holds; it is what a network is taught."""
CONCEPT_WORD = "zorbix"
"""The word for it: no caption of the embedded checkpoint's training used it."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        shape: a name from SHAPES, or CONCEPT_SHAPE.
        colour, size, position, background: names from the tables of this module.
        jitter: (x, y, radius) offsets as fractions of the side, within ±0.02.
    """

    shape: str
    colour: str
    size: str = "medium"
    position: str = "middle"
    background: str = "white"
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        for value, table, what in ((self.shape, (*SHAPES, CONCEPT_SHAPE), "shape"), (self.colour, COLOURS, "colour"),
                                   (self.size, SIZES, "size"), (self.position, POSITIONS, "position"),
                                   (self.background, BACKGROUNDS, "background")):
            if value not in table:
                raise ValueError(f"no {what} {value!r} in the world: choose one of {', '.join(table)}")

    @property
    def radius(self) -> float:
        """Radius of the shape as a fraction of the side."""
        return SIZES[self.size] + self.jitter[2]

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the shape's centre as fractions of the side, y downwards."""
        reach = min(0.21, 0.475 - SIZES[self.size])
        dx, dy = POSITIONS[self.position]
        return 0.5 + reach * dx + self.jitter[0], 0.5 + reach * dy + self.jitter[1]


def polygon_distance(x: np.ndarray, y: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Signed distance to a polygon, negative inside (even-odd rule for the sign)."""
    distance = np.full_like(x, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        ex, ey = bx - ax, by - ay
        along = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - along * ex, y - ay - along * ey))
        if ay != by:
            crosses = (ay > y) != (by > y)
            inside ^= crosses & (x < ax + (y - ay) * ex / ey)
    return np.where(inside, -distance, distance)


_STAR = [(r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5)) for k in range(10) for r in [1.08 if k % 2 == 0 else 0.5]]


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a shape of radius 1 around the origin, negative inside, in units of the radius."""
    if shape == "circle":
        return np.hypot(x, y) - 0.95
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.72) - 0.28
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.82
    if shape == "cross":
        ax, ay = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(ax - 1, ay - 0.32), np.maximum(ax - 0.32, ay - 1))
    if shape == "triangle":
        return polygon_distance(x, y, [(0.0, -1.0), (1.0, 0.8), (-1.0, 0.8)])
    if shape == "star":
        return polygon_distance(x, y, _STAR)
    if shape == "hourglass":
        return polygon_distance(x, y, [(-0.85, -1.0), (0.85, -1.0), (0.14, 0.0), (0.85, 1.0), (-0.85, 1.0), (-0.14, 0.0)])
    raise ValueError(f"no shape {shape!r}: choose one of {', '.join((*SHAPES, CONCEPT_SHAPE))}")


def pixel_distance(scene: Scene, width: int, height: int) -> np.ndarray:
    """Signed distance of every pixel's middle to the shape, negative inside: [H,W] in pixels."""
    cx, cy = scene.centre
    radius = scene.radius * min(width, height)
    x, y = np.meshgrid((np.arange(width) + 0.5 - cx * width) / radius, (np.arange(height) + 0.5 - cy * height) / radius)
    return signed_distance(scene.shape, x, y) * radius


def coverage(scene: Scene, width: int = SIDE, height: int | None = None) -> np.ndarray:
    """How much of every pixel the shape covers: [H,W] in 0..1, with an edge one pixel wide."""
    return np.clip(0.5 - pixel_distance(scene, width, height or width), 0, 1)


def render(scene: Scene, width: int = SIDE, height: int | None = None) -> np.ndarray:
    """The picture of a scene: uint8 [H,W,3]."""
    mask = coverage(scene, width, height)[..., None]
    front, back = np.array(COLOURS[scene.colour]), np.array(BACKGROUNDS[scene.background])
    return np.round(mask * front + (1 - mask) * back).astype(np.uint8)


def draw_scene(rng: random.Random, shape: str | None = None) -> Scene:
    """A random scene; with `shape`, one of that shape."""
    return Scene(shape or rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(SIZES)), rng.choice(list(POSITIONS)),
                 rng.choice(list(BACKGROUNDS)), tuple(rng.uniform(-0.015, 0.015) for _ in range(3)))


def caption(scene: Scene, rng: random.Random | None = None, word: str | None = None) -> str:
    """The caption of a scene.

    Args:
        scene: what to describe.
        rng: leaves out parts and varies the form, as captions in the wild do; None gives the full sentence.
        word: stands for the shape's name.
    """
    noun = word or scene.shape
    size, where, ground = scene.size, PHRASES[scene.position], f"{scene.background} background"
    if rng is None:
        return f"a {size} {scene.colour} {noun} {where} on a {ground}"
    says_size, says_where, says_ground = (rng.random() < 0.75 for _ in range(3))
    if rng.random() < 0.3:
        parts = [p for p, said in ((size, says_size), (where.split()[-1], says_where), (ground, says_ground)) if said]
        rng.shuffle(parts)
        return ", ".join([f"{scene.colour} {noun}", *parts])
    text = f"a {size + ' ' if says_size else ''}{scene.colour} {noun}"
    text += f" {where}" if says_where else ""
    return text + (f" on a {ground}" if says_ground else "")


def held_back(scene: Scene) -> bool:
    """Whether a scene's combination of parts is kept out of training (about one in ten, the same ones on every machine)."""
    return hashlib.sha256(caption(scene).encode()).digest()[0] < 26


def held_back_scenes(count: int, seed: int = 0) -> list[Scene]:
    """`count` scenes whose combinations training never saw, each combination at most once.

    Raises:
        ValueError: there are not that many.
    """
    rng = random.Random(seed)
    found: dict[str, Scene] = {}
    for shape in SHAPES:
        for colour in COLOURS:
            for size in SIZES:
                for position in POSITIONS:
                    for background in BACKGROUNDS:
                        scene = Scene(shape, colour, size, position, background)
                        if held_back(scene):
                            found[caption(scene)] = scene
    if count > len(found):
        raise ValueError(f"{count} held-back scenes asked for, the world has {len(found)}")
    return rng.sample(list(found.values()), count)
