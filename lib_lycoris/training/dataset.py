"""Folders of captioned pictures, as people have them: which pictures there are, what their captions say, how often each counts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DatasetError
from .config import DataSettings

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = (".txt", ".caption")
_REPEATS = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class Picture:
    """A picture file with its caption; it counts `repeats` times in an epoch."""

    path: Path
    caption: str
    repeats: int
    concept: str | None = None
    """The word of a folder named 10_word."""


@dataclass(frozen=True)
class Dataset:
    """All pictures, in an order that depends on the folders and names alone, and what was odd about them, in words."""

    pictures: tuple[Picture, ...]
    problems: tuple[str, ...] = ()

    @property
    def draws(self) -> tuple[int, ...]:
        """For each draw of an epoch the index of its picture: every picture as often as it counts."""
        return tuple(index for index, picture in enumerate(self.pictures) for _ in range(picture.repeats))


def read_dataset(settings: DataSettings) -> Dataset:
    """The dataset that the settings' folders hold; every picture was opened once, so that a bad one is known before the first step.

    Raises:
        DatasetError: no folder is named, one is missing or without pictures, no picture has a caption, a picture or caption can't be read.
    """
    if not settings.folders:
        raise DatasetError('data.folders is empty: name a folder of pictures, for example folders = ["my-pictures"]')
    found = [picture for folder in settings.folders for picture in _scan_folder(Path(folder).expanduser(), settings.repeats)]
    pictures, problems = _leave_out_unreadable(found, settings.skip_unreadable)
    without = [picture for picture in pictures if not picture.caption]
    if len(without) == len(pictures):
        raise DatasetError(
            f"no picture in {_names(settings.folders)} has a caption: put a text file of the same name beside each, "
            f"for example {pictures[0].path.with_suffix('.txt').name} for {pictures[0].path.name}"
        )
    if without:
        problems.append(f"{len(without)} of {len(pictures)} pictures have no caption, the first is {without[0].path}; they are learned without words")
    return Dataset(tuple(pictures), tuple(problems))


def read_picture(path: Path, resolution: int) -> Tensor:
    """A picture [3,H,W] in -1..1: turned as its EXIF says, transparency on white, scaled and centre-cropped to a square of `resolution` pixels.

    Raises:
        DatasetError: the file can't be read as a picture.
    """
    try:
        with Image.open(path) as image:
            # MPO, GIF-like WebP: the first frame is the picture.
            picture = _on_white(ImageOps.exif_transpose(image))
            picture = ImageOps.fit(picture, (resolution, resolution), Image.Resampling.LANCZOS)
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged bytes: OSError, SyntaxError, struct.error, zlib.error, …
        raise DatasetError(f"picture {path} can't be read ({_reason(error)}): replace or delete it, or set data.skip_unreadable = true") from error
    pixels = torch.from_numpy(np.array(picture, dtype=np.uint8))
    return pixels.permute(2, 0, 1).float() / 127.5 - 1


def _on_white(image: Image.Image) -> Image.Image:
    """An RGB picture: what is transparent becomes white, 16-bit grey is brought to 8."""
    if image.mode.startswith("I"):
        levels = np.asarray(image, dtype=np.float32)
        image = Image.fromarray((levels / max(65535.0 if levels.max() > 255 else 255.0, 1.0) * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _scan_folder(folder: Path, repeats: int) -> list[Picture]:
    """The pictures of a folder, and of its folders named 10_word."""
    try:
        if not folder.is_dir():
            what = "is a file" if folder.exists() else "does not exist"
            raise DatasetError(f"dataset folder {folder} {what}: check data.folders, a folder of pictures is expected")
        pictures = list(_pictures_in(folder, repeats))
        for inner in sorted(folder.iterdir(), key=lambda path: path.name):
            if inner.is_dir() and _REPEATS.fullmatch(inner.name):
                pictures += _pictures_in(inner, repeats)
    except OSError as error:
        raise DatasetError(f"dataset folder {folder} can't be read ({error.strerror or error}): check its permissions") from error
    if not pictures:
        endings = ", ".join(ending[1:] for ending in PICTURES)
        raise DatasetError(f"dataset folder {folder} holds no picture: put {endings} files there, with a .txt beside each")
    return pictures


def _pictures_in(folder: Path, repeats: int) -> Iterator[Picture]:
    """The pictures directly in one folder, by name."""
    match = _REPEATS.fullmatch(folder.resolve().name)
    count, concept = (max(int(match[1]), 1), match[2]) if match else (repeats, None)
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        # "._x.png" and the like are notes that other systems leave behind.
        if path.suffix.lower() in PICTURES and not path.name.startswith(".") and path.is_file():
            yield Picture(path, _read_caption(path), count, concept)


def _read_caption(picture: Path) -> str:
    """The text beside a picture, on one line; "" where there is none."""
    for ending in CAPTIONS:
        path = picture.with_suffix(ending)
        try:
            return " ".join(path.read_bytes().decode("utf-8-sig").split())
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise DatasetError(f"caption {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
        except OSError as error:
            raise DatasetError(f"caption {path} can't be read ({error.strerror or error}): check the file") from error
    return ""


def _leave_out_unreadable(pictures: list[Picture], skip: bool) -> tuple[list[Picture], list[str]]:
    good, problems = [], []
    for picture in pictures:
        try:
            # The whole file is decoded: a truncated one opens well. The size does not matter here.
            read_picture(picture.path, 8)
            good.append(picture)
        except DatasetError as error:
            if not skip:
                raise
            problems.append(f"{str(error).partition('): ')[0]}); it is left out")
    if not good:
        raise DatasetError(f"none of the {len(pictures)} pictures can be read, the first is {pictures[0].path}: replace them")
    return good, problems


def _reason(error: BaseException) -> str:
    """Why Pillow could not read it, on one line and without the path, which the message has already."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return "not a picture, or damaged" if "cannot identify" in text else text[:120] or type(error).__name__


def _names(folders: tuple[str, ...]) -> str:
    return ", ".join(folders)
