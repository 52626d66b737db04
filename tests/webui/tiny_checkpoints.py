"""Checkpoints of the WebUI's other architectures, small and random: made of its own classes. Run by the WebUI's Python, in the WebUI's folder."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

ENCODER = {"target": "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder",
           "params": {"arch": "ViT-S-32-alt", "version": None, "freeze": True, "layer": "penultimate"}}
UNET = {
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "num_res_blocks": 2, "use_spatial_transformer": True, "use_linear_in_transformer": True,
    "num_head_channels": 16, "use_checkpoint": False, "legacy": False,
}


def configs(base: dict) -> dict[str, dict]:
    """SD 2 (v-prediction) and SDXL beside the SD 1 config of the embedded checkpoint, with its autoencoder."""
    params = base["model"]["params"]
    autoencoder = params["first_stage_config"]
    sd2 = copy.deepcopy(base)
    sd2["model"]["params"] |= {"parameterization": "v", "cond_stage_config": ENCODER}
    sd2["model"]["params"]["unet_config"]["params"] = {
        **UNET, "image_size": 32, "attention_resolutions": [4, 2, 1], "channel_mult": [1, 2, 4, 4], "transformer_depth": 1, "context_dim": 256}
    sizes = [{"is_trainable": False, "input_key": key, "target": "sgm.modules.encoders.modules.ConcatTimestepEmbedderND", "params": {"outdim": 16}}
             for key in ("original_size_as_tuple", "crop_coords_top_left", "target_size_as_tuple")]
    clip = params["cond_stage_config"]["params"]["version"]
    width = json.loads((Path(clip) / "config.json").read_text())["hidden_size"]
    denoiser = "sgm.modules.diffusionmodules."
    sdxl = {"model": {"target": "sgm.models.diffusion.DiffusionEngine", "params": {
        "scale_factor": 0.13025, "disable_first_stage_autocast": True,
        "denoiser_config": {"target": f"{denoiser}denoiser.DiscreteDenoiser", "params": {
            "num_idx": 1000, "weighting_config": {"target": f"{denoiser}denoiser_weighting.EpsWeighting"},
            "scaling_config": {"target": f"{denoiser}denoiser_scaling.EpsScaling"},
            "discretization_config": {"target": f"{denoiser}discretizer.LegacyDDPMDiscretization"}}},
        "network_config": {"target": f"{denoiser}openaimodel.UNetModel", "params": {
            **UNET, "adm_in_channels": 256 + 6 * 16, "num_classes": "sequential", "attention_resolutions": [4, 2], "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 2, 10], "context_dim": width + 256, "spatial_transformer_attn_type": "softmax-xformers"}},
        "conditioner_config": {"target": "sgm.modules.GeneralConditioner", "params": {"emb_models": [
            {"is_trainable": False, "input_key": "txt", "target": "sgm.modules.encoders.modules.FrozenCLIPEmbedder",
             "params": {"layer": "hidden", "layer_idx": 1, "version": clip}},
            {"is_trainable": False, "input_key": "txt", "target": "sgm.modules.encoders.modules.FrozenOpenCLIPEmbedder2",
             "params": {**ENCODER["params"], "always_return_pooled": True, "legacy": False}}, *sizes]}},
        "first_stage_config": {"target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper", "params": {
            **autoencoder["params"], "ddconfig": {**autoencoder["params"]["ddconfig"], "attn_type": "vanilla"}}}}}}
    return {"sd2": sd2, "sdxl": sdxl}


def main(folder: Path) -> None:
    """Writes sd2 and sdxl beside base.yaml."""
    for name in ("stable-diffusion-stability-ai", "generative-models"):
        sys.path.insert(0, str(Path("repositories") / name))
    import torch
    import transformers
    from ldm.util import instantiate_from_config
    from omegaconf import OmegaConf
    from safetensors.torch import save_file

    transformers.CLIPTextModel.from_pretrained = lambda path: transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(path))
    for name, config in configs(OmegaConf.to_container(OmegaConf.load(folder / "base.yaml"))).items():
        torch.manual_seed(0)
        model = instantiate_from_config(OmegaConf.create(config).model)
        tensors = {key: value.clone().contiguous() for key, value in model.state_dict().items() if not key.startswith("denoiser.")}
        for value in tensors.values():
            if value.is_floating_point() and value.ndim > 1 and not value.any():  # the last layers, through which no gradient would pass
                value.normal_(std=0.02)
        save_file(tensors, str(folder / f"{name}.safetensors"))
        (folder / f"{name}.yaml").write_text(json.dumps(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
