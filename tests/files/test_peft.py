from __future__ import annotations

import json

import pytest

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.peft import facts_from_config, facts_from_diffusers, read_config

PATHS = ("unet.mid_block.attn.to_q", "unet.mid_block.attn.to_k", "to_q")


def test_alpha_and_patterns_are_those_of_pefts_own_matching():
    utils = pytest.importorskip("peft.utils.other", reason="peft is not installed here: its own pattern matching can't be compared")
    config = {"lora_alpha": 16, "alpha_pattern": {"to_q": 4, r"mid_block\.attn\..*": 2.5}}
    facts_of = facts_from_config(config)
    for path in PATHS:
        pattern = utils.get_pattern_key(config["alpha_pattern"], path)
        assert facts_of(path, 8) == {"alpha": config["alpha_pattern"].get(pattern, 16)}


def test_rank_stabilised_alpha_over_rank_is_alpha_over_the_root():
    assert facts_from_config({"lora_alpha": 6, "use_rslora": True})("x", 9)["alpha"] / 9 == pytest.approx(6 / 3)


def test_a_config_without_alpha_says_nothing():
    assert facts_from_config({})("x", 4) == {}


def test_diffusers_metadata_holds_one_config_per_component():
    packed = {"unet.lora_alpha": 8, "unet.alpha_pattern": {"to_k": 2}, "text_encoder.lora_alpha": 3, "text_encoder_2.lora_alpha": 5}
    facts_of = facts_from_diffusers({"lora_adapter_metadata": json.dumps(packed)})
    paths = ("unet.a.to_q", "unet.a.to_k", "text_encoder.a", "text_encoder_2.a", "other.a")
    assert [facts_of(path, 4).get("alpha") for path in paths] == [8, 2, 3, 5, None]


def test_diffusers_metadata_of_one_component_alone_has_no_prefixes():
    facts_of = facts_from_diffusers({"lora_adapter_metadata": json.dumps({"lora_alpha": 8, "alpha_pattern": {"to_k": 2}})})
    assert [facts_of(path, 4)["alpha"] for path in ("down_blocks.0.to_q", "down_blocks.0.to_k")] == [8, 2]


def test_every_kind_of_config_says_its_own():
    assert facts_from_config({"peft_type": "ADALORA", "lora_alpha": 6, "init_r": 4})("x", 2) == {"alpha": 6, "init_rank": 4}
    assert facts_from_config({"peft_type": "ADALORA", "lora_alpha": 0, "init_r": 4})("x", 2) == {"alpha": 2, "init_rank": 4}
    assert facts_from_config({"peft_type": "ADALORA"})("x", 2) == {"alpha": 8, "init_rank": 12}
    lokr = facts_from_config({"peft_type": "LOKR", "alpha": 6, "r": 4, "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 1}})
    assert lokr("a.to_q", 0) == {"scale": 1.5} and lokr("a.to_k", 0) == {"scale": 0.5}
    ia3 = facts_from_config({"peft_type": "IA3", "feedforward_modules": ["conv", "a.to_q"]})
    assert [ia3(path, 0)["feedforward"] for path in ("x.conv", "conv", "xconv", "b.a.to_q", "b.to_q")] == [True, True, False, True, False]
    assert facts_from_config({"peft_type": "IA3", "feedforward_modules": r".*\.ff"})("a.ff", 0) == {"feedforward": True}
    assert facts_from_config({"peft_type": "IA3"})("a.ff", 0) == {"feedforward": False}
    assert facts_from_config({"peft_type": "OFT"})("a", 0) == {"cayley_neumann": True}
    oft = facts_from_config({"peft_type": "OFT", "use_cayley_neumann": False, "coft": True, "eps": 1e-4, "num_cayley_neumann_terms": 3})
    assert oft("a", 0) == {"cayley_neumann": False, "cayley_terms": 3, "coft_limit": 1e-4}


@pytest.mark.parametrize(
    "config",
    [
        {"lora_alpha": "16"},
        {"lora_alpha": float("nan")},
        {"alpha_pattern": {"(": 1}},
        {"alpha_pattern": {"(a+)+b": 1}},
        {"alpha_pattern": [1]},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"peft_type": "ADALORA", "init_r": 0},
        {"peft_type": "ADALORA", "init_r": "4"},
        {"peft_type": "LOHA", "rank_pattern": {"x": None}},
        {"peft_type": "IA3", "feedforward_modules": [1]},
        {"peft_type": "IA3", "feedforward_modules": "("},
        {"peft_type": "OFT", "num_cayley_neumann_terms": 10**9},
        {"peft_type": "OFT", "coft": True, "eps": None},
    ],
)
def test_a_config_that_makes_no_sense_or_could_take_years_is_refused(config):
    with pytest.raises(NetworkFileError):
        facts_from_config(config)


def test_a_scale_that_can_not_be_is_told_with_its_layer():
    with pytest.raises(NetworkFileError, match="conv_in"):
        facts_from_config({"peft_type": "LOKR", "alpha": 8, "r": 0})("conv_in", 0)


@pytest.mark.parametrize("packed", ["[1]", "{", "3", "[" * 100_000])
def test_broken_diffusers_metadata_is_refused(packed):
    with pytest.raises(NetworkFileError):
        facts_from_diffusers({"lora_adapter_metadata": packed})


@pytest.mark.parametrize("text", [b"[1]", b"{", b"\xff\xfe"])
def test_a_broken_config_beside_a_file_is_refused(tmp_path, text):
    (tmp_path / "adapter_config.json").write_bytes(text)
    with pytest.raises(NetworkFileError, match="adapter_config"):
        read_config(tmp_path / "adapter_model.safetensors")


def test_no_config_is_an_empty_one(tmp_path):
    assert read_config(tmp_path / "adapter_model.safetensors") == {}
