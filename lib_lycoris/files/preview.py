"""The picture beside a network file that shows what it does: found, read, and written anew from what a user hands over."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
from pathlib import Path
from typing import Any

from lib_lycoris.errors import ConfigError, LycoError, shown

ENDINGS = tuple(f"{part}.{kind}" for kind in ("png", "jpg", "jpeg", "webp", "gif") for part in ("", ".preview"))
"""In the order in which the WebUI looks for a card's picture."""

LARGEST_FILE = 20_000_000
"""Bytes of a picture that is taken."""

LARGEST_SIDE = 8192
SIDE = 768
"""Pixels of the longer side of a picture that is written; larger ones are made smaller."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")


def find_preview(path: Path) -> Path | None:
    """The picture beside the file at `path`; a file that is itself a picture (an embedding may be one) is its own, unless it was given another."""
    if path.suffix.lower() in (".png", ".webp"):
        return preview_goal(path) if preview_goal(path).is_file() else path
    stem = path.with_suffix("")
    return next((found for found in (stem.with_name(stem.name + ending) for ending in ENDINGS) if found.is_file()), None)


def read_picture(data: bytes | Path) -> Any:
    """An RGB picture (PIL) of at most `SIDE` pixels from a file's bytes, or from a file.

    Raises:
        ConfigError: it is too large, no picture of PNG, JPEG, WebP or GIF, or damaged.
    """
    from PIL import Image, ImageOps

    size = data.stat().st_size if isinstance(data, Path) else len(data)
    if size > LARGEST_FILE:
        raise ConfigError(f"the picture has {size / 1e6:.1f} MB: choose one of at most {LARGEST_FILE / 1e6:.0f} MB")
    try:
        with Image.open(data if isinstance(data, Path) else io.BytesIO(data), formats=_FORMATS) as opened:
            if max(opened.size) > LARGEST_SIDE:
                raise ConfigError(f"the picture has {opened.width}x{opened.height} pixels: choose one of at most {LARGEST_SIDE} on a side")
            picture = ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"that is no picture that can be read ({shown(error)}): choose a PNG, JPEG, WebP or GIF file") from error
    picture.thumbnail((SIDE, SIDE))
    return picture


def write_preview(path: Path, picture: Any) -> Path:
    """Writes a PIL picture as the preview of the file at `path`; gives its path. Nothing of the handed-over file but its pixels gets there.

    Raises:
        LycoError: it can't be written.
    """
    goal = preview_goal(path)
    draft = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}.tmp")
    try:
        picture.save(draft, format="PNG")
        os.replace(draft, goal)
    except OSError as error:
        raise LycoError(f"{shown(goal)} could not be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return goal


def preview_goal(path: Path) -> Path:
    """Where the preview of the file at `path` is written: where the WebUI looks first, but never in the place of a picture that is an embedding."""
    stem = path.with_suffix("")
    plain = stem.with_name(f"{stem.name}.png")
    return stem.with_name(f"{stem.name}.preview.png") if path.suffix.lower() in (".png", ".webp") else plain
