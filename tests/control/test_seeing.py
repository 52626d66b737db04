"""CLIP's picture encoder is found where it lies, and where it is not it is said where to put it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib_lycoris.cli.units import make_seeing
from lib_lycoris.control import seeing
from lib_lycoris.control.seeing import Seeing
from lib_lycoris.errors import ConfigError
from lib_lycoris.library.adapters import AdapterShelf
from lib_lycoris.networks.clip_vision import ClipVision


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(seeing, "WIDTH", 128)
    monkeypatch.setattr(seeing, "hugging_face_cache", lambda: tmp_path / "cache")


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {f"vision_model.{name}": 0.1 * torch.randn(tensor.shape) for name, tensor in ClipVision(128, 1, 14, 28, 64).state_dict().items()}
    save_file(values, str(path))
    return path


def test_it_is_found_wherever_it_lies_among_the_adapters_and_loaded_once(tmp_path, monkeypatch):
    shelf = AdapterShelf([tmp_path / "outputs", tmp_path / "adapters"])
    see = make_seeing(shelf)
    assert str(tmp_path / "adapters" / "CLIP-vision") in see.describe() and "--clip-vision" in see.describe()
    with pytest.raises(ConfigError, match="needs CLIP's picture encoder, and none is here"):
        see(np.zeros((9, 9, 3), np.uint8))
    put(tmp_path / "adapters" / "CLIP-vision" / "model.safetensors")
    assert see.describe() == "sees by model.safetensors" and shelf.rows() == []
    picture = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    seen = see(picture)
    assert seen.shape == (1, 5, 128)
    monkeypatch.setattr(seeing, "open_clip_vision", lambda path: pytest.fail("read again"))
    assert torch.equal(see(picture), seen)


def test_a_file_that_is_named_goes_first_and_one_that_is_none_is_refused_at_once(tmp_path):
    put(tmp_path / "adapters" / "a.safetensors")
    named = put(tmp_path / "elsewhere" / "mine.safetensors")
    shelf = AdapterShelf([tmp_path / "adapters"])
    assert make_seeing(shelf, str(named)).describe() == "sees by mine.safetensors"
    assert make_seeing(shelf, str(named.parent)).describe() == "sees by mine.safetensors"
    with pytest.raises(ConfigError, match="--clip-vision"):
        make_seeing(shelf, str(tmp_path / "nowhere.safetensors"))


def test_one_that_was_taken_away_is_looked_for_again(tmp_path):
    first = put(tmp_path / "a" / "one.safetensors")
    see = Seeing(lambda: [tmp_path / "a", tmp_path / "b"], lambda: "models/x")
    see(np.zeros((9, 9, 3), np.uint8))
    put(tmp_path / "b" / "two.safetensors")
    first.unlink()
    assert see(np.zeros((9, 9, 3), np.uint8)).shape == (1, 5, 128) and see.describe() == "sees by two.safetensors"
