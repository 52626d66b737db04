from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import time
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.pickles import open_pickle

FORMATS = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(content, path, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@FORMATS
def test_every_dtype_and_form_of_tensor_reads_as_torch_reads_it(tmp_path, zipped):
    shared = torch.arange(12.0)
    content = OrderedDict(
        half=torch.randn(3, 4).half(),
        bf16=torch.randn(2).bfloat16(),
        fp8=torch.randn(4).to(torch.float8_e4m3fn),
        whole=torch.tensor(8),
        flags=torch.tensor([True, False]),
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        turned=torch.randn(4, 3).t(),
        parameter=torch.nn.Parameter(torch.randn(2, 2)),
        first=shared[:5],
        second=shared[5:].reshape(7, 1),
    )
    if not zipped:
        del content["fp8"]  # torch can't read back its own old format with 8-bit floats
    path = save(content, tmp_path / "a.pt", zipped)
    read, expected = open_pickle(path).read(), torch.load(path, weights_only=True)
    assert read.keys() == expected.keys()
    for name, tensor in expected.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert torch.equal(read[name].double(), tensor.detach().double())


@FORMATS
def test_a_state_dict_inside_a_checkpoint_is_the_content(tmp_path, zipped):
    model = torch.nn.Linear(3, 2)
    path = save({"state_dict": model.state_dict(), "epoch": 3, "name": "x", "more": [1.5, None, (True,)]}, tmp_path / "a.ckpt", zipped)
    assert torch.equal(open_pickle(path).read()["weight"], model.weight)


class Attack:
    """Pickles itself as a call; whoever loads it runs that call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], tuple(self.call[1:])


@FORMATS
@pytest.mark.parametrize("call", [os.mkdir, lambda mark: (exec, f"import os; os.mkdir({mark!r})"), lambda mark: (subprocess.call, ["mkdir", mark])])
def test_a_pickle_that_would_run_code_runs_nothing_and_is_named(tmp_path, zipped, call):
    mark = str(tmp_path / "ran")
    attack = Attack(call, mark) if call is os.mkdir else Attack(*call(mark))
    path = save({"lora_unet_a.lora_up.weight": torch.ones(1), "x": attack}, tmp_path / "a.pt", zipped)
    with pytest.raises(NetworkFileError, match="would run code") as caught:
        open_pickle(path)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(mark)


def zip_of(path, pickled: bytes, **storages: bytes):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in storages.items():
            archive.writestr(f"a/data/{name}", data)
    return path


def opcode(text: bytes) -> bytes:
    return b"\x80\x02" + text + b"."


@pytest.mark.parametrize(
    "pickled",
    [
        opcode(b"ctorch\nload\n(X\x01\x00\x00\x00atR"),
        opcode(b"cbuiltins\neval\n"),
        opcode(b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n"),
        opcode(b"\x82\x01"),  # an extension code
        opcode(b"(ios\nsystem\n"),
        opcode(b"\x96" + struct.pack("<Q", 2**40)),  # a byte array that claims a terabyte
        opcode(b"]r\xff\xff\xff\x7f"),  # a memo of two thousand million places
        opcode(b"\x8e" + struct.pack("<Q", 2**62)),
        opcode(b"X\xff\xff\xff\x7fabc"),
        b"\x80\x02",
        b"\x80\x02}q\x00",
        b"",
        opcode(b"]0" * 4_000_000 + b"]"),
        b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".",
        pickle.dumps({"a": bytearray(b"x")}, 5),
        pickle.dumps([1, 2]),
    ],
)
def test_a_hostile_or_broken_pickle_is_refused_quickly(tmp_path, pickled):
    begin = time.process_time()
    with pytest.raises(NetworkFileError):
        open_pickle(zip_of(tmp_path / "a.pt", pickled)).read()
    assert time.process_time() - begin < 5


def tensor_pickle(tmp_path, shape=(2,), stride=(1,), offset=0, count=2):
    """The data.pkl of one float tensor with these claims, made from a true one by replacing its numbers."""
    claims = {"numbers": (offset, shape, stride), "count": count}

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return ("storage", torch.FloatStorage, "0", "cpu", claims["count"]) if isinstance(thing, Storage) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), *claims["numbers"], False, OrderedDict())

    text = io.BytesIO()
    Pickler(text, 2).dump({"a": Tensor()})
    return text.getvalue()


def test_a_tensor_pickle_made_by_hand_reads(tmp_path):
    path = zip_of(tmp_path / "a.pt", tensor_pickle(tmp_path), **{"0": struct.pack("<2f", 1, 2)})
    assert open_pickle(path).read()["a"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "claims",
    [
        {"shape": (3,)},
        {"shape": (2**40,), "stride": (0,)},
        {"shape": (2,), "offset": 1},
        {"shape": (2,), "offset": -1},
        {"shape": (-2,)},
        {"shape": (2, 1)},
        {"count": 2**50},
        {"count": -1},
        {"count": 3},
        {"shape": ("2",)},
        {"shape": (2,), "stride": (2**62,)},
    ],
)
def test_a_tensor_that_claims_more_than_its_data_is_refused(tmp_path, claims):
    path = zip_of(tmp_path / "a.pt", tensor_pickle(tmp_path, **claims), **{"0": struct.pack("<2f", 1, 2)})
    with pytest.raises(NetworkFileError):
        open_pickle(path).read()


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\0" * 50_000_000)
    with pytest.raises(NetworkFileError, match="compressed"):
        open_pickle(tmp_path / "a.pt")


@FORMATS
@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_gives_tensors_or_a_network_file_error_and_nothing_else(tmp_path_factory, zipped, place, value, cut):
    path = save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, tmp_path_factory.mktemp("bad") / "a.pt", zipped)
    text = bytearray(path.read_bytes())
    place %= len(text)
    path.write_bytes(bytes(text[:place]) if cut else bytes(text[:place] + bytes([value]) + text[place + 1 :]))
    try:
        read = open_pickle(path).read()
    except NetworkFileError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in read.values())
