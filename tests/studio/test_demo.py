"""The demo, as a user runs it: the main job from pictures to pictures."""
from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from PIL import Image
from safetensors.torch import load_file

import lib_lycoris
from lib_lycoris.errors import DatasetError
from lib_lycoris.files.spelling import normal_name
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.studio.checkpoint import load_checkpoint
from lib_lycoris.studio.demo import run_demo
from lib_lycoris.studio.world.dataset import draw_dataset


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    lines: list[str] = []
    return run_demo(out=tmp_path_factory.mktemp("demo"), say=lines.append), lines


def test_the_network_learns_the_new_shape_and_keeps_the_known_captions(demo):
    result, _ = demo
    (concept_before, concept_after), (known_before, known_after) = result.concept, result.known
    assert concept_before <= 0.1 and concept_after >= 0.8, result.last_line
    assert known_after >= 0.9 * known_before, result.last_line


def test_the_last_line_names_figures_and_files(demo):
    result, lines = demo
    assert lines[-1] == result.last_line
    found = re.fullmatch(r"demo: concept (\d+)% -> (\d+)%, known captions (\d+)% -> (\d+)%, network (.+\.safetensors), pictures (.+\.png)", lines[-1])
    assert found and found[5] == str(result.network) and found[6] == str(result.pictures)
    assert int(found[2]) == round(100 * result.concept[1])


def test_the_network_is_a_kohya_file_with_metadata_and_the_grid_a_picture(demo):
    result, _ = demo
    network = lib_lycoris.open_network(result.network)
    assert any(name.startswith("lora_te_") for name in network.layers) and any(name.startswith("lora_unet_") for name in network.layers)
    assert network.metadata["ss_base_model_version"] == "sd_v1"
    grid = np.array(Image.open(result.pictures))
    assert grid.shape[1] > 1000 and grid.std() > 20


def test_lycoris_reads_the_network_as_we_do(demo):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = pytest.importorskip("lycoris.modules")
    model = load_checkpoint()
    targets = find_targets(model.unet, [model.text_encoder])
    network, raw = lib_lycoris.open_network(demo[0].network), load_file(demo[0].network)
    assert len(network.layers) > 300
    for name, layer in network.layers.items():
        module = targets[normal_name(name)].module
        theirs = modules.make_module(*modules.get_module(raw, name), name, module).get_diff_weight(1.0)[0].float().reshape(module.weight.shape)
        # Where the picture is one latent cell wide (64 pixels at the middle block), attention has one key: queries and keys get no gradient but rounding's.
        assert theirs.norm() > 0 or re.search(r"mid_block_attentions_0_.*_attn1_to_[qk]$", name), name
        torch.testing.assert_close(layer.delta(module.weight), theirs, rtol=1e-5, atol=1e-7, msg=name)


def test_pictures_of_ones_own_are_told_by_their_loss(tmp_path):
    images = draw_dataset(tmp_path / "mine", 2, "circle")
    result = run_demo(images=images, steps=3, out=tmp_path / "out", say=lambda line: None)
    assert re.match(r"demo: loss on the pictures \d\.\d{4} -> \d\.\d{4}, network ", result.last_line) and result.concept is None


def test_a_folder_without_pictures_ends_the_demo_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty"):
        run_demo(images=tmp_path / "empty", out=tmp_path / "out", say=lambda line: None)
