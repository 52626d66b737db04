"""Picture files as pixels: every kind that people have, turned as their EXIF says, as 8-bit RGB."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..errors import DatasetError
from .buckets import Box

PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
NOT_READ = (".heic", ".heif", ".avif", ".jxl", ".psd", ".raw", ".cr2", ".nef", ".dng", ".svg")
"""Pictures too, but of kinds that Pillow reads nowhere or not everywhere."""
_TRANSPARENT = ("RGBA", "LA", "PA", "La", "RGBa")


def read_bytes(path: Path) -> bytes:
    """The file's bytes.

    Raises:
        DatasetError: it can't be read.
    """
    with _told(path):
        return path.read_bytes()


def content_hash(data: bytes) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def measure(path: Path, data: bytes) -> tuple[int, int]:
    """Width and height in pixels as the picture is looked at, that is after EXIF's turn; read from the header alone.

    Raises:
        DatasetError: the file is no picture.
    """
    with _opened(path, data) as image:
        size = image.size
        return (size[1], size[0]) if _orientation(image) in (5, 6, 7, 8) else size


def orientation(path: Path, data: bytes) -> int:
    """How EXIF says a picture is turned, 1 to 8; 1 where it says nothing."""
    with _opened(path, data) as image:
        return _orientation(image)


def may_be_transparent(path: Path, data: bytes) -> bool:
    """Whether the picture's kind can be transparent; read from the header alone."""
    with _opened(path, data) as image:
        return image.mode in _TRANSPARENT or "transparency" in image.info


def open_image(path: Path, data: bytes | None = None) -> Image.Image:
    """The whole picture decoded, turned as its EXIF says, in whatever mode the file has; of an animated one the first frame.

    Raises:
        DatasetError: the file can't be read as a picture.
    """
    with _opened(path, read_bytes(path) if data is None else data) as image:
        image.load()
        return ImageOps.exif_transpose(image)


def to_rgb(image: Image.Image, ground: str | None = "white") -> Image.Image:
    """The picture in 8-bit RGB: more bits are rounded, and what is transparent gets the ground's colour, or with None keeps the colour underneath."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bits(image)
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        if ground is not None:
            image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")


def has_alpha(image: Image.Image) -> bool:
    """Whether any of the picture is transparent."""
    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def to_grey(image: Image.Image) -> Image.Image:
    """The picture in 8-bit grey."""
    return to_rgb(image).convert("L")


def to_pixels(image: Image.Image, box: Box, size: tuple[int, int]) -> Tensor:
    """The part [3,H,W] of an RGB picture within the box, scaled to `size` (width, height), in -1..1."""
    part = image.resize(size, Image.Resampling.LANCZOS, box=box)
    return torch.from_numpy(np.array(part, dtype=np.uint8)).permute(2, 0, 1).float() / 127.5 - 1


def read_picture(path: Path, resolution: int) -> Tensor:
    """A picture [3,H,W] in -1..1, transparency on white, scaled and cropped around its middle to a square of `resolution` pixels.

    Raises:
        DatasetError: the file can't be read as a picture.
    """
    image = open_image(path)
    side = min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    return to_pixels(to_rgb(image), (left, top, left + side, top + side), (resolution, resolution))


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(0x0112, 1)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of fractions, by the range that its values show."""
    levels = np.asarray(image, dtype=np.float32)
    most = levels.max(initial=0.0)
    top = 1.0 if image.mode == "F" and most <= 1 else 255.0 if most <= 255 and not image.mode.startswith("I;16") else 65535.0
    return Image.fromarray((levels / top * 255).round().clip(0, 255).astype(np.uint8))


@contextmanager
def _opened(path: Path, data: bytes) -> Iterator[Image.Image]:
    with _told(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that Pillow finds large, of EXIF that it finds odd
        with Image.open(io.BytesIO(data)) as image:
            yield image


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        reason = f"it has more than {most} million pixels"
        raise DatasetError(f"picture {path} can't be read ({reason}): scale it down, or set data.skip_unreadable = true") from error
    except Exception as error:  # Pillow's decoders raise whatever they like on damaged bytes: OSError, SyntaxError, struct.error, zlib.error, …
        raise DatasetError(f"picture {path} can't be read ({_reason(error)}): replace or delete it, or set data.skip_unreadable = true") from error


def _reason(error: BaseException) -> str:
    """Why Pillow could not read it, on one line and without the path, which the message has already."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return "not a picture, or damaged" if "cannot identify" in text else text[:120] or type(error).__name__
