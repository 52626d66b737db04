from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import struct
import time

import pytest
import torch

import lib_lycoris
from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.load import open_network

BLOCK = "down_blocks_0_attentions_0_transformer_blocks_0"


def pair(out=6, into=4, rank=2):
    return torch.randn(rank, into), torch.randn(out, rank)


def save(path, tensors, metadata=None):
    write_tensors(path, tensors, metadata or {})
    return path


def kohya(suffix=f"{BLOCK}_attn1_to_q"):
    down, up = pair()
    return {f"lora_unet_{suffix}.lora_down.weight": down, f"lora_unet_{suffix}.lora_up.weight": up, f"lora_unet_{suffix}.alpha": torch.tensor(1.0)}


# (keys of down, up; the layer's key; its home)
TO_Q = ("unet", f"{BLOCK}_attn1_to_q")
DOTTED = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
SPELLINGS = [
    ("lora_unet_conv_in.lora_down.weight", "lora_unet_conv_in.lora_up.weight", "lora_unet_conv_in", ("unet", "conv_in")),
    (f"lycoris_{BLOCK}_attn1_to_q.lora_down.weight", f"lycoris_{BLOCK}_attn1_to_q.lora_up.weight", f"lycoris_{BLOCK}_attn1_to_q", TO_Q),
    (
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        TO_Q,
    ),
    (f"unet.{DOTTED}.to_q.lora.down.weight", f"unet.{DOTTED}.to_q.lora.up.weight", f"unet.{DOTTED}.to_q", TO_Q),
    (f"unet.{DOTTED}.processor.to_q_lora.down.weight", f"unet.{DOTTED}.processor.to_q_lora.up.weight", f"unet.{DOTTED}.processor.to_q", TO_Q),
    (f"{DOTTED}.processor.to_q_lora.down.weight", f"{DOTTED}.processor.to_q_lora.up.weight", f"{DOTTED}.processor.to_q", TO_Q),
    (f"unet.{DOTTED}.to_q.lora_A.weight", f"unet.{DOTTED}.to_q.lora_B.weight", f"unet.{DOTTED}.to_q", TO_Q),
    (f"base_model.model.{DOTTED}.to_q.lora_A.default.weight", f"base_model.model.{DOTTED}.to_q.lora_B.default.weight", f"base_model.model.{DOTTED}.to_q", TO_Q),
]


@pytest.mark.parametrize(("down_key", "up_key", "layer_key", "home"), SPELLINGS)
@pytest.mark.parametrize("form", ["safetensors", "pt", "old.pt"])
def test_every_spelling_in_every_form_of_file_gives_the_same_delta(tmp_path, down_key, up_key, layer_key, home, form):
    down, up = pair()
    path, tensors = tmp_path / f"a.{form}", {down_key: down, up_key: up}
    save(path, tensors) if form == "safetensors" else torch.save(tensors, path, _use_new_zipfile_serialization=form == "pt")
    network = open_network(path)
    assert list(network.layers) == [layer_key]
    assert network.targets == {layer_key: home}
    layer, weight = network.layers[layer_key], torch.zeros(6, 4)
    assert layer.algorithm == "lora"
    torch.testing.assert_close(layer.delta(weight), up @ down)
    torch.testing.assert_close(open_network(path, alpha=0.5).layers[layer_key].delta(weight), up @ down / 4)
    assert network.nbytes == 4 * (down.numel() + up.numel())


def test_the_public_names_are_the_rooms_own():
    assert lib_lycoris.open_network is open_network
    assert lib_lycoris.NetworkFileError is NetworkFileError
    assert "patch" in dir(lib_lycoris)
    with pytest.raises(AttributeError):
        lib_lycoris.nothing  # noqa: B018


def test_a_file_says_its_metadata_and_alpha_in_the_file_outranks_the_argument(tmp_path):
    path = save(tmp_path / "a.safetensors", kohya(), {"ss_output_name": "cat"})
    network = open_network(path, alpha=8)
    assert network.metadata == {"ss_output_name": "cat"} and network.path == path
    assert next(iter(network.layers.values())).scale == 0.5


def test_keys_that_are_no_layers_are_told_and_not_used(tmp_path):
    stray = {"lora_unet_conv_in.scalar": torch.ones(1), "bundle_emb.cat.clip_l": torch.ones(1, 768)}
    network = open_network(save(tmp_path / "a.safetensors", {**kohya(suffix="conv_in"), **stray}))
    assert set(network.unused) == set(stray) and list(network.layers) == ["lora_unet_conv_in"]


