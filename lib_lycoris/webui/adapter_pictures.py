"""The pictures that a unit looks at: those that it was given, in any form the page or the API has, or img2img's own."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lib_lycoris.errors import ConfigError, shown
from lib_lycoris.preprocess.sizes import fit
from lib_lycoris.preprocess.table import as_picture

LARGEST_BYTES = 64 << 20
MOST_PIXELS = 64_000_000
"""Of a picture that is read; a control map is far smaller."""


def read_picture(given: Any) -> Any:
    """The picture [H,W,3] uint8 of an array, a PIL picture, the `Path` of a page's upload, or text in base64 (an API's, which is never taken for a path).

    Raises:
        ConfigError: it is none of these, or too large.
    """
    import numpy as np
    from PIL import Image

    if isinstance(given, np.ndarray):
        return as_picture(given)
    if isinstance(given, Image.Image):
        return as_picture(np.array(given.convert("RGBA") if "A" in given.getbands() or "transparency" in given.info else given.convert("RGB")))
    if isinstance(given, Path):
        with given.open("rb") as file:
            return _open(file.read(LARGEST_BYTES + 1))
    if isinstance(given, Mapping) and "image" in given:  # ControlNet's clients send {"image", "mask"}
        return read_picture(given["image"])
    if isinstance(given, str):
        return _open(_from_base64(given))
    raise ConfigError(f"a picture as {type(given).__name__}: send it as text in base64")


def _from_base64(text: str) -> bytes:
    head, comma, rest = text.partition(",")
    body = rest if comma and head.startswith("data:") else text
    if len(body) > LARGEST_BYTES * 4 // 3:
        raise ConfigError(f"a picture of more than {LARGEST_BYTES >> 20} MB: make it smaller")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{shown(text, 40)!r} is no picture in base64") from None


def _open(data: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    if len(data) > LARGEST_BYTES:
        raise ConfigError(f"a picture of more than {LARGEST_BYTES >> 20} MB: make it smaller")
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ConfigError(f"a picture of {picture.width}×{picture.height} pixels: {MOST_PIXELS // 1_000_000} million are the most")
            picture.load()
            return read_picture(picture)
    except UnidentifiedImageError:  # its words are an object's address
        raise ConfigError("a picture that can't be read (not a picture, or damaged): send a PNG or JPEG") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise error if isinstance(error, ConfigError) else ConfigError(f"a picture that can't be read ({shown(error)}): send a PNG or JPEG") from None


def init_picture(p: Any, picture: int) -> Any | None:
    """What img2img begins with, [H,W,3] uint8, for one picture of the batch; None in txt2img."""
    found = getattr(p, "init_images", None) or ()
    return read_picture(found[picture % len(found)]) if len(found) else None


def crop_to_masked(p: Any, picture: Any) -> Any:
    """The part of a picture that "only masked" inpainting makes anew; the whole picture where that is not asked for.

    A unit's own picture has its part cut out in the same place, as it shows the same scene.
    """
    place = getattr(p, "paste_to", None)
    found = getattr(p, "init_images", None) or ()
    if place is None or not getattr(p, "inpaint_full_res", False) or not len(found):
        return picture
    width, height = found[0].size
    if abs(picture.shape[1] / picture.shape[0] - width / height) > 0.02 * width / height:
        return picture  # of another shape: it is a map for the part alone
    x, y = picture.shape[1] / width, picture.shape[0] / height
    left, top = int(place[0] * x), int(place[1] * y)
    right, bottom = max(left + 1, round((place[0] + place[2]) * x)), max(top + 1, round((place[1] + place[3]) * y))
    return picture[top:bottom, left:right]


def fit_init(p: Any, picture: Any, size: tuple[int, int]) -> Any:
    """An init picture brought to the size that is made just as img2img brings its own: by its resize mode, or for a masked part to fill it."""
    from modules import images
    from PIL import Image

    if picture.shape[1::-1] == size:
        return picture
    import numpy as np

    mode = getattr(p, "resize_mode", 0)
    if getattr(p, "paste_to", None) is not None and getattr(p, "inpaint_full_res", False):
        mode = 2
    if mode == 3:
        return fit(picture, *size, "just resize")
    return np.array(images.resize_image(mode, Image.fromarray(picture), *size).convert("RGB"))


def add_result(p: Any, processed: Any, made: Any, suffix: str) -> None:
    """Adds a control map [H,W,3] uint8 to the pictures of a run, and saves it where the run saves its pictures."""
    from PIL import Image

    picture = Image.fromarray(made)
    processed.images.append(picture)
    processed.infotexts.append(processed.infotexts[0] if processed.infotexts else "")
    if getattr(p, "save_samples", lambda: False)():
        from modules import images, shared

        images.save_image(picture, p.outpath_samples, "", p.all_seeds[0], p.all_prompts[0], shared.opts.samples_format, p=p, suffix=f"-{suffix}")


def answer(values: Mapping[str, Any], make: Callable[[Mapping[str, Any], tuple[int, int]], Any]) -> dict[str, Any]:
    """A route's answer: the map as a PNG in base64 with its size.

    Raises:
        ConfigError: the values are no unit's, or sizes are out of range.
    """
    from PIL import Image

    rest = {name: value for name, value in values.items() if name not in ("width", "height")}
    picture = rest.get("picture")
    if picture is not None:
        picture = rest["picture"] = read_picture(picture)
    sides = []
    for number, name in enumerate(("width", "height")):
        side = values.get(name, 512 if picture is None else picture.shape[1 - number])
        if isinstance(side, bool) or not isinstance(side, int) or not 8 <= side <= 4096:
            raise ConfigError(f"{name} = {shown(side)}: expected a whole number from 8 to 4096")
        sides.append(side)
    made = make(rest if rest.get("adapter") else {"preprocessor": "none", **rest}, (sides[0], sides[1]))
    file = io.BytesIO()
    Image.fromarray(made).save(file, "PNG")
    return {"map": base64.b64encode(file.getvalue()).decode(), "width": made.shape[1], "height": made.shape[0]}
