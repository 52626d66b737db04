"""Adapters are inspected and rewritten by the command line; everything else goes the networks' way."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lib_lycoris.cli import main
from lib_lycoris.errors import ConfigError
from lib_lycoris.library.adapters import open_adapter, write_adapter
from lib_lycoris.networks.adapters.full import FullAdapter
from lib_lycoris.networks.adapters.style import StyleAdapter
from lib_lycoris.tools.adapters import convert_adapter, inspect_adapter
from tests.networks import adapter_oracles as slow


@pytest.fixture
def path(tmp_path):
    adapter = FullAdapter(channels=slow.NARROW, layout="sdxl")
    write_adapter(tmp_path / "a.safetensors", adapter.fill(slow.random_tensors(adapter)), {"ss_output_name": "a"}, preprocessor="canny", dtype=torch.float16)
    return tmp_path / "a.safetensors"


def test_inspect_says_what_an_adapter_is(path, capsys):
    assert main.main(["inspect", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["layout"], told["base_model"], told["preprocessor"], told["dtypes"]) == ("full", "sdxl", "sdxl_base_v1-0", "canny", ["float16"])
    assert told["parameters"] == sum(value.numel() for value in load_file(path).values()) and told["metadata"]["ss_output_name"] == "a"
    assert main.main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "full T2I-Adapter" in text and "SDXL" in text and "canny" in text and "16 pixels a cell" in text


def test_spellings_are_changed_there_and_back_with_the_same_numbers(path, tmp_path, capsys):
    there, back = tmp_path / "there" / "diffusion_pytorch_model.safetensors", tmp_path / "back.safetensors"
    there.parent.mkdir()
    assert main.main(["convert", str(path), str(there), "--to", "diffusers"]) == 0
    assert main.main(["convert", str(there), str(back), "--to", "tencent"]) == 0
    assert "TencentARC's spelling" in capsys.readouterr().out
    before, after = load_file(path), load_file(back)
    assert set(before) == set(after) and all(torch.equal(before[name], after[name]) for name in before)
    assert open_adapter(back).facts.preprocessor == "canny"
    assert json.loads((there.parent / "config.json").read_text())["adapter_type"] == "full_adapter_xl"


def test_forms_that_an_adapter_has_not_are_refused(path, tmp_path, capsys):
    assert main.main(["convert", str(path), str(tmp_path / "b.safetensors"), "--to", "peft"]) == 1 or "choose diffusers or tencent" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="diffusers or tencent"):
        convert_adapter(path, tmp_path / "b.safetensors", "kohya")
    with pytest.raises(ConfigError, match="the file itself"):
        convert_adapter(path, path, "diffusers")
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.zeros(8, 2),
               "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 8)}, tmp_path / "lora.safetensors")
    assert inspect_adapter(tmp_path / "lora.safetensors") is None
    assert convert_adapter(tmp_path / "lora.safetensors", tmp_path / "b.safetensors", "kohya") is None
    with pytest.raises(ConfigError, match="no T2I-Adapter"):
        convert_adapter(tmp_path / "lora.safetensors", tmp_path / "b.safetensors", "tencent")


def test_a_style_adapter_is_told_by_its_words(tmp_path, capsys):
    write_adapter(tmp_path / "s.safetensors", StyleAdapter(width=16, context=24, layers=1, tokens=3))
    assert main.main(["inspect", str(tmp_path / "s.safetensors")]) == 0
    assert "3 words of width 24" in capsys.readouterr().out
