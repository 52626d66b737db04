from __future__ import annotations

import dataclasses
import json

import pytest

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.metadata import HELD, MINIMUM, TrainingFacts, make_metadata, read_base_model, reduce_metadata, with_hashes

FULL = TrainingFacts(
    name="cat",
    rank=8,
    alpha=4.0,
    conv_rank=4,
    conv_alpha=2.0,
    checkpoint_name="/home/alice/models/base.safetensors",
    checkpoint_hash="ab" * 32,
    resolution=512,
    pictures=8,
    batch_size=2,
    steps=90,
    planned_steps=100,
    learning_rate=1e-4,
    unet_learning_rate=1e-4,
    text_encoder_learning_rate=5e-5,
    optimizer="AdamW",
    schedule="cosine",
    precision="fp32",
    seed=3,
    clip_skip=1, validation_loss=0.25,
    started=1_700_000_000.0,
    finished=1_700_000_060.0,
    trigger_words=("cat", "sitting"),
    tag_frequency={"a cat": 8},
    comment="for tests",
)


def test_full_metadata_holds_exactly_the_documented_keys_as_text():
    metadata = with_hashes(make_metadata(FULL), "cd" * 32, "12345678")
    assert metadata.keys() == HELD.keys()
    assert all(type(value) is str for value in metadata.values())
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}
    assert metadata["modelspec.date"] == "2023-11-14T22:14:20"


@pytest.mark.parametrize("path", ["/home/alice/models/base.safetensors", "C:\\Users\\alice\\base.safetensors"])
def test_metadata_holds_no_path_and_no_user_name(path):
    metadata = make_metadata(dataclasses.replace(FULL, checkpoint_name=path))
    assert metadata["ss_sd_model_name"] == "base.safetensors"
    assert not any("alice" in value or "/home" in value or "\\" in value for value in metadata.values())


def test_reduced_metadata_keeps_only_what_a_loader_needs():
    reduced = reduce_metadata(make_metadata(FULL))
    assert reduced.keys() == set(MINIMUM)
    assert reduce_metadata({"ss_tag_frequency": "{}", "ss_v2": "False"}) == {"ss_v2": "False"}


def test_what_is_not_known_is_left_out():
    metadata = make_metadata(TrainingFacts(name="cat"))
    assert "ss_seed" not in metadata and "ss_network_args" not in metadata and "None" not in metadata.values()


@pytest.mark.parametrize("wrong", [{"name": "a/b"}, {"name": ""}, {"base_model": "sd_v9"}, {"prediction": "x0"}])
def test_facts_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError):
        TrainingFacts(**{"name": "cat", **wrong})


@pytest.mark.parametrize("base", ["sd_v1", "sd_v2", "sdxl_base_v1-0"])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_base_model_reads_back_from_either_family_of_keys(base, prediction):
    metadata = make_metadata(TrainingFacts(name="cat", base_model=base, prediction=prediction))
    assert read_base_model(metadata) == base
    assert read_base_model({key: value for key, value in metadata.items() if key.startswith("modelspec.")}) == base


@pytest.mark.parametrize(
    ("key", "width", "base"),
    [
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight", 768, "sd_v1"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.lora_A.weight", 1024, "sd_v2"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight", 2048, "sdxl_base_v1-0"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight", 2048, "sdxl_base_v1-0"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", 1280, "sdxl_base_v1-0"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_k.lora_down.weight", 768, None),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight", 768, None),
    ],
)
def test_without_metadata_the_base_model_is_read_from_keys_and_shapes(key, width, base):
    assert read_base_model({}, {key: (4, width)}) == base
