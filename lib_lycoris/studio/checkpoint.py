"""From a Stable Diffusion 1 checkpoint file to the modules that run it, without a request to anyone."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files.embedding_vectors import ENCODERS
from ..files.hashes import file_hash
from . import bpe, ldm
from .checkpoint_kinds import refuse_other_kinds
from .words import Words
from .world import files as world

LATENT_SCALE = 0.18215
"""What Stable Diffusion 1 multiplies the autoencoder's latents by."""


@dataclass
class StudioModel:
    """A checkpoint's modules, ready to run.

    Attributes:
        unet: diffusers' UNet2DConditionModel.
        vae: diffusers' AutoencoderKL, always in float32.
        text_encoder: transformers' CLIPTextModel.
        tokenizer: transformers' CLIPTokenizer.
        prediction: "eps", or "v" for a model that predicts velocity.
        path: the file.
        latent_scale: what latents are multiplied by after encoding.
        betas: first and last beta of the noise schedule.
        side: pixels of the square pictures it was made for.
        base_model: "sd_v1" or "sd_v2", kohya's word for the architecture. Files are read of SD 1 only; modules of SD 2 can be put together by hand.
        filling: the token that fills up a chunk of a prompt: None for the end token, as in SD 1; 0 in SD 2.
        words: the embeddings that prompts and captions may name.
    """

    unet: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: Any
    prediction: str
    path: Path
    latent_scale: float = LATENT_SCALE
    betas: tuple[float, float] = (0.00085, 0.012)
    side: int = 512
    base_model: str = "sd_v1"
    filling: int | None = None
    _sha256: str | None = field(default=None, repr=False)
    words: Words = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.words = Words(self.tokenizer, self.encoders)

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """The text encoder, by the name that it has in embeddings."""
        return dict.fromkeys(ENCODERS[self.base_model], self.text_encoder)

    @property
    def name(self) -> str:
        """The file's name without its ending, as the WebUI names it in infotexts."""
        return self.path.stem

    @property
    def sha256(self) -> str:
        """The file's SHA-256; computed when first asked for."""
        if self._sha256 is None:
            self._sha256 = file_hash(self.path)
        return self._sha256

    @property
    def hash(self) -> str:
        """The first ten digits of the file's SHA-256, as the WebUI writes it."""
        return self.sha256[:10]

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of UNet and text encoder."""
        return next(self.unet.parameters()).dtype


def pick_device() -> torch.device:
    """The machine's fastest: CUDA, Apple's GPU, or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_checkpoint(path: Path | str | None = None, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> StudioModel:
    """The model in a Stable Diffusion 1 file.

    Args:
        path: .safetensors or .ckpt; None: the embedded checkpoint.
        device: None: the fastest there is.
        dtype: of UNet and text encoder; None: float16 on CUDA, else float32.

    Raises:
        CheckpointError: the file is missing, damaged, or no Stable Diffusion 1 checkpoint.
    """
    path = Path(path) if path is not None else world.CHECKPOINT
    device = torch.device(device) if device is not None else pick_device()
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)

    tensors, metadata = _read(path)
    refuse_other_kinds(path, tensors)
    config = _read_config(path)
    unet = _build_unet(path, tensors, config, dtype)
    vae = _build_vae(path, tensors)
    text_encoder = _build_text_encoder(path, tensors, config, dtype)
    for module in (unet, vae, text_encoder):
        module.to(device).eval()
    return StudioModel(unet, vae, text_encoder, bpe.make_tokenizer(), _prediction(config, metadata, tensors), path,
                       latent_scale=float(config.get("scale_factor", LATENT_SCALE)),
                       betas=(float(config.get("linear_start", 0.00085)), float(config.get("linear_end", 0.012))),
                       side=8 * int(config.get("image_size", 64)))


def with_vae(model: StudioModel, path: Path | str) -> StudioModel:
    """The same model with the autoencoder of another file: a VAE of its own in the original's or in diffusers' names, or that of a whole checkpoint.

    Raises:
        CheckpointError: the file is missing, damaged, or has no autoencoder for this model.
    """
    path = Path(path).expanduser()
    tensors, _ = _read(path)
    if not any(name.startswith(ldm.VAE) for name in tensors):
        own = ldm.vae_to_ldm(tensors) if any(".down_blocks." in name for name in tensors) else tensors
        tensors = {f"{ldm.VAE}{name}": value for name, value in own.items()}
    vae = _build_vae(path, tensors).to(model.device).eval()
    channels = model.vae.config.latent_channels
    if vae.config.latent_channels != channels:
        raise CheckpointError(f"autoencoder {path}: its latents have {vae.config.latent_channels} channels, {model.name} wants {channels}; use another")
    return replace(model, vae=vae)


# ------------------------------------------------------------------ reading

def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A file's tensors and metadata."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"checkpoint {path}: {what}; name a .safetensors or .ckpt file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"checkpoint {path}: the file is empty; download or copy it again")
    readers = {".safetensors": _read_safetensors, ".ckpt": _read_pickle, ".pt": _read_pickle}
    if path.suffix.lower() not in readers:
        raise CheckpointError(f"checkpoint {path}: the ending {path.suffix or '(none)'} is not one of .safetensors, .ckpt; name another file")
    return readers[path.suffix.lower()](path)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: no complete safetensors file ({_first_line(error)}); download or copy it again") from error


