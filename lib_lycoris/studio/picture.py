"""A finished picture: its pixels, the text that tells how it was made, and the PNG that holds both."""
from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from .checkpoint import StudioModel


@dataclass(frozen=True, eq=False)
class Picture:
    """A generated picture.

    Attributes:
        pixels: uint8 [H,W,3].
        infotext: how it was made, as the WebUI writes and reads it ("PNG info").
        seed: with which this one is made again.
        problems: what the user should know, one sentence each: networks that were not found or fit nowhere, …
        interrupted: somebody stopped it before its last step.
        maps: control maps uint8 [H,W,3] that units wanted to see.
    """

    pixels: np.ndarray
    infotext: str
    seed: int
    problems: tuple[str, ...] = ()
    interrupted: bool = False
    maps: tuple[np.ndarray, ...] = ()


def decode_latent(model: StudioModel, latent: Tensor) -> np.ndarray:
    """The picture uint8 [H,W,3] of a latent [1,4,h,w], rounded down as in the WebUI; black where it has no finite values."""
    decoded = model.vae.decode(latent.to(model.vae.dtype) / model.latent_scale).sample[0].float()
    return (255.0 * ((decoded.nan_to_num(-1.0) + 1) / 2).clamp(0, 1)).permute(1, 2, 0).cpu().numpy().astype(np.uint8)


def make_infotext(prompt: str, negative: str, fields: dict[str, object]) -> str:
    """Prompt, negative prompt and "name: value" pairs in the form of the WebUI's infotexts; None values are left out.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/processing.py and infotext_utils.py (format).
    """
    pairs = ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None)
    return "\n".join([prompt, *([f"Negative prompt: {negative}"] if negative else []), pairs]).strip()


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text


def write_png(path: Path | str, picture: Picture) -> None:
    """Writes a PNG with the infotext under "parameters", where the WebUI looks for it; replaces a file only with a whole one."""
    from PIL import Image, PngImagePlugin

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", picture.infotext)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        Image.fromarray(picture.pixels).save(temporary, format="PNG", pnginfo=info)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
