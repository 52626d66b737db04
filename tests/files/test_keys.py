from __future__ import annotations

import pytest

from lib_lycoris.files.keys import describe_foreign, is_whole_parameter, split_key

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("lora_unet_mid_block_resnets_0_conv1.lora_down.weight", ("lora_unet_mid_block_resnets_0_conv1", "lora_down.weight")),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.alpha", ("lora_te_text_model_encoder_layers_0_mlp_fc1", "alpha")),
        ("lycoris_mid_block_resnets_0_conv1.lora_mid.weight", ("lycoris_mid_block_resnets_0_conv1", "lora_mid.weight")),
        ("lora_unet_conv_in.lora_A.weight", ("lora_unet_conv_in", "lora_down.weight")),
        (f"{TO_Q}.to_q.lora.down.weight", (f"{TO_Q}.to_q", "lora_down.weight")),
        (f"{TO_Q}.to_q.alpha", (f"{TO_Q}.to_q", "alpha")),
        (f"{TO_Q}.to_q.lora.alpha", (f"{TO_Q}.to_q", "alpha")),
        (f"{TO_Q}.processor.to_q_lora.up.weight", (f"{TO_Q}.processor.to_q", "lora_up.weight")),
        (f"{TO_Q}.to_q.lora_linear_layer.up.weight", (f"{TO_Q}.to_q", "lora_up.weight")),
        (f"{TO_Q}.to_q.lora_A.weight", (f"{TO_Q}.to_q", "lora_down.weight")),
        (f"base_model.model.{TO_Q}.to_q.lora_B.default.weight", (f"base_model.model.{TO_Q}.to_q", "lora_up.weight")),
        (f"base_model.model.{TO_Q}.to_q.lora_B.bias", (f"base_model.model.{TO_Q}.to_q", "lora_up.bias")),
        (f"base_model.model.{TO_Q}.to_q.lora_E", (f"base_model.model.{TO_Q}.to_q", "lora_E")),
        (f"base_model.model.{TO_Q}.to_q.lora_A.default", (f"base_model.model.{TO_Q}.to_q", "lora_A")),
        (f"{TO_Q}.to_q.hada_w1_a", (f"{TO_Q}.to_q", "hada_w1_a")),
        (f"{TO_Q}.to_q.lora_magnitude_vector.weight", (f"{TO_Q}.to_q", "lora_magnitude_vector")),
        ("lora_unet_a_attn1.to_q.lora_magnitude_vector", ("lora_unet_a_attn1_to_q", "lora_magnitude_vector")),
        ("lora_unet.conv_in.lora_magnitude_vector", ("lora_unet_conv_in", "lora_magnitude_vector")),
        ("lora_te1_layers_0_mlp.fc1.lora_magnitude_vector", ("lora_te1_layers_0_mlp_fc1", "lora_magnitude_vector")),
        ("lora_unet_a_attn1_to_q_lora.down.weight", ("lora_unet_a_attn1_to_q", "lora_down.weight")),
        ("model.diffusion_model.input_blocks.0.0.weight", None),
        ("bundle_emb.cat.string_to_param.*", None),
        ("ip_adapter.0.to_q_lora.down.weight", None),
    ],
)
def test_a_key_is_a_module_path_and_a_parameter(key, expected):
    assert split_key(key) == expected


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "checkpoint"),
        ("emb_params", "embedding"),
        ("control_model.input_hint_block.0.weight", "ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "ControlNet"),
        ("adapter.body.0.resnets.0.block1.weight", "T2I-Adapter"),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
        ("lllite_unet_input_blocks_1_1.down.0.weight", "LLLite"),
        ("decoder.conv_in.weight", "VAE"),
        ("down_blocks.0.resnets.0.conv1.weight", "UNet"),
        ("base_model.model.down_blocks.0.attn1.to_q.miss_block", "PEFT"),
        ("base_model.unilora_theta_d", "PEFT"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "text encoder"),
    ],
)
def test_a_foreign_file_is_named_as_what_it_is(key, word):
    assert word in describe_foreign([key])


@pytest.mark.parametrize(("key", "whole"), [
    ("base_model.model.conv_out.weight", True), ("base_model.model.a.to_out.0.base_layer.bias", True), ("unet.a.base_layer.bias", True),
    ("base_model.model.token_embedding.token_adapter.trainable_tokens_delta", True), ("bundle_emb.cat.clip_l", False), ("lora_unet_a.scalar", False)])
def test_what_peft_saves_whole_is_told_from_other_strays(key, whole):
    assert is_whole_parameter(key) is whole


def test_a_file_of_nothing_known_has_no_description():
    assert describe_foreign(["x", "y.z"]) is None
