"""CLIP's picture encoder, which style adapters look through; read from the user's own file, never downloaded.

Source: openai/clip-vit-large-patch14 on Hugging Face (config.json, preprocessor_config.json).
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, ConfigError, shown
from ..files.reader import open_tensor_file

_MEAN, _DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_PREFIXES = ("vision_model.", "cond_stage_model.transformer.vision_model.", "")
_NAMES = ("model.safetensors", "pytorch_model.bin")


def load_clip_vision(path: Path | str, device: torch.device | str = "cpu") -> Callable[[Any], Tensor]:
    """What sees for style adapters: a picture [H,W,3] uint8 → its last hidden states [1,T,D] float32, before the final norm.

    Args:
        path: a whole CLIP's or its picture half's file in transformers' names, or a folder with one; a config.json beside it tells its measures, which else
            are those that go with its width.
        device: where it runs.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    file = next((path / name for name in _NAMES if (path / name).is_file()), path)
    opened = open_tensor_file(file)
    prefix = next((each for each in _PREFIXES if f"{each}embeddings.class_embedding" in opened.names), None)
    if prefix is None:
        raise CheckpointError(f"{shown(file)} holds no picture encoder of CLIP in transformers' names; get clip-vit-large-patch14's model.safetensors")
    shapes = {name.removeprefix(prefix): opened.shapes[name] for name in opened.names if name.startswith(prefix)}
    model = _build(file, shapes)
    values = opened.read([f"{prefix}{name}" for name in shapes], check=True)
    held = set(model.state_dict())
    # transformers before 5 has one level more in its names
    outer = "vision_model." if any(name.startswith("vision_model.") for name in held) else ""
    state = {f"{outer}{name.removeprefix(prefix)}": value.float() for name, value in values.items()}
    missing = held - set(state)
    if missing - {f"{outer}embeddings.position_ids"}:
        raise CheckpointError(f"{shown(file)} lacks {shown(sorted(missing)[0])} of CLIP's picture encoder; get it again")
    try:
        model.load_state_dict({name: value for name, value in state.items() if name in held}, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{shown(file)} does not fit its own measures ({shown(error)}); put its config.json beside it") from error
    return _Eye(model.eval().requires_grad_(False).to(device))


class _Eye:
    """The encoder with what has to be done to a picture first."""

    def __init__(self, model: Any):
        self._model = model

    @torch.no_grad()
    def __call__(self, picture: Any) -> Tensor:
        side = self._model.config.image_size
        parameter = next(self._model.parameters())
        return self._model(pixel_values=prepare_picture(picture, side).to(parameter.device, parameter.dtype)).last_hidden_state.float()


def prepare_picture(picture: Any, side: int) -> Tensor:
    """[1,3,side,side] float32: the middle square of a picture [H,W,3] uint8, its shorter side brought to `side`, normalised as CLIP's training was.

    Raises:
        ConfigError: it has no pixels.
    """
    import numpy as np
    from PIL import Image

    height, width = picture.shape[:2]
    if not height or not width:
        raise ConfigError("the picture has no pixels; give another")
    scale = side / min(height, width)
    size = (side, max(side, int(height * scale))) if width <= height else (max(side, int(width * scale)), side)
    scaled = Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = torch.from_numpy(np.array(scaled.crop((left, top, left + side, top + side)))).permute(2, 0, 1)[None].float() / 255
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_DEVIATION)[:, None, None]


def _build(file: Path, shapes: dict[str, tuple[int, ...]]) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    told = file.with_name("config.json")
    config: dict[str, Any] = {}
    if told.is_file():
        try:
            content = json.loads(told.read_text(encoding="utf-8"))
            config = content.get("vision_config") or content
        except (OSError, ValueError, AttributeError):
            config = {}  # another program's: the shapes tell nearly all
    width, _, patch, _ = shapes["embeddings.patch_embedding.weight"]
    tokens = shapes["embeddings.position_embedding.weight"][0]
    measured = {"hidden_size": width, "patch_size": patch, "image_size": round((tokens - 1) ** 0.5) * patch,
                "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
                "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers."))}
    chosen = {name: config[name] for name in ("num_attention_heads", "hidden_act", "layer_norm_eps") if name in config}
    return CLIPVisionModel(CLIPVisionConfig(**{"num_attention_heads": max(1, width // 64), "hidden_act": "quick_gelu", **chosen, **measured}))
