from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files import memory
from lib_lycoris.files.safetensors import read_tensors, write_tensors

posix = pytest.mark.skipif(os.name != "posix", reason="nothing is mapped on this system")


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large."""
    monkeypatch.setattr(memory, "MAPPED_FROM", 1000)
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(600.0).reshape(20, 30), "b": torch.arange(7).half(), "c": torch.tensor(3.0), "d": torch.zeros(0, 4), "e": torch.tensor([True])}
    write_tensors(path, tensors)
    return path, tensors


def assert_equal(read, tensors):
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("check", [False, True])
def test_a_mapped_file_reads_as_a_copied_one(large, mapped, check):
    path, tensors = large
    assert_equal(read_tensors(path, mapped=mapped, check=check), tensors)
    assert_equal(read_tensors(path, names=["c", "a", "none"], mapped=mapped, check=check), {name: tensors[name] for name in ("a", "c")})


@pytest.mark.parametrize("mapped", [False, True])
def test_what_is_written_into_the_tensors_does_not_reach_the_file(large, mapped):
    path, tensors = large
    before = path.read_bytes()
    read_tensors(path, mapped=mapped)["a"].fill_(5)
    assert path.read_bytes() == before
    assert_equal(read_tensors(path, mapped=mapped), tensors)


@posix
@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_may_be_replaced_or_deleted_while_its_tensors_live(large, mapped):
    path, tensors = large
    read = read_tensors(path, mapped=mapped)
    write_tensors(path, {"a": torch.ones(1000)})
    path.unlink()
    assert_equal(read, tensors)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_file_that_was_cut_off_after_its_header_was_read_is_refused(large, mapped):
    from lib_lycoris.files.safetensors import read_header

    path, _ = large
    header = read_header(path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(NetworkFileError, match="cut off"):
        read_tensors(path, header, mapped=mapped)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("place", [0, 299, 599])
def test_a_value_that_is_not_finite_is_told_with_its_tensor(large, mapped, place):
    path, tensors = large
    tensors["a"].view(-1)[place] = float("nan")
    write_tensors(path, tensors)
    with pytest.raises(NetworkFileError, match="tensor a holds values that are not finite"):
        read_tensors(path, mapped=mapped, check=True)
    assert read_tensors(path, mapped=mapped)["a"].isnan().sum() == 1
    read_tensors(path, names=["b", "c"], mapped=mapped, check=True)


@posix
def test_small_files_are_never_mapped_so_that_overwriting_them_in_place_harms_nobody(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"a": torch.ones(1000)})
    read = read_tensors(path, mapped=True)["a"]
    with open(path, "r+b") as file:
        file.truncate(100)
    assert read.sum() == 1000


@posix
def test_what_the_cache_loads_survives_that_its_file_is_cut_off_in_place(tmp_path):
    """In a process of its own: a mapped file would end it."""
    path = tmp_path / "a.safetensors"
    tensors = {f"lora_unet_conv_{number}.lora_{half}.weight": torch.ones(1024, 1024) for number in range(2) for half in ("up", "down")}
    write_tensors(path, tensors)
    assert path.stat().st_size > memory.MAPPED_FROM
    program = (
        "import os, sys\nfrom lib_lycoris.library.cache import NetworkCache\n"
        "network = NetworkCache(1 << 30).load(sys.argv[1])\nos.truncate(sys.argv[1], 100)\n"
        "print(sum(float(tensor.sum()) for layer in network.layers.values() for tensor in layer.parameters()))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120, check=True)
    assert float(done.stdout) == 4 * 1024**2


def test_fresh_memory_is_writable_zeros_of_any_size():
    for size in (0, 1, 4097, (4 << 20) + 3):
        data = memory.fresh(size)
        assert len(data) == size and not data.any()
        data[:] = 7
