"""The tools' verbs as a user types them."""

from __future__ import annotations

import json

import pytest
import torch

from lib_lycoris.files.safetensors import read_header
from tests.cli.test_main import run
from tests.tools.checkpoints import lora_for_all, make_trees, state_of, write_checkpoint
from tests.tools.helpers import assert_same, deltas, loha, write, write_locon


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A folder with two networks, a LoHa, and two checkpoints of SD 2 in small, in which the commands run."""
    monkeypatch.chdir(tmp_path)
    write_locon(tmp_path / "a.safetensors")
    write_locon(tmp_path / "b.safetensors", seed=9)
    write(tmp_path / "loha.safetensors", loha("lora_unet_mid_block_attentions_0_proj_in", (32, 32)))
    unet, text_encoders = make_trees("sd2")
    state = state_of("sd2", unet, text_encoders)
    write_checkpoint(tmp_path / "base.safetensors", state)
    write(tmp_path / "fits.safetensors", lora_for_all("sd2", unet, text_encoders, every=4))
    return tmp_path


def test_inspect_prints_text_or_one_json_object(files, capsys):
    assert run("inspect", "a.safetensors") == 0
    text = capsys.readouterr().out
    assert "Stable Diffusion 1.x" in text
    assert "IN01" in text
    assert run("inspect", "a.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 6


def test_inspect_draws(files, capsys):
    pytest.importorskip("matplotlib")
    assert run("inspect", "a.safetensors", "--plot", "a.png") == 0
    assert (files / "a.png").read_bytes().startswith(b"\x89PNG")


def test_convert_there_and_back(files, capsys):
    assert run("convert", "a.safetensors", "d.safetensors", "--to", "diffusers") == 0
    assert run("convert", "d.safetensors", "folder", "--to", "peft") == 0
    assert run("convert", "folder", "back.safetensors", "--to", "kohya") == 0
    assert run("convert", "loha.safetensors", "locon.safetensors", "--to", "locon") == 0
    assert "back.safetensors: 6 layers" in capsys.readouterr().out
    assert_same(deltas(files / "a.safetensors"), deltas(files / "back.safetensors"))


def test_merge_two_networks_and_into_a_checkpoint(files, capsys):
    assert run("merge", "both.safetensors", "a.safetensors:0.5", "b.safetensors:-0.5") == 0
    assert run("merge", "both.safetensors", "a.safetensors:0.5", "b.safetensors:te=1,unet=0.5", "--rank", "4", "--dtype", "fp16") == 0
    assert run("merge", "model.safetensors", "fits.safetensors:0.5", "--checkpoint", "base.safetensors") == 0
    told = capsys.readouterr()
    assert "of the energy kept" in told.err
    assert set(read_header(files / "model.safetensors").tensors) == set(read_header(files / "base.safetensors").tensors)


def test_extract_and_resize(files, capsys):
    assert run("merge", "model.safetensors", "fits.safetensors:1", "--checkpoint", "base.safetensors") == 0
    assert run("extract", "base.safetensors", "model.safetensors", "found.safetensors") == 0
    assert run("extract", "base.safetensors", "model.safetensors", "found.safetensors", "--energy", "0.9", "--full") == 0
    assert run("resize", "a.safetensors", "small.safetensors") == 0
    assert run("resize", "a.safetensors", "small.safetensors", "--rank", "2", "--dtype", "bf16") == 0
    told = capsys.readouterr()
    assert "modules that do not differ" in told.err
    assert told.out.count("of the energy kept") == 4
    assert {kind for name, (kind, _) in read_header(files / "small.safetensors").tensors.items() if not name.endswith("alpha")} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["inspect", "none.safetensors"], 1, "does not exist"),
        (["inspect", "base.safetensors"], 1, "a whole checkpoint"),
        (["inspect", "a.safetensors", "--plot", "a.jpg"], 2, ".png"),
        (["convert", "a.safetensors", "a.safetensors", "--to", "kohya"], 2, "is the input"),
        (["convert", "loha.safetensors", "x.safetensors", "--to", "diffusers"], 1, "--to locon"),
        (["merge", "x.safetensors", "a.safetensors:much"], 2, "strength"),
        (["merge", "a.safetensors", "a.safetensors:1"], 2, "is the input"),
        (["merge", "x.safetensors", "a.safetensors:1", "--rank", "0"], 2, "--rank 0"),
        (["merge", "x.safetensors", "a.safetensors", "--rank", "4", "--checkpoint", "base.safetensors"], 2, "leave them out"),
        (["merge", "x.safetensors", "a.safetensors:1", "--checkpoint", "base.safetensors"], 1, "another model"),
        (["extract", "base.safetensors", "a.safetensors", "x.safetensors"], 1, "no Stable"),
        (["extract", "base.safetensors", "base.safetensors", "x.safetensors"], 1, "do not differ"),
        (["extract", "base.safetensors", "base.safetensors", "x.safetensors", "--energy", "2"], 2, "--energy 2"),
        (["resize", "a.safetensors", "x.bin", "--rank", "2"], 2, ".safetensors"),
        (["resize", "a.safetensors", "no folder/x.safetensors", "--rank", "2"], 1, "could not be written"),
    ],
)
def test_what_goes_wrong_is_one_line_with_its_exit_code_and_leaves_no_file(arguments, code, words, files, capsys):
    before = {each.name: each.read_bytes() for each in files.iterdir()}
    assert run(*arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]
    assert {each.name: each.read_bytes() for each in files.iterdir()} == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["convert", "a", "b"],
        ["convert", "a", "b", "--to", "oil"],
        ["merge", "a"],
        ["resize", "a"],
        ["resize", "a", "b", "--rank", "2", "--energy", "0.5"],
        ["extract", "a"],
    ],
)
def test_missing_or_contradicting_arguments_are_a_2(arguments, capsys):
    assert run(*arguments) == 2
    assert "usage" in capsys.readouterr().err
