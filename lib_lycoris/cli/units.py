"""Adapters on the command line and in a request: units with their pictures."""

from __future__ import annotations

import argparse
import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from ..prompt.unit import Unit
from ..setting import section_settings

ADAPTER_FOLDERS = ("outputs", "adapters")
"""Where adapters are looked for: what was trained here, and what was brought from elsewhere."""
_MOST_PIXELS = 64_000_000
_LARGEST_BYTES = 64 << 20
_PICTURES = ("picture", "pictures", "mask")
_OTHER_NAMES = {"image": "picture", "images": "pictures", "input_image": "picture", "model": "adapter", "module": "preprocessor"}


class _Of(argparse.Action):
    """Says something of the adapter named last."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str | None = None) -> None:
        units = getattr(namespace, "units", None) or []
        if self.dest == "adapter":
            units = [*units, {"adapter": values, "pictures": []}]
        elif not units:
            parser.error(f"{option_string} says something of an adapter: name it first, with --adapter FILE")
        elif self.dest == "control":
            units[-1]["pictures"].append(values)
        elif self.dest == "adapter_set":
            units[-1] |= values
        else:
            units[-1][self.dest] = True if self.nargs == 0 else values
        namespace.units = units


def add_units(parser: argparse.ArgumentParser) -> None:
    """Adds --adapter and what is said of it, each of the one named last."""
    group = parser.add_argument_group("T2I-Adapters", "--adapter may be given again; the others say something of the adapter before them")
    group.add_argument("--adapter", metavar="FILE", action=_Of, help="an adapter's file, or its name in --adapters")
    group.add_argument("--control", metavar="PICTURE", action=_Of, help="the picture that it looks at; given again: one for each picture of a batch")
    group.add_argument("--preprocessor", metavar="NAME", action=_Of, help="what makes the control map; left out: the one that belongs to the adapter")
    group.add_argument("--adapter-weight", metavar="X", dest="weight", type=float, action=_Of, help="how strongly it acts (1)")
    group.add_argument("--adapter-start", metavar="X", dest="start", type=float, action=_Of, help="where in the sampling it begins, from 0 to 1 (0)")
    group.add_argument("--adapter-end", metavar="X", dest="end", type=float, action=_Of, help="where it stops (1)")
    group.add_argument("--region", metavar="PICTURE", dest="mask", action=_Of, help="where it acts: white on black")
    group.add_argument("--save-map", dest="save_map", nargs=0, action=_Of, help="write its control map too, beside the picture")
    group.add_argument("--strict-adapter", dest="strict", nargs=0, action=_Of, help="stop where it can't act, instead of going on without it")
    group.add_argument("--adapter-set", metavar="NAME=VALUE", type=_read_setting, action=_Of,
                       help="any other value of the page's: threshold_a=50, palette=#ff0000, keypoints=@pose.json, level_weights=1,0.8,0.6,1, …")
    add_adapters(parser)
    parser.add_argument("--fuser", metavar="NAME", default="auto", help="the CoAdapter fuser's file, auto (one that is there, for several adapters) or none")
    add_clip_vision(parser)


def add_clip_vision(parser: argparse.ArgumentParser) -> None:
    """Adds --clip-vision."""
    parser.add_argument("--clip-vision", metavar="PATH",
                        help="CLIP's picture encoder, which style adapters need: clip-vit-large-patch14's model.safetensors, or a folder with it "
                             "(left out: looked for among the adapters and in Hugging Face's cache)")


def add_adapters(parser: argparse.ArgumentParser) -> None:
    """Adds --adapters."""
    parser.add_argument("--adapters", metavar="DIR", action="append",
                        help=f"a folder in which T2I-Adapters are looked for; may be given again (left out: {' and '.join(ADAPTER_FOLDERS)})")


def _read_setting(text: str) -> dict[str, Any]:
    """{name: value} of a unit's field as the command line spells it; @FILE is what stands in that file."""
    name, equals, value = text.partition("=")
    record = {setting.name: setting for setting in section_settings(Unit)}
    if not equals or name.strip() not in record:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE with one of {', '.join(record)}")
    try:
        content = Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") else value
        return {name.strip(): record[name.strip()].parse(content)}
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def asked_units(units: Sequence[Mapping[str, Any]]) -> list[Any]:
    """control.preparing.Asked for each unit of the command line, its pictures read.

    Raises:
        ConfigError: a value that a unit does not take, or a picture that can't be read.
    """
    return [_asked(values, read_file) for values in units]


