"""Textual inversions inside pictures: in a PNG's text, and in the picture's own pixels, which survive sites that strip texts.

The pixels: left and right of the picture, each parted from it by a black column, stands a block as high as the picture. The bytes of a zlib-packed JSON go
row by row, three to a pixel, the lower halves into the left block's lower four bits and the upper halves into the right block's, both mixed with a fixed
sequence of numbers; the upper four bits of the blocks are ornament.

Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/textual_inversion/image_embedding.py (format).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.numbers import is_finite, not_finite
from lib_lycoris.files.reader import TensorFile
from lib_lycoris.files.regular import open_regular, unreadable

TEXT = "sd-ti-embedding"
"""The text chunk of a PNG that holds the embedding, in base64."""
_TENSOR = "TORCHTENSOR"
_STARTS = (b"\x89PNG\r\n\x1a\n", b"RIFF", b"\xff\xd8\xff", b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")
_LARGEST = 64 << 20  # bytes of JSON: 75 vectors for two text encoders take 4 MB
_MOST_PIXELS = 64_000_000
_LONGEST_NAME = 1000


def is_picture(start: bytes) -> bool:
    """Whether a file that begins with these bytes (16 of them) is a picture of a form that may hold an embedding."""
    return start.startswith(_STARTS) or start[4:12] in (b"ftypavif", b"ftypavis")


def open_picture(path: str | os.PathLike[str]) -> TensorFile:
    """The embedding in a picture, as if it stood in a file of its own.

    Raises:
        NetworkFileError: no picture, or none with an embedding in it, or what is in it is damaged.
    """
    text = read_picture(path)
    if text is None:
        raise NetworkFileError(f"{shown(path)} is a picture without an embedding in it; choose one that was made to share one, and was not saved anew since")
    try:
        content = json.loads(text)
        tensors, remarks = _named(content)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise _damaged(path, error) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def read(names: Iterable[str] | None = None, check: bool = False, mapped: bool = False) -> dict[str, Tensor]:
        chosen = {name: tensors[name] for name in (tensors if names is None else names) if name in tensors}
        for name, tensor in chosen.items():
            if check and not is_finite(tensor):
                raise not_finite(path, name)
        return chosen

    return TensorFile(tuple(tensors), {}, read, shapes, remarks)


def read_picture(path: str | os.PathLike[str]) -> bytes | None:
    """The JSON of the embedding in a picture, from its text or its pixels; None where it holds none.

    Raises:
        NetworkFileError: it can't be read as a picture, or the embedding is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    with open_regular(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a picture that is no network's matter: odd palettes, many pixels
        try:
            with Image.open(file) as picture:
                if picture.width * picture.height > _MOST_PIXELS:
                    return None
                texts = getattr(picture, "text", {})
                if TEXT in texts:
                    return base64.b64decode(texts[TEXT], validate=True)
                return _read_pixels(np.asarray(picture.convert("RGB")))
        except UnidentifiedImageError as error:
            raise NetworkFileError(f"{shown(path)} can't be read as a picture here; save it as PNG, or get the embedding as .safetensors") from error
        except binascii.Error as error:
            raise _damaged(path, error) from error
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise unreadable(path, error) from error


def draw_embedding(picture: np.ndarray, content: Mapping[str, Any]) -> bytes:
    """The PNG that holds an embedding in its text and in its pixels.

    Args:
        picture: uint8 [H,W,3], what is seen.
        content: names to texts, numbers and tensors, dicts of them included.
    """
    from PIL import Image, PngImagePlugin

    text = json.dumps(content, default=_as_list).encode()
    info = PngImagePlugin.PngInfo()
    info.add_text(TEXT, base64.b64encode(text).decode())
    done = io.BytesIO()
    Image.fromarray(_with_blocks(picture, zlib.compress(text, 9))).save(done, format="PNG", pnginfo=info)
    return done.getvalue()


def _as_list(value: object) -> object:
    if isinstance(value, Tensor):
        return {_TENSOR: value.detach().cpu().tolist()}
    raise TypeError(f"a {type(value).__name__} has no place in a picture's embedding")


def _with_blocks(picture: np.ndarray, data: bytes) -> np.ndarray:
    height = picture.shape[0]
    values = np.frombuffer(data, np.uint8)
    columns = -(-len(values) // (3 * height))
    padded = np.resize(values, height * columns * 3).reshape(height, columns, 3)
    mask = _sequence(padded.size).reshape(padded.shape)
    # the ornament, told from the data itself; never 0, so that the black columns and the picture's edge stay what they are
    waves = ((np.arange(height)[:, None] // 8 + np.arange(columns)[None] // 8) % 4 + 1).astype(np.uint8)[..., None] << 4
    low, high = waves | ((padded & 15) ^ mask), waves | ((padded >> 4) ^ mask)
    black = np.zeros((height, 1, 3), np.uint8)
    return np.concatenate([low, black, picture, black, high], axis=1)


def _read_pixels(pixels: np.ndarray) -> bytes | None:
    """The JSON in the pixels [H,W,3], or None."""
    seen = (pixels > 0).all(axis=2)  # tools frame pictures in black
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if not len(rows):
        return None
    cut = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 15
    black = np.flatnonzero(cut.sum(axis=(0, 2), dtype=np.int64) == 0)
    if len(black) < 2:
        return None
    low, high = cut[:, : black[0]], cut[:, black[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        return None
    mask = _sequence(low.size).reshape(low.shape)
    data = (((high ^ mask) << 4) | (low ^ mask)).tobytes()
    packed = zlib.decompressobj()
    try:
        text = packed.decompress(data, _LARGEST)
    except zlib.error:
        return None
    return text if packed.eof else None


def _sequence(count: int) -> np.ndarray:
    """uint8 [count]: the lower four bits of a linear congruential generator's numbers modulo 255."""
    states = np.array([1013904223], np.uint32)
    factor, offset = np.uint32(1664525), np.uint32(1013904223)
    while len(states) < count:  # twice as many at a time: a step of as many as are known is one of the same form
        states = np.concatenate([states, states * factor + offset])
        with np.errstate(over="ignore"):
            factor, offset = factor * factor, factor * offset + offset
    return (states[:count] % 255).astype(np.uint8) & 15


def _named(content: object) -> tuple[dict[str, Tensor], dict[str, str | int | float]]:
    """The tensors and the remarks of the JSON, by the names that they would have in a pickle."""
    if not isinstance(content, dict):
        raise ValueError(f"a JSON {type(content).__name__} where an object has to be")
    tensors: dict[str, Tensor] = {}
    remarks: dict[str, str | int | float] = {}
    for name, value in content.items():
        inner = {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) and _TENSOR not in value else {name: value}
        for key, each in inner.items():
            if isinstance(each, dict) and _TENSOR in each:
                tensors[key[:_LONGEST_NAME]] = torch.from_numpy(np.array(each[_TENSOR], np.float32))
            elif isinstance(each, (str, int, float)):
                remarks[key[:_LONGEST_NAME]] = each
    return tensors, remarks


def _damaged(path: object, error: Exception) -> NetworkFileError:
    return NetworkFileError(f"{shown(path)}: the embedding in the picture is damaged ({shown(error)}); get the picture again, unchanged")
