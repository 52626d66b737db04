"""What is said before a training is what then comes true."""

from __future__ import annotations

import pytest

from lib_lycoris.errors import DatasetError
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train
from lib_lycoris.training.methods import create_layer
from lib_lycoris.training.preflight import check_training
from lib_lycoris.training.selection import select_targets

from .fake import FakeBackbone, make_pictures


def config_for(folder, out, **network):
    return TrainConfig.from_dict({
        "data": {"folders": [str(folder)], "resolution": 64}, "network": {"rank": 2, **network}, "training": {"steps": 4},
        "output": {"name": "net", "folder": str(out)},
    })


@pytest.mark.parametrize("network", [{}, {"kind": "lora"}, {"conv_rank": 3}, {"text_encoder": False}, {"targets": ["q", "io"]}])
def test_layers_and_numbers_are_those_that_a_training_makes(network, tmp_path):
    make_pictures(tmp_path / "pictures")
    config, backbone = config_for(tmp_path / "pictures", tmp_path, **network), FakeBackbone()
    found = check_training(config, backbone)
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network)
    layers = {key: create_layer(target, config.network, 0) for key, target in targets.items()}
    assert found.unet_layers + found.text_encoder_layers == len(layers)
    assert found.parameters == sum(value.numel() for layer in layers.values() for value in layer.parameters())


def test_the_file_becomes_about_as_large_as_was_said(tmp_path):
    make_pictures(tmp_path / "pictures")
    config, backbone = config_for(tmp_path / "pictures", tmp_path), FakeBackbone()
    found = check_training(config, backbone)
    size = train(config, backbone).path.stat().st_size
    assert found.file_bytes / 2 < size < found.file_bytes * 2


def test_steps_words_and_doubts_are_told(tmp_path):
    make_pictures(tmp_path / "pictures", count=3)
    for number, path in enumerate(sorted((tmp_path / "pictures").glob("*.txt"))):
        path.write_text(f"a zorb, {number}", encoding="utf-8")
    found = check_training(config_for(tmp_path / "pictures", tmp_path, rank=512, kind="lora"), FakeBackbone(), side=512)
    text = "\n".join(found.lines())
    for words in ("3 pictures.", "4 steps", "zorb (3)", "only 3 pictures", "network.rank = 512 is more than", "made for pictures of 512 pixels"):
        assert words in text


def test_a_bad_dataset_is_an_error_as_in_the_training_itself(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        check_training(config_for(tmp_path / "none", tmp_path), FakeBackbone())
