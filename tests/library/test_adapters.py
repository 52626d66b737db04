"""Adapter files of every make open to the same adapter; everything else is named as what it is, in one line."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

import lib_lycoris
from lib_lycoris.errors import NetworkFileError, UnknownNetworkError
from lib_lycoris.files.adapters import AdapterFacts, diffusers_config, read_adapter_facts, to_diffusers
from lib_lycoris.library.adapters import AdapterShelf, write_adapter
from lib_lycoris.networks.adapters.full import FullAdapter
from lib_lycoris.networks.adapters.fuser import CoAdapterFuser
from lib_lycoris.networks.adapters.light import LightAdapter
from lib_lycoris.networks.adapters.style import StyleAdapter
from tests.networks import adapter_oracles as slow

MAKES = {
    "gray": lambda: FullAdapter(channels=slow.NARROW, in_channels=1),
    "rgb": lambda: FullAdapter(channels=slow.NARROW),
    "sdxl": lambda: FullAdapter(channels=slow.NARROW, layout="sdxl"),
    "class defaults": lambda: FullAdapter(channels=slow.NARROW, in_channels=1, blocks=3, ksize=3, sk=False, use_conv=True),
    "sdxl by convolution": lambda: FullAdapter(channels=slow.NARROW, layout="sdxl", blocks=1, ksize=3, sk=False, use_conv=True),
    "light": lambda: LightAdapter(channels=slow.NARROW),
    "style": lambda: StyleAdapter(width=32, context=24, layers=2, tokens=5),
    "fuser": lambda: CoAdapterFuser(channels=slow.NARROW, width=32, layers=2),
}


def make(kind, seed=0):
    adapter = MAKES[kind]()
    return adapter.fill(slow.random_tensors(adapter, seed))


def run(adapter):
    if adapter.kind == "style":
        return adapter(torch.linspace(-2, 2, 17 * 32).reshape(1, 17, 32))
    if adapter.kind == "fuser":
        maps = [torch.linspace(-1, 2, channels * 6).reshape(1, channels, 2, 3) for channels in slow.NARROW]
        return adapter([("canny", maps), ("style", [torch.linspace(-2, 2, 96).reshape(1, 3, 32)])])[0]
    return adapter(torch.linspace(0, 1, 3 * 64 * 96).reshape(1, 3, 64, 96))


def same(found, expected):
    for a, b in zip(run(found), run(expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", list(MAKES))
def test_tencents_files_open(kind, tmp_path):
    adapter = make(kind)
    save_file(adapter.tensors(), tmp_path / "a.safetensors")
    found = lib_lycoris.open_adapter(tmp_path / "a.safetensors")
    assert (found.kind, type(found)) == (adapter.kind, type(adapter))
    for name in ("layout", "in_channels", "channels", "downscale", "blocks", "ksize", "sk", "use_conv", "width", "context"):
        assert getattr(found, name, None) == getattr(adapter, name, None)
    same(found, adapter)
    assert not any(parameter.requires_grad for parameter in found.parameters())


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.ckpt", "a.pt"])
@pytest.mark.parametrize("wrap", ["plain", "state_dict", "adapter", "lightning", "module", "model.adapter", "adapter and module"])
def test_pickles_and_trainers_prefixes_open(name, wrap, tmp_path):
    adapter = make("gray")
    tensors = adapter.tensors()
    prefix = {"lightning": "adapter.", "module": "module.", "model.adapter": "model.adapter.", "adapter and module": "adapter.module."}.get(wrap, "")
    content = {prefix + key: value for key, value in tensors.items()}
    if wrap in ("state_dict", "lightning"):
        content = {"state_dict": content, "epoch": 3, "global_step": 100}
    elif wrap == "adapter":
        content = {"adapter": content, "step": 5}
    torch.save(content, tmp_path / name)
    same(lib_lycoris.open_adapter(tmp_path / name), adapter)


@pytest.mark.parametrize("kind", ["full_adapter", "full_adapter_xl", "light_adapter"])
@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_diffusers_own_folders_and_files_open(kind, blocks, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    channels = [8, 12, 16] if kind == "light_adapter" else [8, 12, 16, 16]
    factor = 16 if kind.endswith("xl") else 8
    theirs = diffusers.T2IAdapter(in_channels=1, channels=channels, num_res_blocks=blocks, downscale_factor=factor, adapter_type=kind)
    theirs.save_pretrained(tmp_path / "my-canny")
    theirs.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    save_file({key: value.contiguous() for key, value in theirs.state_dict().items()}, tmp_path / "alone.safetensors")
    picture = torch.rand(1, 3, 64, 96)
    weights = tmp_path / "my-canny" / "diffusion_pytorch_model.safetensors"
    for path in (tmp_path / "my-canny", weights, tmp_path / "pickled", tmp_path / "alone.safetensors"):
        found = lib_lycoris.open_adapter(path)
        assert (found.kind, found.layout, found.blocks) == ("light" if len(channels) == 3 else "full", "sdxl" if factor == 16 else "sd", blocks)
        for a, b in zip(found(picture), theirs(picture[:, :1]), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert read_adapter_facts(tmp_path / "my-canny").task == "canny"


def test_a_diffusers_config_decides_what_shapes_leave_open_and_is_not_believed_against_them(tmp_path):
    adapter = FullAdapter(channels=slow.NARROW, in_channels=4, layout="sd", blocks=2)  # 256 channels: four of SD, or one of SDXL
    facts = AdapterFacts("full", "sd", channels=slow.NARROW, in_channels=4, downscale=8, blocks=2)
    names = to_diffusers(adapter.tensors(), facts)
    save_file({names[key]: value for key, value in adapter.tensors().items()}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert read_adapter_facts(tmp_path).layout == "sdxl"
    (tmp_path / "config.json").write_text(json.dumps(diffusers_config(facts)))
    told = read_adapter_facts(tmp_path)
    assert (told.layout, told.in_channels, told.downscale) == ("sd", 4, 8)
    (tmp_path / "config.json").write_text(json.dumps({**diffusers_config(facts), "in_channels": 3}))
    assert read_adapter_facts(tmp_path).layout == "sdxl"
    (tmp_path / "config.json").write_text("{ no json")
    assert read_adapter_facts(tmp_path).layout == "sdxl"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_open_as_float32(dtype, tmp_path):
    adapter = make("rgb")
    save_file({key: value.to(dtype) for key, value in adapter.tensors().items()}, tmp_path / "a.safetensors")
    found = lib_lycoris.open_adapter(tmp_path / "a.safetensors")
    assert {parameter.dtype for parameter in found.parameters()} == {torch.float32}
    for a, b in zip(run(found), run(adapter), strict=True):
        assert ((a - b).norm() / b.norm()).item() < 0.05


def test_keys_that_are_no_part_of_the_adapter_are_passed_over(tmp_path):
    adapter = make("light")
    save_file({**adapter.tensors(), "optimizer_step": torch.tensor(3), "loss.history": torch.rand(4)}, tmp_path / "a.safetensors")
    same(lib_lycoris.open_adapter(tmp_path / "a.safetensors"), adapter)


@pytest.mark.parametrize("kind", list(MAKES))
def test_what_is_written_is_read_again_with_all_that_tensors_leave_open(kind, tmp_path):
    adapter = make(kind)
    path = tmp_path / "mine.safetensors"
    base = "sdxl_base_v1-0" if getattr(adapter, "layout", None) == "sdxl" else "sd_v2"
    write_adapter(path, adapter, {"ss_output_name": "mine"}, base_model=base, preprocessor="soft edge", task="depth", resolution=384)
    found = lib_lycoris.open_adapter(path)
    same(found, adapter)
    assert (found.facts.base_model, found.facts.preprocessor, found.facts.task, found.facts.resolution) == (base, "soft edge", "depth", 384)
    assert found.metadata["ss_output_name"] == "mine"
    write_adapter(tmp_path / "again.safetensors", found, dtype=torch.float16)
    assert read_adapter_facts(tmp_path / "again.safetensors") == found.facts


@pytest.mark.parametrize("kind", ["gray", "rgb", "sdxl", "light"])
def test_diffusers_opens_what_is_written_in_its_spelling(kind, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    adapter = make(kind)
    write_adapter(tmp_path / "diffusion_pytorch_model.safetensors", adapter, spelling="diffusers")
    theirs = diffusers.T2IAdapter.from_pretrained(tmp_path)
    picture = torch.rand(1, 3, 64, 96)
    for a, b in zip(theirs(picture[:, :adapter.in_channels]), adapter(picture), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    same(lib_lycoris.open_adapter(tmp_path), adapter)


@pytest.mark.parametrize("kind", ["class defaults", "style", "fuser"])
def test_what_diffusers_does_not_know_is_refused_in_its_spelling(kind, tmp_path):
    with pytest.raises(NetworkFileError, match="diffusers has no"):
        write_adapter(tmp_path / "a.safetensors", make(kind), spelling="diffusers")


def test_a_light_adapter_for_sdxl_says_so_in_its_metadata(tmp_path):
    adapter = LightAdapter(channels=slow.NARROW, layout="sdxl", in_channels=4, downscale=16)
    write_adapter(tmp_path / "a.safetensors", adapter)
    assert lib_lycoris.open_adapter(tmp_path / "a.safetensors").layout == "sdxl"


OTHERS = {
    "a ControlNet": {"control_model.input_hint_block.0.weight": (16, 3, 3, 3), "control_model.zero_convs.0.0.weight": (4, 4, 1, 1)},
    "ControlNet; ": {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "conv_in.weight": (320, 4, 3, 3)},
    "ControlNet-LLLite": {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.conditioning1.0.weight": (32, 3, 4, 4)},
    "IP-Adapter": {"image_proj.proj.weight": (16, 16), "ip_adapter.1.to_k_ip.weight": (16, 16)},
    "LoRA-like": {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": (8, 2), "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (2, 8)},
    "whole checkpoint": {"model.diffusion_model.input_blocks.0.0.weight": (8, 4, 3, 3), "first_stage_model.encoder.conv_in.weight": (8, 3, 3, 3)},
    "embedding": {"emb_params": (2, 768)},
    "whole UNet": {"conv_in.weight": (320, 4, 3, 3), "down_blocks.0.resnets.0.conv1.weight": (320, 320, 3, 3)},
    "VAE": {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)},
    "it holds something.else": {"something.else": (3,)},
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_other_things_are_named_in_one_line(what, tmp_path):
    path = tmp_path / "t2iadapter_canny.safetensors"
    save_file({key: torch.zeros(shape) for key, shape in OTHERS[what].items()}, path)
    with pytest.raises(NetworkFileError) as caught:
        lib_lycoris.open_adapter(path)
    text = str(caught.value)
    assert what in text and "is no T2I-Adapter" in text and path.name in text and "\n" not in text


def damaged(tmp_path, change):
    tensors = make("rgb").tensors()
    change(tensors)
    path = tmp_path / "bad.safetensors"
    save_file(tensors, path)
    with pytest.raises(NetworkFileError) as caught:
        lib_lycoris.open_adapter(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_parts_that_are_missing_or_do_not_fit_are_named(tmp_path):
    assert "body.3.block2.weight" in damaged(tmp_path, lambda tensors: tensors.pop("body.3.block2.weight"))
    assert "body.5.block1.weight" in damaged(tmp_path, lambda tensors: tensors.update({"body.5.block1.weight": torch.zeros(16, 8, 3, 3)}))
    assert "conv_in.weight" in damaged(tmp_path, lambda tensors: tensors.pop("conv_in.weight"))
    assert "63 channels" in damaged(tmp_path, lambda tensors: tensors.update({"conv_in.weight": torch.zeros(8, 63, 3, 3)}))
    assert "7 residual blocks" in damaged(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("body.7.")])
    assert "dimensions" in damaged(tmp_path, lambda tensors: tensors.update({"conv_in.weight": torch.zeros(8)}))
    assert "NaN" in damaged(tmp_path, lambda tensors: tensors["body.0.block1.bias"].fill_(float("nan")))


def test_a_hostile_block_number_is_refused_at_once(tmp_path):
    message = damaged(tmp_path, lambda tensors: tensors.update({"body.9999.block1.weight": torch.zeros(16, 16, 3, 3)}))
    assert "10000 blocks" in message


def test_truncated_files_missing_files_and_folders_are_told_in_one_line(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(make("rgb").tensors(), path)
    content = path.read_bytes()
    path.write_bytes(content[:len(content) // 2])
    for each in (path, tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(NetworkFileError) as caught:
            lib_lycoris.open_adapter(each)
        assert "\n" not in str(caught.value)


def test_several_adapters_in_one_file_are_not_guessed_about(tmp_path):
    tensors = make("gray").tensors()
    save_file({f"{prefix}.{key}": value.clone() for prefix in ("canny", "depth") for key, value in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(NetworkFileError, match=r"2 adapters .canny., depth.."):
        lib_lycoris.open_adapter(tmp_path / "a.safetensors")


def test_the_released_files_facts(tmp_path):
    """The table of released files: names lie or tell nothing, shapes do not. Made on "meta": they have up to 79 million parameters."""
    from lib_lycoris.files.adapter_shapes import expected_shapes, read_shape

    counts = {
        ("full", "sd", 1): 77.00, ("full", "sd", 3): 77.37, ("full", "sdxl", 1): 77.55, ("full", "sdxl", 3): 79.03, ("light", "sd", 3): 18.69,
    }
    for (kind, layout, channels), millions in counts.items():
        with torch.device("meta"):
            adapter = (FullAdapter if kind == "full" else LightAdapter)(in_channels=channels, layout=layout)
        shapes = {key: tuple(value.shape) for key, value in adapter.tensors().items()}
        facts = AdapterFacts(**read_shape(shapes))
        assert (facts.kind, facts.layout, facts.in_channels) == (kind, layout, channels)
        assert expected_shapes(facts) == shapes and len(shapes) == (38 if kind == "full" else 80)
        assert round(sum(value.numel() for value in adapter.tensors().values()) / 1e6, 2) == millions
    with torch.device("meta"):
        adapters = StyleAdapter(), CoAdapterFuser()
    for adapter, keys, millions in zip(adapters, (42, 59), (38.59, 27.29), strict=True):
        shapes = {key: tuple(value.shape) for key, value in adapter.tensors().items()}
        facts = AdapterFacts(**read_shape(shapes))
        assert expected_shapes(facts) == shapes and len(shapes) == keys
        assert round(sum(value.numel() for value in adapter.tensors().values()) / 1e6, 2) == millions


@pytest.fixture
def shelf(tmp_path):
    folder = tmp_path / "adapters"
    (folder / "sub").mkdir(parents=True)
    write_adapter(folder / "edges_xl_not.safetensors", make("gray"), base_model="sd_v1", preprocessor="canny")
    write_adapter(folder / "sub" / "other.safetensors", make("rgb"), base_model="sd_v2")
    save_file(make("sdxl").tensors(), folder / "sd15.safetensors")
    torch.save(make("light").tensors(), folder / "color.pth")
    save_file(make("style").tensors(), folder / "words.safetensors")
    save_file({key: torch.zeros(shape) for key, shape in OTHERS["a ControlNet"].items()}, folder / "t2i-controlnet.safetensors")
    (folder / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    return AdapterShelf([folder])


def test_the_list_has_only_what_fits_whatever_files_are_called(shelf):
    assert shelf.names("sd_v1") == ["color", "edges_xl_not", "words"]  # a narrow style adapter: its width tells no base
    assert shelf.names("sd_v2") == ["color", "sub/other", "words"]
    assert shelf.names("sdxl_base_v1-0") == ["sd15", "words"]
    assert shelf.names() == ["color", "edges_xl_not", "sd15", "sub/other", "words"]
    assert shelf.names("sd_v1", channels=(320, 640, 1280, 1280)) == ["words"]
    assert shelf.names("sd_v1", channels=slow.NARROW) == ["color", "edges_xl_not", "words"]
    problems = {row["name"]: row["problem"] for row in shelf.rows() if row["problem"]}
    assert list(problems) == ["broken"]  # what is something else is not listed at all
    row = next(row for row in shelf.rows() if row["name"] == "edges_xl_not")
    assert (row["kind"], row["preprocessor"], row["base_model"], row["channels"]) == ("full", "canny", "sd_v1", list(slow.NARROW))
    json.dumps(shelf.rows())


def test_adapters_are_found_loaded_and_loaded_anew_when_their_file_changed(shelf):
    adapter = shelf.load("other")
    assert shelf.load("sub/other") is adapter and shelf.load("other.safetensors") is adapter and shelf.load(str(shelf.find("other"))) is adapter
    write_adapter(shelf.find("other"), make("rgb", seed=4), base_model="sd_v1")
    assert shelf.load("other") is not adapter
    same(shelf.load("other"), make("rgb", seed=4))
    assert shelf.facts("other").base_model == "sd_v1"
    with pytest.raises(UnknownNetworkError, match="nothere"):
        shelf.load("nothere")
    with pytest.raises(NetworkFileError, match="ControlNet"):
        shelf.load("t2i-controlnet")


def test_names_that_mean_two_files_are_not_guessed_about(shelf):
    folder = shelf.folders[0]
    write_adapter(folder / "other.safetensors", make("gray"))
    assert shelf.find("other").parent == folder  # a whole name in the list wins
    (folder / "deep").mkdir()
    write_adapter(folder / "deep" / "words.safetensors", make("gray"))
    (folder / "words.safetensors").rename(folder / "sub" / "words.safetensors")
    with pytest.raises(UnknownNetworkError, match="2 adapters"):
        shelf.find("words")
