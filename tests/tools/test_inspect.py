"""What is told of a network file, and the picture of it."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from lib_lycoris import open_network
from lib_lycoris.cli.inspect import render
from lib_lycoris.errors import ConfigError, LycoError, NetworkFileError
from lib_lycoris.tools.inspect import inspect
from lib_lycoris.tools.plot import block_spectra, checked_plot, plot
from lib_lycoris.tools.source import layers_by_target, open_source
from tests.tools.helpers import CONV, K2, SHAPES, Q, deltas, loha, lokr, lora, rand, write, write_locon

METADATA = {
    "ss_tag_frequency": json.dumps({"5_zorbix": {"zorbix": 8, "red": 3}, "2_b": {"red": 1}}),
    "ss_num_train_images": "8",
    "ss_learning_rate": "0.0001",
    "ss_training_comment": "two\nlines \x1b[31m",
}


def test_figures_are_those_of_the_file(tmp_path):
    path = write_locon(tmp_path / "a.safetensors", metadata=METADATA)
    report = inspect(path)
    network = open_network(path)
    assert report.kind == "locon"
    assert report.algorithms == ["lora"]
    assert report.base_model == "sd_v1"  # by the width of the cross-attention's keys
    assert report.layers == len(network.layers) == 6
    assert report.components == {"unet": 5, "te1": 1}
    assert report.ranks == {**{name: 2 + place for place, name in enumerate(SHAPES)}, "lora_unet_mid_block_resnets_0_conv2": 4}
    assert report.alphas[Q] == 1.0
    assert report.nbytes == network.nbytes
    assert report.parameters == sum(tensor.numel() for layer in network.layers.values() for name, tensor in layer.tensors().items() if name != "alpha")
    assert report.metadata == METADATA
    assert report.training == {"pictures": "8", "learning rate": "0.0001", "comment": METADATA["ss_training_comment"]}
    assert report.tags == {"zorbix": 8, "red": 4}
    assert report.trigger_words == ["zorbix", "b"]
    assert report.problems == []


def test_norms_are_those_of_the_blocks_deltas(tmp_path):
    path = write_locon(tmp_path / "a.safetensors")
    found = deltas(path)
    blocks = {"TE1": ["text_model"], "IN01": ["down_blocks_0"], "M00": ["mid_block"]}
    norms = inspect(path).norms
    assert list(norms) == list(blocks)
    for block, starts in blocks.items():
        expected = sum(delta.double().square().sum().item() for (_, name), delta in found.items() if name.startswith(tuple(starts))) ** 0.5
        assert norms[block] == pytest.approx(expected, rel=1e-5)


def test_json_has_the_keys_that_scripts_rely_on_and_is_plain(tmp_path):
    report = inspect(write_locon(tmp_path / "a.safetensors", metadata=METADATA))
    values = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert list(values)[:9] == ["kind", "algorithms", "base_model", "layers", "ranks", "parameters", "bytes", "metadata", "norms"]


@pytest.mark.parametrize(
    ("tensors", "kind", "base"),
    [
        (lora(Q, (32, 32)), "lora", None),
        (loha(K2, (320, 1024)), "loha", "sd_v2"),
        (lokr(K2, (640, 2048)), "lokr", "sdxl_base_v1-0"),
        (lora("lora_te2_text_model_encoder_layers_0_mlp_fc1", (8, 8)), "lora", "sdxl_base_v1-0"),
        (lora(Q.replace("blocks_0_attn1", "blocks_1_attn1"), (32, 32)), "lora", "sdxl_base_v1-0"),
        (lora(Q, (32, 32)) | {f"{Q}.dora_scale": torch.ones(32, 1)}, "dora", None),
        (loha(Q, (32, 32)) | {f"{Q}.dora_scale": torch.ones(32, 1)}, "loha with dora", None),
        (lora(Q, (32, 32)) | loha(CONV, (32, 32, 3, 3)), "mixed", None),
        ({f"{Q}.diff": rand(0, 4, 4)}, "full", None),
        ({f"{Q}.weight": torch.ones(32), f"{Q}.on_input": torch.tensor(0)}, "ia3", None),
    ],
)
def test_kinds_and_base_models_are_told_from_the_layers(tensors, kind, base, tmp_path):
    report = inspect(write(tmp_path / "a.safetensors", tensors))
    assert (report.kind, report.base_model) == (kind, base)
    json.dumps(report.as_json(), allow_nan=False)
    assert render(report)


def test_problems_are_named(tmp_path):
    empty = {name: torch.zeros_like(tensor) if "lora_up" in name else tensor for name, tensor in lora(CONV, (32, 32, 3, 3)).items()}
    tensors = lora(Q, (32, 32)) | {f"{Q}.dora_scale": torch.ones(32, 1)} | lora("lora_unet_double_blocks_0_x", (8, 8)) | empty | {"stray": torch.ones(1)}
    report = inspect(write(tmp_path / "a.safetensors", tensors))
    said = "\n".join(report.problems)
    for words in (
        "keys that belong to no layer: 1, for example stray",
        "layers without a home in Stable Diffusion 1, 2 or XL: 1",
        "layers whose change depends on the base weight (dora): 1",
        "layers that change nothing, all values of a factor being zero: 1",
    ):
        assert words in said
    assert report.norms["IN01"] is None
    assert any("needs a checkpoint" in line for line in render(report))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"modelspec.trigger_phrase": "a, b"}, ["a", "b"]),
        ({"ss_dataset_dirs": '{"10_sks dog": {}}'}, ["sks dog"]),
        ({"ss_tag_frequency": "not json"}, []),
        ({"ss_tag_frequency": '{"captions": {"zorbix": 8, "red": 3}}', "ss_num_train_images": "8"}, ["zorbix"]),
        ({"ss_tag_frequency": '{"a": {"x": "many"}}'}, []),
        ({"ss_tag_frequency": "[1, 2]"}, []),
        ({}, []),
    ],
)
def test_trigger_words_are_found_where_a_file_has_them(metadata, words, tmp_path):
    assert inspect(write_locon(tmp_path / "a.safetensors", metadata=metadata)).trigger_words == words


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_text_for_people_fits_the_terminal_and_holds_no_control_characters(width, tmp_path):
    lines = render(inspect(write_locon(tmp_path / "a.safetensors", metadata=METADATA | {"modelspec.trigger_phrase": "word " * 100})), width)
    assert all(len(line) <= width for line in lines)
    assert all(line.isprintable() for line in lines)
    assert "\n".join(lines).count("word") > 50


def test_the_spectrum_of_a_block_is_the_mean_of_its_layers_squares(tmp_path):
    network = open_source(write_locon(tmp_path / "a.safetensors"))
    spectra = block_spectra(layers_by_target(network))
    found = deltas(network)
    for block, start in (("TE1", "text_model"), ("IN01", "down_blocks"), ("M00", "mid_block")):
        values = [torch.linalg.svdvals(delta.flatten(1).double()) for (_, name), delta in found.items() if name.startswith(start)]
        count = len(spectra[block])
        mean = sum(torch.nn.functional.pad(each[:count], (0, max(0, count - len(each)))).square() for each in values) / len(values)
        assert torch.allclose(spectra[block], mean.sqrt(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # matplotlib's own, with a newer pyparsing
def test_a_picture_is_drawn_also_of_a_network_without_norms(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    for name, tensors in (
        ("a$b.safetensors", lora(Q, (32, 32)) | lora(CONV, (32, 32, 3, 3))),
        ("c.safetensors", {f"{Q}.weight": torch.ones(32), f"{Q}.on_input": torch.tensor(0)}),
    ):
        network = open_source(write(tmp_path / name, tensors))
        plot(inspect(tmp_path / name), block_spectra(layers_by_target(network)), tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as picture:
            assert picture.size[0] > 800
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
    assert "matplotlib.pyplot" not in sys.modules  # that would look for a screen


def test_without_matplotlib_one_line_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(LycoError, match=r"matplotlib is missing.*install\.py studio"):
        checked_plot(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"ends in \.png"):
        checked_plot(tmp_path / "a.jpg")


def test_what_is_no_network_is_told(tmp_path):
    with pytest.raises(NetworkFileError, match="does not exist"):
        inspect(tmp_path / "none.safetensors")
