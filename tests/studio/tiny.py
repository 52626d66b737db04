"""A tiny Stable Diffusion 1 with random weights, with the real number of blocks, and the checkpoint files made of it."""
import json

import torch

from lib_lycoris.studio import bpe, ldm

UNET = {"block_out_channels": [32, 32, 64, 64], "attention_head_dim": 4, "cross_attention_dim": 32, "sample_size": 8}
VAE = {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32,
       "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
TEXT = {"vocab_size": 49408, "hidden_size": 32, "intermediate_size": 64, "projection_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "max_position_embeddings": 77, "hidden_act": "quick_gelu", "bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49407}


def make_modules(seed=0):
    """(UNet, autoencoder, text model) with random weights of about unit gain, so that a change anywhere shows in the picture."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    modules = UNet2DConditionModel(**UNET), AutoencoderKL(**VAE), CLIPTextModel(CLIPTextConfig(**TEXT))
    for module in modules:
        module.eval()
    with torch.no_grad():
        modules[2].embeddings.token_embedding.weight.normal_()
        modules[2].embeddings.position_embedding.weight.normal_(std=0.3)
        # vectors with a mean away from zero, as trained ones have: emphasis restores the mean
        modules[2].final_layer_norm.bias.normal_(mean=0.2, std=0.3)
    return modules


def make_config(folder, prediction="eps"):
    """The yaml's content for make_modules' checkpoint."""
    return {"model": {"params": {
        "linear_start": 0.00085, "linear_end": 0.012, "scale_factor": 0.18215, "image_size": 8, "parameterization": prediction,
        "unet_config": {"params": {"num_heads": 4, "in_channels": 4, "model_channels": 32}},
        "cond_stage_config": {"params": {"version": folder}}}}}


def write_checkpoint(folder, modules=None, name="tiny", prediction="eps", dtype=torch.float32, metadata=None, yaml=True):
    """Writes NAME.safetensors, NAME.yaml and NAME-clip/ and gives the first one's path."""
    from safetensors.torch import save_file

    unet, vae, text = modules or make_modules()
    tensors = ldm.make_checkpoint(unet.state_dict(), vae.state_dict(), text.state_dict())
    tensors = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    path = folder / f"{name}.safetensors"
    save_file(tensors, path, metadata or {})
    if yaml:
        clip = folder / f"{name}-clip"
        clip.mkdir(exist_ok=True)
        (clip / "config.json").write_text(json.dumps(TEXT), encoding="utf-8")
        path.with_suffix(".yaml").write_text(json.dumps(make_config(clip.name, prediction)), encoding="utf-8")
    return path


def write_clip_folder(folder):
    """The whole folder, tokenizer included, for a WebUI."""
    bpe.write_clip_folder(folder, TEXT)
