"""Names with dots are those of the real modules; blocks and kernels are told from names."""

from __future__ import annotations

import pytest

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.tools.names import SDXL, block_name, block_order, dotted_name, is_convolution, kernel_side, kohya_key

UNETS = {
    "SD 1": {"block_out_channels": (32, 32, 32, 32)},
    "SDXL": {
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 3),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 48 + 32,
    },
}


@pytest.mark.parametrize("kind", UNETS)
def test_every_module_of_diffusers_unet_gets_its_dots_and_its_kernel_back(kind):
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DConditionModel(cross_attention_dim=16, attention_head_dim=8, norm_num_groups=8, **UNETS[kind])
    base = SDXL if kind == "SDXL" else "sd_v1"
    count = 0
    for name, module in unet.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        count += 1
        key = ("unet", name.replace(".", "_"))
        assert dotted_name(key[1]) == name
        if weight.ndim > 1:
            assert kernel_side(key) == (weight.shape[-1] if weight.ndim == 4 else 1), name
            assert is_convolution(key, base) == (weight.ndim == 4), name
        assert block_name(key) != "OTHER", name
    assert count > 200


def test_every_module_of_the_text_encoder_gets_its_dots_back():
    transformers = pytest.importorskip("transformers")
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=20)
    )
    for name, module in text.named_modules():
        if hasattr(module, "weight"):
            whole = name if name.startswith("text_model") else f"text_model.{name}"
            assert dotted_name(whole.replace(".", "_")) == whole


def test_a_module_of_another_model_has_no_dots():
    for name in ("joint_blocks_0_context_block_attn_qkv", "down_blocks_0_strange_1", "conv_inn"):
        with pytest.raises(NetworkFileError, match="none of a Stable Diffusion"):
            dotted_name(name)


@pytest.mark.parametrize(
    ("key", "block"),
    [
        (("te1", "text_model_encoder_layers_0_mlp_fc1"), "TE1"),
        (("te2", "text_model_encoder_layers_0_mlp_fc1"), "TE2"),
        (("unet", "conv_in"), "IN00"),
        (("unet", "down_blocks_0_attentions_1_proj_in"), "IN02"),
        (("unet", "down_blocks_2_downsamplers_0_conv"), "IN09"),
        (("unet", "mid_block_resnets_1_conv2"), "M00"),
        (("unet", "up_blocks_3_attentions_2_proj_out"), "OUT11"),
        (("unet", "up_blocks_0_upsamplers_0_conv"), "OUT02"),
        (("unet", "conv_out"), "OUT"),
        (("unet", "time_embedding_linear_1"), "TIME"),
        (("unet", "add_embedding_linear_2"), "LABEL"),
        (("unet", "single_blocks_3_lin"), "OTHER"),
    ],
)
def test_a_module_is_in_its_block(key, block):
    assert block_name(key) == block


def test_blocks_stand_in_the_order_in_which_the_data_runs():
    blocks = ["OUT", "OUT11", "M00", "IN11", "OUT00", "TE2", "TIME", "IN00", "TE1", "OTHER"]
    assert sorted(blocks, key=block_order) == ["TE1", "TE2", "TIME", "IN00", "IN11", "M00", "OUT00", "OUT11", "OUT", "OTHER"]


def test_kohyas_names_are_ldms_in_sdxl_and_diffusers_elsewhere():
    key = ("unet", "up_blocks_0_upsamplers_0_conv")
    assert kohya_key(key, "sd_v1") == "lora_unet_up_blocks_0_upsamplers_0_conv"
    assert kohya_key(key, SDXL) == "lora_unet_output_blocks_2_2_conv"
    assert [kohya_key((component, "text_model"), base) for component, base in (("te1", "sd_v1"), ("te1", None), ("te1", SDXL), ("te2", SDXL))] == [
        "lora_te_text_model",
        "lora_te_text_model",
        "lora_te1_text_model",
        "lora_te2_text_model",
    ]
