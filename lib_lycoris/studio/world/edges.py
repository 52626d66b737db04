"""The embedded adapter: how it is trained on edge maps of scenes, and the figures that show that it works."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ...library.adapters import open_adapter
from ...training.config import TrainConfig
from ...training.grid import make_grid
from ...training.loop import train
from ..backbone import StudioBackbone
from ..checkpoint import load_checkpoint
from .files import EDGES
from .follow import FollowedMaps, follow_batch, follow_hires, follow_maps
from .maps import draw_map_dataset, map_scenes

PICTURES, STEPS = 1500, 3000
OTHER_SIZES = ((72, 72), (80, 72), (72, 88), (104, 80))
"""(width, height), multiples of 8 but not of 64, of which all but the first were in no training."""
_SHOWN = 10


def edges_config(folder: Path, out: Path, steps: int = STEPS, **settings: Any) -> TrainConfig:
    """The training of the embedded adapter on a folder of `draw_map_dataset`; `settings` are others, as training__seed=2."""
    values = {
        "data": {"folders": [str(folder)], "resolution": 72, "bucket_step": 8, "bucket_min": 64, "upscale": False, "batch_size": 32, "flip": True,
                 "caption_dropout": 0.1},
        "network": {"kind": "adapter"}, "adapter": {"kind": "light", "in_channels": 1},
        "training": {"steps": steps, "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": min(50, steps // 4), "ema": 0.99, "seed": 1},
        "validation": {"share": 0.02, "every": 250}, "output": {"name": "edges", "folder": str(out), "save_every": 100, "preview_every": 500},
    }
    config = TrainConfig.from_dict(values)
    for key, value in settings.items():
        config = config.set(key.replace("__", "."), value)
    return config


def train_edges(out: Path, steps: int = STEPS, pictures: int = PICTURES, on_step: Callable[[Any], None] | None = None, resume: bool = False) -> Path:
    """The file of an adapter trained on freshly drawn scenes, in the folder `out`; with `resume` it goes on where it was stopped."""
    folder = draw_map_dataset(out / "maps", pictures, seed=1)
    return train(edges_config(folder, out, steps), StudioBackbone(load_checkpoint()), on_step, resume=resume).path


@dataclass(frozen=True, eq=False)
class Proof:
    """What an adapter does on maps that it was not trained on, by what was asked of it: "64×64", "72×88", "twice as large", "a batch", "without"."""

    parts: dict[str, FollowedMaps]

    def render(self) -> str:
        """A line for each, with the mean and the worst overlap."""
        rows = ((name, found.mean, min(found.overlaps), len(found.overlaps)) for name, found in self.parts.items())
        return "\n".join(f"{name}: {mean:.3f} on average, {worst:.2f} at worst, of {count}" for name, mean, worst, count in rows)

    def grid(self) -> Image.Image:
        """For each the first maps, and below them the pictures."""
        rows = [(f"{name}\n{what}", pictures[:_SHOWN]) for name, found in self.parts.items() for what, pictures in (("maps", found.maps), ("", found.pictures))]
        return make_grid(rows, tile=96)


def prove(adapter: Path | None = None, count: int = 100, few: int = 20, say: Callable[[str], None] = lambda line: None) -> Proof:
    """The proof of an adapter on the embedded checkpoint; None: the embedded one.

    Args:
        count: of pairs at the checkpoint's own size, and as many without the adapter.
        few: of pairs for each of the others.
        say: is told what is drawn next.
    """
    model, guide, parts = load_checkpoint(), open_adapter(adapter or EDGES), {}
    asked = {
        f"{model.side}×{model.side}": lambda: follow_maps(model, guide, map_scenes(count, seed=900)),
        "without": lambda: follow_maps(model, None, map_scenes(count, seed=900)),
        **{f"{width}×{height}": lambda width=width, height=height: follow_maps(model, guide, map_scenes(few, seed=901), width, height)
           for width, height in OTHER_SIZES},
        "twice as large": lambda: follow_hires(model, guide, map_scenes(few, seed=902)),
        "a batch": lambda: follow_batch(model, guide, map_scenes(few, seed=903)),
    }
    for name, draw in asked.items():
        say(name)
        parts[name] = draw()
    return Proof(parts)
