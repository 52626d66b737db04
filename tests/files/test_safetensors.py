from __future__ import annotations

import errno
import json
import os
import resource
import struct

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import LycoError, NetworkFileError
from lib_lycoris.files import safetensors as ours

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.int32, torch.uint8, torch.bool]


def sample() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"of.{dtype}": (torch.randn(3, 5, generator=generator) * 3).to(dtype) for dtype in DTYPES}
    return {**tensors, "scalar": torch.tensor(4.0), "empty": torch.zeros(0, 3), "turned": torch.arange(6.0).reshape(2, 3).t()}


def write(path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor.double(), other[name].double())


def test_what_is_written_reads_back_equal_here_and_in_the_library(tmp_path):
    ours.write_tensors(tmp_path / "a.safetensors", sample(), {"ss_output_name": "ä"})
    assert_same(ours.read_tensors(tmp_path / "a.safetensors"), sample())
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors"), sample())
    assert ours.read_header(tmp_path / "a.safetensors").metadata == {"ss_output_name": "ä"}


def test_what_the_library_writes_reads_back_equal(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in sample().items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors", {"x": "y"})
    assert_same(ours.read_tensors(tmp_path / "a.safetensors"), sample())
    assert ours.read_header(tmp_path / "a.safetensors").metadata == {"x": "y"}


def test_the_tensors_stand_in_the_librarys_order_so_that_hashes_agree(tmp_path):
    tensors = {name: tensor.contiguous() for name, tensor in sample().items()}
    theirs = safetensors.torch.save(tensors)
    own = b"".join(bytes(piece) for piece in ours.serialise(tensors))
    assert own[8 + struct.unpack("<Q", own[:8])[0] :] == theirs[8 + struct.unpack("<Q", theirs[:8])[0] :]


def test_equal_input_gives_equal_bytes_whatever_its_order(tmp_path):
    tensors, metadata = sample(), {str(number): "x" for number in range(20)}
    ours.write_tensors(tmp_path / "a", tensors, metadata)
    ours.write_tensors(tmp_path / "b", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=100, deadline=None)
@given(cut=st.integers(0, 10_000), junk=st.binary(max_size=12))
def test_a_file_cut_anywhere_or_with_junk_added_is_refused(tmp_path_factory, cut, junk):
    path = tmp_path_factory.mktemp("cut") / "a.safetensors"
    whole = b"".join(bytes(piece) for piece in ours.serialise({"a": torch.ones(4), "b": torch.ones(2, 2)}, {"k": "v"}))
    broken = whole[: cut % len(whole)] + junk
    path.write_bytes(broken)
    if len(broken) != len(whole):  # other values of the same length are no damage that can be seen
        with pytest.raises(NetworkFileError):
            ours.read_tensors(path)


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
        {"a": {**GOOD, "dtype": "F33"}},
        {"a": {**GOOD, "shape": [3]}},
        {"a": {**GOOD, "shape": [-1, -2]}},
        {"a": {**GOOD, "shape": [2.0]}},
        {"a": {**GOOD, "shape": "2"}},
        {"a": {**GOOD, "shape": [2**62, 4]}},
        {"a": {**GOOD, "data_offsets": [8, 0]}},
        {"a": {**GOOD, "data_offsets": [-8, 0]}},
        {"a": {**GOOD, "data_offsets": [0, 2**60]}},
        {"a": {**GOOD, "data_offsets": [0]}},
        {"a": {"dtype": "F32"}},
        {"a": 3},
        {"__metadata__": [1], "a": GOOD},
        {"a" * 100_000: GOOD},
    ],
)
def test_a_header_that_breaks_the_format_is_refused_in_one_line(tmp_path, header):
    write(tmp_path / "a.safetensors", header, b"\0" * 8)
    with pytest.raises(NetworkFileError) as caught:
        ours.read_header(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
    assert "a.safetensors" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [2**60, 2**64 - 1, 10**9, 0])
def test_a_header_length_that_lies_allocates_nothing(tmp_path, length):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", length) + b"{}" * 10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkFileError):
        ours.read_header(tmp_path / "a.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_tensors_that_are_not_aligned_read_right(tmp_path):
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    write(tmp_path / "a.safetensors", header, b"\7" + struct.pack("<2f", 1.5, -2.0))
    assert ours.read_tensors(tmp_path / "a.safetensors")["b"].tolist() == [1.5, -2.0]


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", ".", "pipe", "nul\0l"):
        with pytest.raises(NetworkFileError):
            ours.read_header(tmp_path / name)


def test_overwriting_a_file_does_not_change_what_was_read_from_it(tmp_path):
    path = tmp_path / "a.safetensors"
    ours.write_tensors(path, {"a": torch.ones(1000)})
    read = ours.read_tensors(path)["a"]
    path.write_bytes(b"")
    assert read.sum() == 1000


def test_a_full_disk_raises_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    ours.write_tensors(path, {"a": torch.ones(2)})
    old = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LycoError, match="No space left") as caught:
        ours.write_tensors(path, {"a": torch.zeros(2)})
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_old_file_alone(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    ours.write_tensors(path, {"a": torch.ones(2)})
    old = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        ours.write_tensors(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_writing_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(LycoError, match="could not be written"):
        ours.write_tensors(tmp_path / "none" / "a.safetensors", {"a": torch.ones(1)})