class _Inert:
    """Stands in for the classes of training frameworks that old .ckpt files name and nobody needs."""

    def __init__(self, *_args, **_kwargs):
        pass

    def __setstate__(self, _state):
        pass


def _read_pickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    import pickle

    named = ["pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint", "lightning_fabric.utilities.data.AttributeDict"]
    try:
        with torch.serialization.safe_globals([(_Inert, name) for name in named]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: no .ckpt file that can be read without running code in it ({_first_line(error)}); "
                              "use the .safetensors edition of the model") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else {}
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}, {}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:160]


# ------------------------------------------------------------------ the yaml beside the file

def _read_config(path: Path) -> dict:
    """`model.params` of the yaml beside a checkpoint, and under "clip" its text model's config.json; {} without a yaml."""
    import yaml

    config_path = path.with_suffix(".yaml")
    if not config_path.is_file():
        return {}
    try:
        content = yaml.safe_load(config_path.read_text(encoding="utf-8"))
        config = dict(content["model"]["params"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{config_path}: no model config with model.params ({_first_line(error)}); repair the file or remove it") from error
    version = _inner(config, "cond_stage_config").get("version")
    candidates = [path.parent / version] if isinstance(version, str) else []
    for folder in [*candidates, path.with_name(f"{path.stem}-clip")]:
        if (clip := folder / "config.json").is_file():
            try:
                return {**config, "clip": dict(json.loads(clip.read_text(encoding="utf-8")))}
            except (TypeError, ValueError) as error:
                raise CheckpointError(f"{clip}: no text model config ({_first_line(error)}); repair the file or remove its folder") from error
    return config


def _inner(config: Mapping, part: str) -> Mapping:
    """The params of a part of the config, {} where there are none."""
    value = config.get(part)
    params = value.get("params") if isinstance(value, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def _prediction(config: Mapping, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """"v" where the yaml, the file's metadata or the marker tensor of v-prediction models says so."""
    said = config.get("parameterization") or metadata.get("modelspec.prediction_type", "")
    return "v" if str(said).lower().startswith("v") or (not said and "v_pred" in tensors) else "eps"


# ------------------------------------------------------------------ building

def _build_unet(path: Path, tensors: Mapping[str, Tensor], config: Mapping, dtype: torch.dtype) -> nn.Module:
    from diffusers import UNet2DConditionModel

    part = ldm.read_part(tensors, ldm.UNET)
    params = _inner(config, "unet_config")
    heads, head_width = (params.get(name) for name in ("num_heads", "num_head_channels"))  # -1 says: ask the other one
    arguments = _sizes(path, "UNet", ldm.unet_config, part, heads if heads and heads > 0 else 8,
                       head_width if head_width and head_width > 0 else None)
    return _filled(path, "UNet", lambda: UNet2DConditionModel(**arguments), ldm.unet_to_diffusers(part), dtype)


def _build_vae(path: Path, tensors: Mapping[str, Tensor]) -> nn.Module:
    from diffusers import AutoencoderKL

    part = ldm.read_part(tensors, ldm.VAE)
    arguments = _sizes(path, "autoencoder", ldm.vae_config, part)
    return _filled(path, "autoencoder", lambda: AutoencoderKL(**arguments), ldm.vae_to_diffusers(part), torch.float32)


def _build_text_encoder(path: Path, tensors: Mapping[str, Tensor], config: Mapping, dtype: torch.dtype) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    plain = ldm.text_to_transformers(ldm.read_part(tensors, ldm.TEXT))
    arguments = _sizes(path, "text encoder", ldm.text_config, plain, config.get("clip"))
    # transformers fills a module that is made on "meta" with values at once, so this one is made in memory
    module = CLIPTextModel(CLIPTextConfig(**arguments))
    level = "text_model." if any(name.startswith("text_model.") for name in module.state_dict()) else ""
    return _filled(path, "text encoder", lambda: module, ldm.text_to_transformers(plain, level), dtype)


def _sizes(path: Path, part: str, read, *arguments) -> dict:
    """A part's sizes.

    Raises:
        CheckpointError: a tensor that would tell them is missing or has another shape.
    """
    try:
        return read(*arguments)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: its {part} is not that of Stable Diffusion 1 (no usable {_first_line(error)}); "
                              "use a complete SD 1.x checkpoint") from error


def _filled(path: Path, part: str, make, state: dict[str, Tensor], dtype: torch.dtype) -> nn.Module:
    """The module with the file's tensors as its parameters.

    Raises:
        CheckpointError: tensors are missing or of another shape.
    """
    with torch.device("meta"):
        module = make()
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in state:
            raise CheckpointError(f"checkpoint {path}: its {part} lacks {name} (and perhaps more); use a complete SD 1.x checkpoint")
        if state[name].shape != tensor.shape:
            raise CheckpointError(f"checkpoint {path}: {part} {name} has shape {list(state[name].shape)}, SD 1.x has {list(tensor.shape)} there; "
                                  "use another checkpoint")
    # copies: the file stays free to be replaced, and memory is aligned, without which the same numbers give other roundings
    module.load_state_dict({name: state[name].to(dtype, copy=True) for name in wanted}, assign=True)
    return module
