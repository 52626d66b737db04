"""Pictures made during a training with the network as it stands, and a grid of them all to choose the best network by."""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import shown
from .backbone import Backbone
from .config import OutputSettings
from .grid import make_grid

_NAME = re.compile(r"step(\d+)-(\d+)\.png")
_MOST_ROWS = 40
_TILE = 256


class Previews:
    """The previews of one training: NAME-previews/step00000100-0.png, the last number being the prompt's, and grid.png.

    Args:
        folder: of the output.
        settings: prompts and seed.
        backbone: makes the pictures, with whatever is attached to it.
        captions: prompts where the settings have none.
    """

    def __init__(self, folder: Path, settings: OutputSettings, backbone: Backbone, captions: tuple[str, ...] = ()):
        self.folder = folder / f"{settings.name}-previews"
        self._prompts, self._seed, self._backbone = settings.preview_prompts or captions, settings.preview_seed, backbone

    def make(self, step: int, tell: Callable[[int, str, Path], None] = lambda step, prompt, path: None) -> list[str]:
        """Makes and writes the pictures of that step; what failed, in words. Nothing that fails here stops a training, and no random number is used up.

        Args:
            step: steps done.
            tell: told (step, prompt, path) of each that was written.
        """
        problems = []
        for number, prompt in enumerate(self._prompts):
            try:
                with own_randomness(self._backbone.device), torch.no_grad():
                    picture = self._backbone.preview(prompt, self._seed)
                name = f"step{step:08}-{number}.png"
                self._write(Image.fromarray(np.asarray(picture, dtype=np.uint8)), name)
                tell(step, prompt, self.folder / name)
            except Exception as error:  # a host's sampler, a full disk, too little memory: the training is worth more than its preview
                problems.append(f"no preview of {shown(prompt, 40)} after step {step}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return problems + self._write_grid()

    def _write_grid(self) -> list[str]:
        try:
            rows = self._rows()
            if rows:
                self._write(make_grid(rows, self._prompts, _TILE), "grid.png")
        except Exception as error:  # a damaged picture among them, a full disk: as above
            return [f"no grid of the previews: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
        return []

    def _rows(self) -> list[tuple[str, list[np.ndarray]]]:
        """(step, pictures) of all steps in the folder, those of earlier parts of a resumed training too; of very many, some evenly spread."""
        steps: dict[int, dict[int, Path]] = {}
        for path in sorted(self.folder.glob("step*.png")) if self.folder.is_dir() else []:
            found = _NAME.fullmatch(path.name)
            if found and int(found[2]) < len(self._prompts):
                steps.setdefault(int(found[1]), {})[int(found[2])] = path
        chosen = sorted(steps)
        if len(chosen) > _MOST_ROWS:
            chosen = [chosen[round(place * (len(chosen) - 1) / (_MOST_ROWS - 1))] for place in range(_MOST_ROWS)]
        return [(str(step), [self._read(steps[step].get(number)) for number in range(len(self._prompts))]) for step in chosen]

    def _read(self, path: Path | None) -> np.ndarray:
        if path is None:
            return np.full((_TILE, _TILE, 3), 255, dtype=np.uint8)
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))

    def _write(self, picture: Image.Image, name: str) -> None:
        """Writes whole pictures only."""
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{name}.{os.getpid()}.new"
        try:
            picture.save(draft, format="PNG")
            os.replace(draft, self.folder / name)
        finally:
            draft.unlink(missing_ok=True)


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """After it, Python's, numpy's and torch's own random numbers go on as if nothing had been drawn within."""
    before = random.getstate(), np.random.get_state()
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
