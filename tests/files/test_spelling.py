from __future__ import annotations

import pytest
import torch

from lib_lycoris.files.spelling import diffusers_to_ldm_unet, kohya_name, ldm_to_diffusers_unet, normal_name

RESNET = ("in_layers_0", "in_layers_2", "emb_layers_1", "out_layers_0", "out_layers_3", "skip_connection")
ATTENTION = ("norm", "proj_in", "proj_out", "transformer_blocks_0_attn1_to_q", "transformer_blocks_0_attn2_to_out_0", "transformer_blocks_0_ff_net_0_proj")


def ldm_names(depths: tuple[bool, ...], label: bool) -> set[str]:
    """The LDM names of a whole UNet, counted out as openaimodel.py builds it: `depths` says on which levels there is attention."""
    names = {"time_embed_0", "time_embed_2", "input_blocks_0_0", "out_0", "out_2"} | ({"label_emb_0_0", "label_emb_0_2"} if label else set())

    def block(name, *kinds):
        for place, kind in enumerate(kinds):
            names.update(f"{name}_{place}_{part}" for part in {"r": RESNET, "a": ATTENTION, "o": ("op",), "u": ("conv",)}[kind])

    index = 1
    for level, attention in enumerate(depths):
        for _ in range(2):
            block(f"input_blocks_{index}", "r", *(["a"] if attention else []))
            index += 1
        if level + 1 < len(depths):
            block(f"input_blocks_{index}", "o")
            index += 1
    block("middle_block", "r", "a", "r")
    index = 0
    for level in reversed(range(len(depths))):
        for place in range(3):
            block(f"output_blocks_{index}", "r", *(["a"] if depths[level] else []), *(["u"] if level and place == 2 else []))
            index += 1
    return names


SD1, SDXL = ldm_names((True, True, True, False), False), ldm_names((False, True, True), True)


@pytest.mark.parametrize(("names", "sdxl"), [(SD1, False), (SDXL, True)])
def test_every_ldm_name_goes_to_diffusers_and_back(names, sdxl):
    there = {name: ldm_to_diffusers_unet(name) for name in names}
    assert len(set(there.values())) == len(names)
    assert not any("input_blocks" in name or "output_blocks" in name or "middle_block_" in name for name in there.values())
    assert {diffusers_to_ldm_unet(name, sdxl) for name in there.values()} == names


def diffusers_unet(sdxl: bool) -> torch.nn.Module:
    models = pytest.importorskip("diffusers", reason="diffusers is not installed here: its own module names can't be compared")
    attention, plain = "CrossAttnDownBlock2D", "DownBlock2D"
    down = (plain, attention, attention) if sdxl else (attention, attention, attention, plain)
    up = tuple(kind.replace("Down", "Up") for kind in reversed(down))
    more = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 48} if sdxl else {}
    return models.UNet2DConditionModel(
        block_out_channels=(32,) * len(down), down_block_types=down, up_block_types=up, cross_attention_dim=16, attention_head_dim=2, norm_num_groups=32, **more
    )


@pytest.mark.parametrize(("names", "sdxl"), [(SD1, False), (SDXL, True)])
def test_diffusers_own_module_names_go_to_ldm_and_back(names, sdxl):
    unet = diffusers_unet(sdxl)
    leaves = [name.replace(".", "_") for name, module in unet.named_modules() if next(module.parameters(recurse=False), None) is not None]
    ldm = {diffusers_to_ldm_unet(name, sdxl) for name in leaves}
    assert len(ldm) == len(leaves)
    assert {ldm_to_diffusers_unet(name) for name in ldm} == set(leaves)
    blocks = ("input_blocks", "output_blocks", "middle_block", "time_embed_", "label_emb", "out_")
    assert all(name.startswith(blocks) for name in ldm)
    # the hand-counted list names the attention's parts by example and has every shortcut; a UNet of one width has some only
    named = {name for name in ldm if "transformer_blocks" not in name}
    assert named <= names
    assert {name for name in names if "transformer_blocks" not in name} - named <= {name for name in names if name.endswith("skip_connection")}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in", ("unet", "down_blocks_0_attentions_0_proj_in")),
        ("lora_unet_input_blocks_1_1_proj_in", ("unet", "down_blocks_0_attentions_0_proj_in")),
        ("lora_unet_output_blocks_2_1_conv", ("unet", "up_blocks_0_upsamplers_0_conv")),
        ("lora_unet_output_blocks_2_2_conv", ("unet", "up_blocks_0_upsamplers_0_conv")),
        ("lycoris_down_blocks_0_resnets_0_conv1", ("unet", "down_blocks_0_resnets_0_conv1")),
        ("lycoris_text_model_encoder_layers_3_mlp_fc1", ("te1", "text_model_encoder_layers_3_mlp_fc1")),
        ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", ("te1", "text_model_encoder_layers_0_self_attn_q_proj")),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", ("te1", "text_model_encoder_layers_0_self_attn_q_proj")),
        ("lora_te2_text_model_encoder_layers_31_mlp_fc2", ("te2", "text_model_encoder_layers_31_mlp_fc2")),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out", ("unet", "mid_block_attentions_0_transformer_blocks_0_attn1_to_out_0")),
        ("unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", ("unet", "up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k")),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_v", ("te1", "text_model_encoder_layers_0_self_attn_v_proj")),
        ("text_encoder_2.text_model.encoder.layers.0.self_attn.k_proj", ("te2", "text_model_encoder_layers_0_self_attn_k_proj")),
        ("base_model.model.down_blocks.0.attentions.0.proj_out", ("unet", "down_blocks_0_attentions_0_proj_out")),
        ("base_model.model.text_model.encoder.layers.0.mlp.fc1", ("te1", "text_model_encoder_layers_0_mlp_fc1")),
        ("base_model.model.encoder.layers.0.mlp.fc1", ("te1", "text_model_encoder_layers_0_mlp_fc1")),
        ("base_model.model.unet.conv_in", ("unet", "conv_in")),
        ("diffusion_model.middle_block.1.proj_in", ("unet", "mid_block_attentions_0_proj_in")),
        ("lora_te2_transformer_resblocks_4_attn_out_proj", ("te2", "text_model_encoder_layers_4_self_attn_out_proj")),
        ("lora_te_model_transformer_resblocks_4_mlp_c_proj", ("te1", "text_model_encoder_layers_4_mlp_fc2")),
        ("lora_te_model_transformer_resblocks_4_ln_2", ("te1", "text_model_encoder_layers_4_layer_norm2")),
        ("lora_te_ln_final", ("te1", "text_model_final_layer_norm")),
        ("lora_te_text_model_text_model_encoder_layers_0_mlp_fc1", ("te1", "text_model_encoder_layers_0_mlp_fc1")),
        ("something.else", ("unet", "something_else")),
    ],
)
def test_a_spelling_has_one_normal_form(key, expected):
    assert normal_name(key) == expected


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("component", ["unet", "te1", "te2"])
def test_kohyas_name_reads_back_as_what_it_was_made_from(component, single):
    name = "conv_in" if component == "unet" else "text_model_encoder_layers_0_mlp_fc1"
    assert normal_name(kohya_name(component, name, single)) == (component, name)


def test_normal_names_are_their_own_normal_form():
    for name in SD1 | SDXL:
        normal = ldm_to_diffusers_unet(name)
        assert normal_name(f"lora_unet_{normal}") == ("unet", normal)
