"""Files that break off, lie or attack: a network or one line of NetworkFileError, quickly, and within a limit of memory."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.load import open_network

NAME = "lora_unet_conv_in"
DOWN, UP = f"{NAME}.lora_down.weight", f"{NAME}.lora_up.weight"


def good(path):
    tensors = {f"{NAME}.lora_down.weight": torch.ones(2, 4), f"{NAME}.lora_up.weight": torch.ones(6, 2).half(), f"{NAME}.alpha": torch.tensor(1.0)}
    write_tensors(path, tensors, {"ss_output_name": "x"}) if path.suffix == ".safetensors" else torch.save(tensors, path)
    return path.read_bytes()


def open_or_refuse(path):
    try:
        network = open_network(path)
    except NetworkFileError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return None
    for layer in network.layers.values():
        assert torch.isfinite(layer.delta(torch.zeros(6, 4)) if layer.fits((6, 4)) else torch.zeros(1)).all()
    return network


@settings(max_examples=150)
@given(st.data())
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_a_file_with_some_bytes_changed_or_cut_is_a_network_or_refused(tmp_path_factory, form, data):
    path = tmp_path_factory.mktemp("fuzz") / f"a.{form}"
    text = bytearray(good(path))
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text)
    open_or_refuse(path)


def header(path, entries, data=b""):
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


NUMBER = st.one_of(st.integers(-2, 40), st.integers(-(2**70), 2**70), st.floats(), st.booleans(), st.none(), st.text(max_size=3))
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "F16", "I64", "U8", "F64", "X", 3, None]),
        "shape": st.one_of(st.lists(NUMBER, max_size=4), NUMBER),
        "data_offsets": st.one_of(st.lists(NUMBER, max_size=3), NUMBER),
    },
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from([DOWN, UP, f"{NAME}.alpha", "unet:0:up", "unet:0:down", "__metadata__"]), ENTRY), st.binary(max_size=64))
def test_a_header_that_says_anything_is_a_network_or_refused(tmp_path_factory, entries, data):
    path = tmp_path_factory.mktemp("headers") / "a.safetensors"
    header(path, entries, data)
    open_or_refuse(path)


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


LIES = {
    "overlap": lambda path: header(path, {DOWN: tensor([2, 2], 0, 16), UP: tensor([2, 2], 8, 24)}, b"\0" * 24),
    "the same bytes twice": lambda path: header(path, {DOWN: tensor([2, 2], 0, 16), UP: tensor([2, 2], 0, 16)}, b"\0" * 16),
    "a gap": lambda path: header(path, {DOWN: tensor([2, 2], 0, 16), UP: tensor([2, 2], 32, 48)}, b"\0" * 48),
    "a shape of 2^62": lambda path: header(path, {DOWN: tensor([2**31, 2**31], 0, 2**64), UP: tensor([2, 2], 0, 16)}, b"\0" * 16),
    "an empty shape of huge numbers": lambda path: header(path, {DOWN: tensor([0, 2**62], 0, 0), UP: tensor([2**62, 0], 0, 0)}),
    "a deep header": lambda path: path.write_bytes(struct.pack("<Q", 600_000) + b'{"a":' * 100_000 + b"1" + b"}" * 99_999),
    "a wide header": lambda path: header(path, {f"x{number}": tensor([], 0, 4) for number in range(50_000)}, b"\0" * 4),
    "deep metadata": lambda path: header(path, {"__metadata__": {"lora_adapter_metadata": "[" * 50_000}, UP: tensor([2], 0, 8)}, b"\0" * 8),
    "a sparse file of a gibibyte": lambda path: (path.write_bytes(struct.pack("<Q", 2**29)), os.truncate(path, 2**30)),
    "a compressed archive": lambda path: zip_bomb(path),
    "a pickle of a billion": lambda path: pickled(path, b"\x80\x02" + b"(" + b"K\x01" * 3_000_000 + b"l."),
    "a pickle that doubles": lambda path: pickled(path, b"\x80\x02]q\x00" + b"".join(b"(h%ch%clq%c" % (n, n, n + 1) for n in range(60)) + b"."),
}


def zip_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 100_000_000)


def pickled(path, text):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", text)


def test_files_that_lie_are_refused_quickly_and_in_little_memory(tmp_path):
    """In one process of its own, whose memory may grow by 300 MB in all."""
    paths = []
    for number, (name, make) in enumerate(LIES.items()):
        paths.append(tmp_path / f"{number} {name.replace('^', '')}.safetensors")
        make(paths[-1])
    program = """
import resource, sys, time
from lib_lycoris.library.load import open_network
from lib_lycoris.errors import NetworkFileError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if sys.platform == "linux" else None
if used:
    resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000, used + 300_000_000))
for path in sys.argv[1:]:
    begin = time.process_time()
    try:
        open_network(path)
        print("opened", path)
    except NetworkFileError as error:
        if time.process_time() - begin > 5 or chr(10) in str(error):
            print("slow or long", path)
"""
    done = subprocess.run([sys.executable, "-c", program, *map(str, paths)], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