def test_an_opened_network_can_be_copied_and_handed_to_another_process(tmp_path):
    path = tmp_path / "net.safetensors"
    down, up = torch.randn(2, 6), torch.randn(4, 2)
    factors = {f"lora_unet_{name}.lora_{part}.weight": tensor.clone() for name in ("a", "b") for part, tensor in (("down", down), ("up", up))}
    write_tensors(path, {**factors, "bundle_emb.cat.string_to_param.*": torch.ones(1, 768)}, {})
    pickled, copied = pickle.loads(pickle.dumps(open_network(path))), copy.deepcopy(open_network(path))
    path.unlink()
    for network in (pickled, copied):
        assert list(network.layers) == ["lora_unet_a", "lora_unet_b"] and "lora_unet_c" not in network.layers
        assert all(torch.equal(layer.delta(torch.zeros(4, 6)), up @ down) for layer in network.layers.values())
        assert torch.equal(network.embeddings["cat"]["string_to_param.*"], torch.ones(1, 768))


def test_diffusers_metadata_gives_alpha(tmp_path):
    down, up = pair()
    packed = {"lora_adapter_metadata": json.dumps({"unet.r": 2, "unet.lora_alpha": 6})}
    path = save(tmp_path / "a.safetensors", {f"unet.{DOTTED}.to_q.lora_A.weight": down, f"unet.{DOTTED}.to_q.lora_B.weight": up}, packed)
    torch.testing.assert_close(open_network(path).layers[f"unet.{DOTTED}.to_q"].delta(torch.zeros(6, 4)), up @ down * 3)


