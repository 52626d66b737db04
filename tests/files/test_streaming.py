"""Checkpoints read and written one tensor at a time."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import CheckpointError, LycoError
from lib_lycoris.files.safetensors import read_header, read_tensors, write_tensors
from lib_lycoris.files.streaming import open_store, write_stream

TENSORS = {
    "b": torch.arange(6.0).reshape(2, 3),
    "a": torch.ones(4, dtype=torch.float16),
    "none": torch.zeros(0, 3),
    "scalar": torch.tensor(7),
    "c.weight": torch.eye(3).bfloat16(),
}


def test_a_stream_is_the_very_file_that_writing_at_once_gives(tmp_path):
    write_tensors(tmp_path / "once.safetensors", TENSORS, {"x": "y"})
    shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    asked = []

    def make(name):
        asked.append(name)
        return TENSORS[name]

    write_stream(tmp_path / "stream.safetensors", shapes, {"x": "y"}, make)
    assert (tmp_path / "stream.safetensors").read_bytes() == (tmp_path / "once.safetensors").read_bytes()
    assert sorted(asked) == sorted(TENSORS)


def test_a_store_gives_each_tensor_by_name_from_safetensors_and_from_a_pickle(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {"x": "y"})
    torch.save({"state_dict": TENSORS}, tmp_path / "a.ckpt")
    for name, metadata in (("a.safetensors", {"x": "y"}), ("a.ckpt", {})):
        store = open_store(tmp_path / name)
        assert store.metadata == metadata
        for key, tensor in TENSORS.items():
            assert store.tensors[key] == (tensor.dtype, tuple(tensor.shape))
            assert torch.equal(store.read(key), tensor)


def test_a_file_that_is_no_store_is_told_in_one_line(tmp_path):
    (tmp_path / "page.safetensors").write_text("<html>", encoding="utf-8")
    write_tensors(tmp_path / "short.safetensors", TENSORS)
    (tmp_path / "short.safetensors").write_bytes((tmp_path / "short.safetensors").read_bytes()[:-3])
    for name, words in (("page.safetensors", "web page"), ("short.safetensors", "cut off"), ("missing.safetensors", "does not exist")):
        with pytest.raises(CheckpointError, match=words):
            open_store(tmp_path / name)


def test_what_fails_while_writing_leaves_the_older_file_and_no_draft(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS)
    before = path.read_bytes()
    shapes = {"w": (torch.float32, (2,))}

    def fail(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_stream(path, shapes, {}, fail)
    with pytest.raises(LycoError, match="became"):
        write_stream(path, shapes, {}, lambda name: torch.zeros(3))
    with pytest.raises(LycoError, match="could not be written"):
        write_stream(tmp_path / "no folder" / "a.safetensors", shapes, {}, lambda name: torch.zeros(2))
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]
    assert set(read_header(path).tensors) == set(read_tensors(path))