def requested_units(units: Any) -> list[Any]:
    """The same of a request's list of mappings, whose pictures are text in base64 (a page's own: arrays, or paths of what was uploaded).

    Raises:
        ConfigError: it is no such list, an unknown name, a value that a unit does not take, or a picture that can't be read.
    """
    if not isinstance(units, list) or not all(isinstance(each, Mapping) for each in units):
        raise ConfigError("units: expected a list of objects, one for each adapter")
    return [_asked({_OTHER_NAMES.get(name, name): value for name, value in values.items()}, _read_given) for values in units]


def make_preparation(folders: Sequence[str | Path], clip_vision: str | None = None, checkpoint: str | None = None) -> Any:
    """What finds the adapters in these folders, and those that come with the checkpoint.

    Raises:
        ConfigError: no picture encoder is where `clip_vision` says.
    """
    from ..control.preparing import Preparation
    from ..library.adapters import AdapterShelf

    shelf = AdapterShelf(folders, outside=True, samples=sample_adapters(checkpoint))
    return Preparation(shelf, make_seeing(shelf, clip_vision))


def sample_adapters(checkpoint: str | None = None) -> dict[str, Path]:
    """{name: file} of the adapters that come with a checkpoint: with the embedded one (None) that for edges."""
    from ..studio.world.files import EDGES

    return {EDGES.stem: EDGES} if checkpoint is None else {}


def make_seeing(shelf: Any, clip_vision: str | None = None) -> Any:
    """What style adapters see by: the file that is named, or one among the shelf's adapters, or in Hugging Face's cache.

    Raises:
        ConfigError: what is named is no such encoder.
    """
    from ..control.seeing import FILE, WIDTH, Seeing, hugging_face_cache
    from ..library.clip_vision import find_clip_vision

    if clip_vision is not None and find_clip_vision([clip_vision], WIDTH) is None:
        raise ConfigError(f"--clip-vision {shown(clip_vision)}: no picture encoder of CLIP's ViT-L/14 is there; get {FILE}")
    named = [] if clip_vision is None else [Path(clip_vision)]

    def home() -> str:
        folder = shelf.folders[-1] if shelf.folders else Path("adapters")
        return f"{shown((folder / 'CLIP-vision').resolve())}, or name it with --clip-vision"

    return Seeing(lambda: [*named, *shelf.folders, hugging_face_cache()], home)


def adapter_folders(given: list[str] | None) -> list[str]:
    """The folders that --adapters means."""
    return list(given or ADAPTER_FOLDERS)


def read_file(path: Any) -> Any:
    """The picture [H,W,3] uint8 of a file.

    Raises:
        ConfigError: it can't be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"picture {shown(path)} can't be read ({shown(error.strerror or error)}): check the path") from None
    return _decode(data, f"picture {shown(path)}")


def read_base64(text: Any) -> Any:
    """The picture [H,W,3] uint8 of text in base64, with or without "data:…," before it.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(text, str) or len(text) > _LARGEST_BYTES * 4 // 3:
        raise ConfigError("a picture: expected text in base64, of at most 64 MB")
    head, comma, rest = text.partition(",")
    try:
        data = base64.b64decode(rest if comma and head.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{shown(text, 40)!r} is no picture in base64") from None
    return _decode(data, "a picture in base64")


def _read_given(picture: Any) -> Any:
    """A picture of a request; arrays and paths can't come over a network, only from the page."""
    if isinstance(picture, Path):
        return read_file(picture)
    if isinstance(picture, str) or not hasattr(picture, "ndim"):
        return read_base64(picture)
    return picture if picture.ndim == 3 else picture[:, :, None].repeat(3, axis=2)


def _asked(values: Mapping[str, Any], read: Any) -> Any:
    from ..control.preparing import Asked
    from ..prompt.unit import unit_from_dict

    unit = unit_from_dict({name: value for name, value in values.items() if name not in _PICTURES})
    pictures = values.get("pictures") or ([] if values.get("picture") is None else [values["picture"]])
    if not isinstance(pictures, list):
        raise ConfigError("unit.pictures: expected a list of pictures")
    mask = values.get("mask")
    return Asked(unit, tuple(read(each) for each in pictures), None if mask is None else read(mask))


def _decode(data: bytes, name: str) -> Any:
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > _MOST_PIXELS:
                raise ConfigError(f"{name} has {picture.width}×{picture.height} pixels: {_MOST_PIXELS // 1_000_000} million are the most")
            transparent = "A" in picture.getbands() or "transparency" in picture.info
            return np.array(picture.convert("RGBA" if transparent else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"{name} is no picture that can be read ({shown(error)}): give a PNG or JPEG") from None
