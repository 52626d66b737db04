"""Pictures made during a training with the network as it stands, and a grid of them all to choose the best network by."""

from __future__ import annotations

import contextlib
import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from ..errors import shown
from .backbone import Backbone
from .config import OutputSettings
from .grid import make_grid

CONTROL = -1
"""Stands for a step where the picture is no preview but what the previews of its prompt follow."""

_NAME = re.compile(r"step(\d+)-(\d+)\.png")
_MOST_ROWS = 40
_TILE = 256


class Guide(Protocol):
    """What else than its prompt a preview follows."""

    prompts: tuple[str, ...]
    """Of all previews."""

    def around(self, number: int) -> AbstractContextManager[Any]:
        """Within it the model follows what belongs to that preview."""

    def size(self, number: int) -> dict[str, int]:
        """{"width", "height"} in pixels."""

    def row(self) -> tuple[str, list[np.ndarray]]:
        """(name, pictures uint8 [H,W,3]) of what is followed, for the top of the grid."""


class Previews:
    """The previews of one training: NAME-previews/step00000100-0.png, the last number being the prompt's, and grid.png.

    Args:
        folder: of the output.
        settings: prompts and seed.
        backbone: makes the pictures, with whatever is attached to it.
        guide: what else they follow (control-0.png); then the grid begins with what that is, and with the pictures without it (without-0.png).
        captions: prompts where neither settings nor guide have any.
    """

    def __init__(self, folder: Path, settings: OutputSettings, backbone: Backbone, guide: Guide | None = None, captions: tuple[str, ...] = ()):
        self.folder = folder / f"{settings.name}-previews"
        self.prompts = settings.preview_prompts or captions if guide is None else guide.prompts
        self._seed, self._backbone, self._guide = settings.preview_seed, backbone, guide
        self._controls_written = False

    def make(self, step: int, tell: Callable[[int, str, Path], None] = lambda step, prompt, path: None) -> list[str]:
        """Makes and writes the pictures of that step; what failed, in words. Nothing that fails here stops a training, and no random number is used up.

        Args:
            step: steps done.
            tell: told (step, prompt, path) of each that was written: 0 without what is trained, CONTROL what they follow.
        """
        problems = self._write_controls(tell)
        for number, prompt in enumerate(self.prompts):
            pictures = [(f"step{step:08}-{number}.png", f"after step {step}", True)]
            if self._guide is not None and not (self.folder / f"without-{number}.png").is_file():
                pictures.insert(0, (f"without-{number}.png", f"before step {step}", False))
            for name, when, guided in pictures:
                around = self._guide.around(number) if guided and self._guide is not None else nullcontext()
                failed = self._make(number, name, around, when)
                problems += failed
                if not failed and (guided is False or step or self._guide is None):
                    tell(step if guided else 0, prompt, self.folder / name)
        return problems + self._write_grid()

    def _write_controls(self, tell: Callable[[int, str, Path], None]) -> list[str]:
        """Writes what the previews follow, once; what failed, in words."""
        if self._guide is None or self._controls_written:
            return []
        self._controls_written = True
        try:
            for number, picture in enumerate(self._guide.row()[1]):
                name = f"control-{number}.png"
                self._write(Image.fromarray(picture), name)
                tell(CONTROL, self.prompts[number], self.folder / name)
        except OSError as error:
            return [f"the previews' control pictures could not be written ({error.strerror or error}): look at the disk"]
        return []

    def _make(self, number: int, name: str, around: AbstractContextManager[Any], when: str) -> list[str]:
        """Makes and writes one picture; what failed, in words."""
        size = {} if self._guide is None else self._guide.size(number)
        try:
            with own_randomness(self._backbone.device), torch.no_grad(), around:
                picture = self._backbone.preview(self.prompts[number], self._seed, **size)
            self._write(Image.fromarray(np.asarray(picture, dtype=np.uint8)), name)
        except Exception as error:  # a host's sampler, a full disk, too little memory: the training is worth more than its preview
            return [f"no preview of {shown(self.prompts[number], 40)} {when}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
        return []

    def _write_grid(self) -> list[str]:
        try:
            rows = self._rows()
            if rows:
                self._write(make_grid([*self._guided_rows(), *rows], self.prompts, _TILE), "grid.png")
        except Exception as error:  # a damaged picture among them, a full disk: as above
            return [f"no grid of the previews: {type(error).__name__}: {' '.join(str(error).split())[:200]}"]
        return []

    def _guided_rows(self) -> list[tuple[str, list[np.ndarray]]]:
        """What is followed, and the pictures without it."""
        if self._guide is None:
            return []
        files = [self.folder / f"without-{number}.png" for number in range(len(self.prompts))]
        return [self._guide.row(), ("without", [self._read(path if path.is_file() else None) for path in files])]

    def _rows(self) -> list[tuple[str, list[np.ndarray]]]:
        """(step, pictures) of all steps in the folder, those of earlier parts of a resumed training too; of very many, some evenly spread."""
        steps: dict[int, dict[int, Path]] = {}
        for path in sorted(self.folder.glob("step*.png")) if self.folder.is_dir() else []:
            found = _NAME.fullmatch(path.name)
            if found and int(found[2]) < len(self.prompts):
                steps.setdefault(int(found[1]), {})[int(found[2])] = path
        chosen = sorted(steps)
        if len(chosen) > _MOST_ROWS:
            chosen = [chosen[round(place * (len(chosen) - 1) / (_MOST_ROWS - 1))] for place in range(_MOST_ROWS)]
        return [(str(step), [self._read(steps[step].get(number)) for number in range(len(self.prompts))]) for step in chosen]

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
