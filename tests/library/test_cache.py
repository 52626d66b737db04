from __future__ import annotations

import os

import pytest
import torch

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.cache import NetworkCache

BYTES = 4 * (4 * 2 + 2 * 5) + 4


def put(path, value=1.0):
    tensors = {"up.weight": torch.full((4, 2), value), "down.weight": torch.ones(2, 5)}
    write_tensors(path, {"lora_unet_x.alpha": torch.tensor(2.0), **{f"lora_unet_x.lora_{name}": tensor for name, tensor in tensors.items()}})
    return path


def test_a_network_stays_in_memory_until_its_file_changes(tmp_path):
    path, cache = put(tmp_path / "a.safetensors"), NetworkCache(10**6)
    network = cache.load(path)
    assert cache.load(str(path)) is network and cache.nbytes == network.nbytes == BYTES
    put(path, 3.0)
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000))
    again = cache.load(path)
    assert again is not network and again.layers["lora_unet_x"].delta(torch.zeros(4, 5))[0, 0] == 6


def test_a_changed_config_beside_the_file_counts_as_a_change(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    write_tensors(path, {"base_model.model.x.lora_A.weight": torch.ones(1, 2), "base_model.model.x.lora_B.weight": torch.ones(2, 1)})
    cache = NetworkCache(10**6)
    assert cache.load(path).layers["base_model.model.x"].scale == 1
    (tmp_path / "adapter_config.json").write_text('{"r": 1, "lora_alpha": 4}')
    assert cache.load(path).layers["base_model.model.x"].scale == 4


def test_the_least_recently_used_leaves_first_and_the_limit_holds(tmp_path):
    paths = [put(tmp_path / f"{name}.safetensors") for name in "abc"]
    cache = NetworkCache(2 * BYTES)
    first, second = cache.load(paths[0]), cache.load(paths[1])
    assert cache.load(paths[0]) is first
    cache.load(paths[2])
    assert cache.nbytes == 2 * BYTES
    assert cache.load(paths[0]) is first
    assert cache.load(paths[1]) is not second


@pytest.mark.parametrize("limit", [0, BYTES - 1])
def test_a_network_larger_than_the_limit_is_given_but_not_kept(tmp_path, limit):
    path, cache = put(tmp_path / "a.safetensors"), NetworkCache(limit)
    assert cache.load(path) is not cache.load(path)
    assert cache.nbytes == 0


def test_a_file_that_went_or_broke_is_an_error_and_forgotten(tmp_path):
    path, cache = put(tmp_path / "a.safetensors"), NetworkCache(10**6)
    cache.load(path)
    path.unlink()
    with pytest.raises(NetworkFileError):
        cache.load(path)
    assert cache.nbytes == 0
    put(path)
    cache.load(path)
    cache.clear()
    assert cache.nbytes == 0


def test_a_limit_below_zero_is_refused():
    with pytest.raises(ConfigError):
        NetworkCache(-1)
