"""SD 2.x and SDXL in miniature with random weights: the real number of blocks and layers of attention in the UNets, everything narrow."""
from pathlib import Path

import torch

from lib_lycoris.studio.bpe import make_tokenizer
from lib_lycoris.studio.checkpoint import StudioModel
from lib_lycoris.studio.sdxl import SDXLModel

from .tiny import TEXT, VAE

LAYERS = 3
SD2_UNET = {"block_out_channels": [32, 32, 64, 64], "attention_head_dim": [2, 2, 4, 4], "cross_attention_dim": 32, "sample_size": 8,
            "use_linear_projection": True}
SDXL_UNET = {
    "block_out_channels": [32, 32, 64], "attention_head_dim": [2, 2, 4], "cross_attention_dim": 48, "sample_size": 8, "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
}
OPEN_CLIP = {**TEXT, "hidden_act": "gelu", "pad_token_id": 0}


def make_text_encoder(kind, **other):
    """A tiny text encoder of that class of transformers, with random weights of about unit gain."""
    import transformers

    encoder = getattr(transformers, kind)(transformers.CLIPTextConfig(**{**OPEN_CLIP, **other})).eval()
    embeddings = next(module for name, module in encoder.named_modules() if name.endswith("embeddings"))
    with torch.no_grad():
        embeddings.token_embedding.weight.normal_()
        embeddings.position_embedding.weight.normal_(std=0.3)
    return encoder


def make_sd2(seed=0):
    """SD 2.1 for 768 pixels, which predicts velocity."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(seed)
    unet, vae = UNet2DConditionModel(**SD2_UNET).eval(), AutoencoderKL(**VAE).eval()
    return StudioModel(unet, vae, make_text_encoder("CLIPTextModel"), make_tokenizer(), "v", Path("tiny-2.safetensors"), side=64, base_model="sd_v2", filling=0,
                       _sha256="cd" * 32)


def make_sdxl(seed=0):
    """SDXL's base model, which predicts noise."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(seed)
    unet, vae = UNet2DConditionModel(**SDXL_UNET).eval(), AutoencoderKL(**VAE).eval()
    first = make_text_encoder("CLIPTextModel", hidden_act="quick_gelu", hidden_size=16, intermediate_size=32, num_attention_heads=2, pad_token_id=49407)
    second = make_text_encoder("CLIPTextModelWithProjection", projection_dim=24)
    return SDXLModel(unet, vae, (first, second), make_tokenizer(), "tiny-xl", "ef" * 32, side=64)
