"""Where the embedded checkpoint lies, its config, and how it gets into a WebUI."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

from ...errors import CheckpointError, ConfigError

FOLDER = Path(__file__).parent / "checkpoint"
CHECKPOINT = FOLDER / "lyco-world.safetensors"
CONFIG = FOLDER / "lyco-world.yaml"
EDGES = FOLDER / "lyco-world-edges.safetensors"
"""A T2I-Adapter for the checkpoint, trained on edge maps of its world."""
CLIP_FOLDER = FOLDER / "lyco-world-clip"
"""Holds the text model's config.json; `install_world` adds the tokenizer's files, which are derived from the table in studio/tokenizer."""


def make_config(unet_heads: int, width: int, multipliers: list[int], context: int, vae_width: int, vae_multipliers: list[int], clip_folder: str) -> dict:
    """The checkpoint's config as the original Stable Diffusion code reads it (JSON is YAML).

    Args:
        clip_folder: where the WebUI finds the text model's config and tokenizer.
    """
    autoencoder = {"double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": vae_width, "ch_mult": vae_multipliers,
                   "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}
    unet = {"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": width, "attention_resolutions": [4, 2, 1], "num_res_blocks": 2,
            "channel_mult": multipliers, "num_heads": unet_heads, "use_spatial_transformer": True, "transformer_depth": 1, "context_dim": context,
            "use_checkpoint": False, "legacy": False}
    return {"model": {"base_learning_rate": 1e-4, "target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": {
        "linear_start": 0.00085, "linear_end": 0.012, "num_timesteps_cond": 1, "log_every_t": 200, "timesteps": 1000, "first_stage_key": "jpg",
        "cond_stage_key": "txt", "image_size": 8, "channels": 4, "cond_stage_trainable": False, "conditioning_key": "crossattn",
        "monitor": "val/loss_simple_ema", "scale_factor": 0.18215, "use_ema": False,
        "unet_config": {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet},
        "first_stage_config": {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {
            "embed_dim": 4, "monitor": "val/rec_loss", "ddconfig": autoencoder, "lossconfig": {"target": "torch.nn.Identity"}}},
        "cond_stage_config": {"target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder", "params": {"version": clip_folder}}}}}


def install_world(webui: Path | str) -> list[Path]:
    """Puts checkpoint, yaml, tokenizer folder and the sample adapter into a WebUI.

    Args:
        webui: the WebUI's folder, or a --data-dir of it.

    Returns:
        The files and the folder that were written.

    Raises:
        ConfigError: the folder is no WebUI.
        CheckpointError: the embedded checkpoint or its adapter is not there.
    """
    from ..bpe import write_clip_folder

    target = Path(webui).expanduser().resolve() / "models" / "Stable-diffusion"
    if not target.is_dir():
        raise ConfigError(f"{webui} is no WebUI folder: it has no models/Stable-diffusion; give the folder that holds webui.py, or your --data-dir")
    if not CHECKPOINT.is_file():
        raise CheckpointError(f"the embedded checkpoint {CHECKPOINT.name} is missing: fetch the repository again, or make it with "
                              "'python -m lib_lycoris.studio.world build'")
    if not EDGES.is_file():
        raise CheckpointError(f"the embedded adapter {EDGES.name} is missing: fetch the repository again")
    clip = target / CLIP_FOLDER.name
    write_clip_folder(clip, json.loads((CLIP_FOLDER / "config.json").read_text(encoding="utf-8")))
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    # the WebUI reads the folder from wherever it was started, so the path must be a whole one
    config["model"]["params"]["cond_stage_config"]["params"]["version"] = str(clip)
    written = target / CHECKPOINT.name
    shutil.copyfile(CHECKPOINT, written)
    (target / CONFIG.name).write_text(json.dumps(config, indent=2), encoding="utf-8")
    adapter = target.parent / "T2I-Adapter" / EDGES.name
    adapter.parent.mkdir(exist_ok=True)
    shutil.copyfile(EDGES, adapter)
    return [written, target / CONFIG.name, clip, adapter]
