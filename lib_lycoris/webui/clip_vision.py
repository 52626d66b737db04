"""Where the host's users keep CLIP's picture encoder."""

from __future__ import annotations

from pathlib import Path

from modules import shared

from lib_lycoris.control.seeing import Seeing, hugging_face_cache


def make_seeing() -> Seeing:
    """The encoder, wherever it is."""
    return Seeing(places, lambda: "models/CLIP-vision")


def places() -> list[Path]:
    """Our folder, ComfyUI's and ControlNet's, and Hugging Face's cache."""
    models = Path(shared.models_path)
    controlnet = models.parent / "extensions" / "sd-webui-controlnet" / "annotator" / "downloads" / "clip_vision"
    return [models / "CLIP-vision", models / "clip_vision", controlnet, hugging_face_cache()]
