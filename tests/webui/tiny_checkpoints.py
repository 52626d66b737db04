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
    return {"sd2": sd2, "sdxl": sdxl, **wide_configs(base, sdxl)}


def wide_configs(base: dict, sdxl: dict) -> dict[str, dict]:
    """SD 1 and SDXL with blocks of 320 channels, at which alone FreeU acts; and SDXL's refiner: as deep as SD 1, with the larger text encoder alone. Their
    autoencoder is a smaller one: nearly all of a large picture's time would be its."""
    sd1, wide, refiner = copy.deepcopy(base), copy.deepcopy(sdxl), copy.deepcopy(sdxl)
    for config in (sd1, wide, refiner):
        config["model"]["params"]["first_stage_config"]["params"]["ddconfig"] |= {"ch": 32, "num_res_blocks": 1}
    sd1["model"]["params"]["unet_config"]["params"] |= {"model_channels": 32, "channel_mult": [1, 2, 10, 10]}
    wide["model"]["params"]["network_config"]["params"] |= {"channel_mult": [1, 2, 10], "transformer_depth": [0, 1, 2]}
    params = refiner["model"]["params"]
    params["network_config"]["params"] |= {
        "channel_mult": [1, 2, 4, 4], "transformer_depth": 1, "context_dim": 256, "adm_in_channels": 256 + 5 * 16}
    encoders = params["conditioner_config"]["params"]["emb_models"]
    score = {"is_trainable": False, "input_key": "aesthetic_score", "target": "sgm.modules.encoders.modules.ConcatTimestepEmbedderND", "params": {"outdim": 16}}
    params["conditioner_config"]["params"]["emb_models"] = [encoders[1], *encoders[2:4], score]
    return {"sd1-wide": sd1, "sdxl-wide": wide, "sdxl-refiner": refiner}


def main(folder: Path, names: list[str]) -> None:
    """Writes these checkpoints beside base.yaml; the autoencoder, and CLIP where they have it, are those of base.safetensors."""
    for name in ("stable-diffusion-stability-ai", "generative-models"):
        sys.path.insert(0, str(Path("repositories") / name))
    import torch
    import transformers
    from ldm.util import instantiate_from_config
    from omegaconf import OmegaConf
    from safetensors.torch import load_file, save_file

    known = load_file(str(folder / "base.safetensors"))
    known |= {name.replace("cond_stage_model.", "conditioner.embedders.0.", 1): value for name, value in known.items() if name.startswith("cond_stage_model.")}
    transformers.CLIPTextModel.from_pretrained = lambda path: transformers.CLIPTextModel(transformers.CLIPTextConfig.from_pretrained(path))
    found = configs(OmegaConf.to_container(OmegaConf.load(folder / "base.yaml")))
    for name, config in ((name, found[name]) for name in names):
        torch.manual_seed(0)
        model = instantiate_from_config(OmegaConf.create(config).model)
        tensors = {key: value.clone().contiguous() for key, value in model.state_dict().items() if not key.startswith("denoiser.")}
        for value in tensors.values():
            if value.is_floating_point() and value.ndim > 1 and not value.any():  # the last layers, through which no gradient would pass
                value.normal_(std=value[0].numel() ** -0.5)
        for key in tensors:
            if key.endswith("ln_final.bias"):  # after such a norm vectors have a mean of 0 but for rounding, and the host's emphasis divides by it
                tensors[key].normal_(std=0.1)
        tensors |= {key: known[key] for key in tensors if key in known and known[key].shape == tensors[key].shape and "diffusion_model" not in key}
        save_file(tensors, str(folder / f"{name}.safetensors"))
        (folder / f"{name}.yaml").write_text(json.dumps(config))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
