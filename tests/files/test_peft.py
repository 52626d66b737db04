from __future__ import annotations

import json

import pytest

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.peft import alpha_from_config, alpha_from_diffusers, read_config

PATHS = ("unet.mid_block.attn.to_q", "unet.mid_block.attn.to_k", "to_q")


def test_alpha_and_patterns_are_those_of_pefts_own_matching():
    utils = pytest.importorskip("peft.utils.other", reason="peft is not installed here: its own pattern matching can't be compared")
    config = {"lora_alpha": 16, "alpha_pattern": {"to_q": 4, r"mid_block\.attn\..*": 2.5}}
    alpha_of = alpha_from_config(config)
    for path in PATHS:
        pattern = utils.get_pattern_key(config["alpha_pattern"], path)
        assert alpha_of(path, 8) == config["alpha_pattern"].get(pattern, 16)


def test_rank_stabilised_alpha_over_rank_is_alpha_over_the_root():
    assert alpha_from_config({"lora_alpha": 6, "use_rslora": True})("x", 9) / 9 == pytest.approx(6 / 3)


def test_a_config_without_alpha_says_nothing():
    assert alpha_from_config({})("x", 4) is None


def test_diffusers_metadata_holds_one_config_per_component():
    packed = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_k": 2}, "text_encoder.lora_alpha": 3, "text_encoder_2.lora_alpha": 5}
    alpha_of = alpha_from_diffusers({"lora_adapter_metadata": json.dumps(packed)})
    paths = ("unet.a.to_q", "unet.a.to_k", "text_encoder.a", "text_encoder_2.a", "other.a")
    assert [alpha_of(path, 4) for path in paths] == [8, 2, 3, 5, None]


@pytest.mark.parametrize(
    "config", [{"lora_alpha": "16"}, {"lora_alpha": float("nan")}, {"alpha_pattern": {"(": 1}}, {"alpha_pattern": {"(a+)+b": 1}}, {"alpha_pattern": [1]}]
)
def test_a_config_that_makes_no_sense_or_could_take_years_is_refused(config):
    with pytest.raises(NetworkFileError):
        alpha_from_config(config)


@pytest.mark.parametrize("packed", ["[1]", "{", "3", "[" * 100_000])
def test_broken_diffusers_metadata_is_refused(packed):
    with pytest.raises(NetworkFileError):
        alpha_from_diffusers({"lora_adapter_metadata": packed})


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff\xfe"])
def test_a_broken_config_beside_a_file_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_bytes(text)
    with pytest.raises(NetworkFileError, match="adapter_config"):
        read_config(tmp_path / "adapter_model.safetensors")


def test_no_config_is_an_empty_one(tmp_path):
    assert read_config(tmp_path / "adapter_model.safetensors") == {}
