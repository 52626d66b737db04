"""Class pictures for DreamBooth's prior preservation, made by the model itself before it is trained.

Source: Ruiz et al. 2023, "DreamBooth: Fine Tuning Text-to-Image Diffusion Models for Subject-Driven Generation", section 3.3.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..errors import TrainingError
from .backbone import Backbone
from .captions import read_text
from .config import TrainConfig
from .pictures import PICTURES

_MADE = re.compile(r"class-(\d+)\.png")
_SEEDS = 2**32


def prior_folder(config: TrainConfig) -> Path:
    """The folder of the class pictures: data.prior_folder, or NAME-class in the output folder."""
    if config.data.prior_folder is not None:
        return Path(config.data.prior_folder).expanduser()
    return Path(config.output.folder).expanduser() / f"{config.output.name}-class"


def missing_pictures(config: TrainConfig) -> int:
    """How many class pictures are to be made: none without a prompt to make them from."""
    if config.data.prior_prompt is None:
        return 0
    return max(0, config.data.prior_pictures - count_pictures(prior_folder(config)))


def missing_seeds(config: TrainConfig) -> list[int]:
    """Of the class pictures that are to be made. Each has a seed of its own, which its name tells; one whose picture is there is not used again."""
    return list(islice(_free_seeds(prior_folder(config), config.training.seed), missing_pictures(config)))


def odd_about_prior(config: TrainConfig) -> list[str]:
    """In words, what is odd about the class pictures that are there."""
    return [] if config.data.prior_prompt is None else _of_another_prompt(prior_folder(config), config.data.prior_prompt)


def count_pictures(folder: Path) -> int:
    """How many pictures are in the folder and in those in it."""
    return sum(1 for _ in _pictures(folder))


def make_pictures(
    config: TrainConfig, backbone: Backbone, seeds: Sequence[int], tell: Callable[[int, int], None] = lambda done, total: None,
    stops: Callable[[], bool] = lambda: False,
) -> None:
    """Makes the class pictures of these seeds, each with its caption beside it; those that a run has made are there for the next.

    Args:
        tell: told (done, all) before each.
        stops: asked before each; True ends it there.

    Raises:
        TrainingError: a picture can't be written.
    """
    folder, prompt = prior_folder(config), config.data.prior_prompt
    for number, seed in enumerate(seeds):
        if stops():
            break
        tell(number, len(seeds))
        with torch.no_grad():
            picture = backbone.preview(prompt, seed)
        _write(folder / f"class-{seed:010}.png", picture, prompt, seed)


def _free_seeds(folder: Path, first: int) -> Iterator[int]:
    """Seeds from the training's on, but for those whose picture is there."""
    used = {int(match[1]) for path in _pictures(folder) if (match := _MADE.fullmatch(path.name))}
    return (seed for seed in ((first + step) % _SEEDS for step in count()) if seed not in used)


def _pictures(folder: Path) -> Iterator[Path]:
    """Pictures in the folder and in those in it."""
    if folder.is_dir():
        yield from (path for path in sorted(folder.rglob("*")) if path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file())


def _of_another_prompt(folder: Path, prompt: str) -> list[str]:
    others = [path for path in _pictures(folder) if _MADE.fullmatch(path.name) and read_text(path) not in (None, (" ".join(prompt.split()),))]
    if not others:
        return []
    return [f"{len(others)} class pictures in {folder} were made from another prompt than data.prior_prompt = {prompt!r}, the first is {others[0].name}; "
            "delete them to have them made anew"]


def _write(path: Path, pixels: Any, prompt: str, seed: int) -> None:
    """The caption first and the picture last, whole or not at all: where the picture is, all is."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    told = PngInfo()
    told.add_itxt("parameters", f"{prompt}\nSeed: {seed}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
        Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(draft, format="PNG", pnginfo=told)
        os.replace(draft, path)
    except OSError as error:
        raise TrainingError(f"class picture {path} could not be written: {error.strerror or error}; make room or choose another data.prior_folder") from error
    finally:
        draft.unlink(missing_ok=True)