class Model(torch.nn.Module):
    """Something with the names that PEFT patterns are written for."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k = torch.nn.Linear(4, 6), torch.nn.Linear(4, 6)
        self.conv = torch.nn.Conv2d(4, 6, 3, padding=1)


@pytest.mark.filterwarnings("ignore:Adapter 'default'")  # PEFT takes its own lora_B.bias for a broken shard when it saves
@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, {"rank_pattern": {"to_k": 3}, "alpha_pattern": {"to_k": 5}}, {"lora_bias": True}])
def test_a_folder_that_peft_wrote_gives_pefts_own_delta(tmp_path, more):
    peft = pytest.importorskip("peft", reason="peft is not installed here: its own delta can't be compared")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_k", "conv"], init_lora_weights=False, **more)
    model = peft.get_peft_model(Model(), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    network = open_network(tmp_path / "adapter_model.safetensors")
    assert network.metadata["peft_type"] == "LORA" and network.metadata["r"] == "2"
    for name in ("to_q", "to_k", "conv"):
        theirs = model.base_model.model.get_submodule(name)
        layer = network.layers[f"base_model.model.{name}"]
        torch.testing.assert_close(layer.delta(theirs.weight), theirs.get_delta_weight("default").detach(), atol=1e-5, rtol=1e-5)
        x = torch.randn(2, 4, 5, 5) if name == "conv" else torch.randn(2, 4)
        with torch.no_grad():
            torch.testing.assert_close(theirs.base_layer(x) + layer.delta_output(x, theirs.base_layer), theirs(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("use_tucker", [False, True])
@pytest.mark.parametrize("rs_lora", [False, True])
def test_a_locon_that_lycoris_wrote_gives_the_delta_of_its_own_forward(tmp_path, use_tucker, rs_lora):
    pytest.importorskip("lycoris", reason="lycoris-lora is not installed here: its own delta can't be compared")
    from lycoris.modules.locon import LoConModule

    tensors, modules = {}, {}
    for name, base in (("linear", torch.nn.Linear(7, 5)), ("conv", torch.nn.Conv2d(7, 5, 3, padding=1)), ("pointwise", torch.nn.Conv2d(7, 5, 1))):
        module = LoConModule(f"lora_unet_{name}", base, multiplier=1.0, lora_dim=3, alpha=2.0, use_tucker=use_tucker, rs_lora=rs_lora)
        torch.nn.init.normal_(module.lora_up.weight)
        modules[name] = (module, base)
        tensors.update({f"lora_unet_{name}.{key}": value for key, value in module.state_dict().items() if not key.startswith("org_module")})
    network = open_network(save(tmp_path / "a.safetensors", tensors))
    assert len(network.layers) == 3
    for name, (module, base) in modules.items():
        eye = torch.eye(7) if name == "linear" else torch.randn(2, 7, 6, 6)
        with torch.no_grad():
            added = module.bypass_forward_diff(eye)
        layer = network.layers[f"lora_unet_{name}"]
        assert layer.algorithm == "lora"
        torch.testing.assert_close(layer.delta_output(eye, base), added, atol=1e-5, rtol=1e-5)
        weight = layer.delta(base.weight)
        slow = eye @ weight.T if name == "linear" else torch.nn.functional.conv2d(eye, weight, None, base.stride, base.padding)
        torch.testing.assert_close(slow, added, atol=1e-4, rtol=1e-4)


def lie(path):
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}" * 50)


class Attack:
    def __reduce__(self):
        return os.mkdir, ("/nowhere/at/all",)


def changed(**changes):
    tensors = kohya(suffix="conv_in")
    tensors.update({f"lora_unet_conv_in.{name}": tensor for name, tensor in changes.items()})
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


BAD = {
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "short": (lambda path: path.write_bytes(b"abc"), "damaged"),
    "header length": (lie, "damaged"),
    "cut off": (lambda path: path.write_bytes(save(path, kohya()).read_bytes()[:-5]), "cut off"),
    "web page": (lambda path: path.write_bytes(b"<!DOCTYPE html><html>" + b" " * 100), "web page"),
    "lfs": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "LFS"),
    "attack": (lambda path: torch.save({"a": Attack()}, path), "would run code"),
    "plain pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1}, 2)), "torch"),
    "rank": (lambda path: save(path, changed(**{"lora_up.weight": torch.ones(6, 3)})), "mismatched"),
    "rank one": (lambda path: save(path, changed(**{"lora_up.weight": torch.ones(6, 1)})), "mismatched"),
    "nan": (lambda path: save(path, changed(**{"lora_up.weight": torch.full((6, 2), float("nan"))})), "not finite"),
    "inf": (lambda path: save(path, changed(**{"lora_down.weight": torch.full((2, 4), float("inf")).half()})), "not finite"),
    "half a layer": (lambda path: save(path, changed(**{"lora_up.weight": None})), "without lora_up.weight"),
    "LoHa": (lambda path: save(path, {"lora_unet_x.hada_w1_a": torch.ones(2, 2)}), "without hada_w1_b"),
    "dotted LoKr": (lambda path: save(path, {"unet.x.lokr_w1": torch.ones(2, 2)}), "without lokr_w2"),
    "DoRA": (lambda path: save(path, changed(dora_scale=torch.ones(1, 4), **{"lora_up.weight": None})), "without lora_up.weight"),
    "AdaLoRA": (lambda path: save(path, {"base_model.model.x.lora_A": torch.ones(2, 2), "base_model.model.x.lora_E": torch.ones(2, 1)}), "without lora_B"),
    "checkpoint": (lambda path: save(path, {"model.diffusion_model.out.2.weight": torch.ones(2)}), "checkpoint"),
    "embedding": (lambda path: save(path, {"emb_params": torch.ones(1, 768)}), "embedding"),
    "pickled embedding": (lambda path: torch.save({"string_to_param": {"*": torch.ones(1, 4)}, "string_to_token": {"*": 265}, "name": "x"}, path), "embedding"),
    "ControlNet": (lambda path: save(path, {"control_model.input_hint_block.0.weight": torch.ones(2)}), "ControlNet"),
    "nothing": (lambda path: save(path, {}), "no network"),
    "unknown": (lambda path: save(path, {"a": torch.ones(1), "b.alpha": torch.ones(1)}), "no network"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "missing": (lambda path: None, "does not exist"),
}


@pytest.mark.parametrize(("make", "word"), BAD.values(), ids=BAD)
def test_a_bad_file_is_one_line_with_what_and_where_at_once_and_without_a_memory_spike(tmp_path, make, word):
    path = tmp_path / "bad.safetensors"
    make(path)
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(lib_lycoris.NetworkFileError, match=word) as caught:
        open_network(path)
    assert isinstance(caught.value, ValueError)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert time.process_time() - begin < 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_large_foreign_file_is_told_by_its_header_alone(tmp_path):
    path = tmp_path / "base.safetensors"
    header = json.dumps({"model.diffusion_model.a": {"dtype": "U8", "shape": [2**33], "data_offsets": [0, 2**33]}}).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 2**33)  # sparse: eight gibibytes that are not on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(NetworkFileError, match="checkpoint"):
        open_network(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize("arguments", [{"alpha": float("nan")}, {"init_rank": 0}, {"init_rank": 1.5}])
def test_arguments_that_make_no_sense_are_refused(tmp_path, arguments):
    with pytest.raises(ConfigError):
        open_network(save(tmp_path / "a.safetensors", kohya()), **arguments)
