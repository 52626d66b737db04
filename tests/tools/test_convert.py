"""Other spellings, the same ΔW: read back here, by diffusers and by PEFT."""

from __future__ import annotations

import json

import pytest
import torch

from lib_lycoris import open_network
from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.files.hashes import model_hash
from lib_lycoris.files.safetensors import read_header, read_tensors
from lib_lycoris.files.spelling import normal_name
from lib_lycoris.tools.convert import convert
from lib_lycoris.tools.source import open_source
from tests.tools.helpers import CONV, TE, Q, assert_same, deltas, loha, lokr, lora, rand, write, write_locon

FORMS = ("kohya", "diffusers", "peft", "locon")


def out_of(tmp_path, to):
    return tmp_path / ("folder" if to == "peft" else f"{to}.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("to", FORMS)
def test_a_locon_comes_back_from_every_form_as_it_was(to, dtype, tmp_path):
    path = write_locon(tmp_path / "a.safetensors", dtype=dtype, scale=0.3)
    done = convert(path, out_of(tmp_path, to), to)
    assert done.layers == 6
    there = open_source(done.path)
    assert_same(deltas(path), deltas(there), 0 if to == "kohya" else 1e-6)
    convert(done.path, tmp_path / "back.safetensors", "kohya")
    assert_same(deltas(path), deltas(tmp_path / "back.safetensors"), 1e-6)


@pytest.mark.parametrize("to", FORMS)
def test_a_power_of_two_as_scale_is_no_reason_to_store_float32(to, tmp_path):
    tensors = {name: torch.round(tensor * 64) / 64 for name, tensor in lora(Q, (32, 32), alpha=2.0).items()}
    path = write(tmp_path / "a.safetensors", {name: tensor if name.endswith("alpha") else tensor.half() for name, tensor in tensors.items()})
    done = convert(path, out_of(tmp_path, to), to)
    file = done.path if done.path.is_file() else done.path / "adapter_model.safetensors"
    assert {dtype for name, (dtype, _) in read_header(file).tensors.items() if not name.endswith("alpha")} == {torch.float16}


def test_sdxl_has_ldms_names_and_two_text_encoders(tmp_path):
    te2 = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj"
    up = "lora_unet_output_blocks_2_2_conv"
    path = write(
        tmp_path / "a.safetensors", lora(te2, (32, 32)) | lora(TE.replace("lora_te_", "lora_te1_"), (32, 24), seed=9) | lora(up, (16, 16, 3, 3), seed=5)
    )
    convert(path, tmp_path / "diffusers.safetensors", "diffusers")
    names = set(read_header(tmp_path / "diffusers.safetensors").tensors)
    assert "text_encoder_2.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight" in names
    assert "unet.up_blocks.0.upsamplers.0.conv.lora_B.weight" in names
    convert(tmp_path / "diffusers.safetensors", tmp_path / "folder", "peft")
    assert sorted(each.name for each in (tmp_path / "folder").iterdir()) == ["text_encoder", "text_encoder_2", "unet"]
    convert(tmp_path / "folder", tmp_path / "back.safetensors", "kohya")
    assert {name.partition(".")[0] for name in read_header(tmp_path / "back.safetensors").tensors} == {te2, up, "lora_te1_text_model_encoder_layers_0_mlp_fc1"}
    assert_same(deltas(path), deltas(tmp_path / "back.safetensors"))


@pytest.fixture(scope="module")
def unet_maker():
    """A function that makes the same tiny SD 1 UNet again and again."""
    diffusers = pytest.importorskip("diffusers")

    def make():
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(
            block_out_channels=(16, 32),
            layers_per_block=1,
            cross_attention_dim=24,
            attention_head_dim=2,
            norm_num_groups=8,
            sample_size=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )

    return make


def unet_network(path, unet, dora=False):
    """LoRA and LoCon of unlike ranks and alphas for a linear layer, a 3×3, a strided and a 1×1 convolution of a UNet."""
    tensors = {}
    modules = dict(unet.named_modules())
    for place, name in enumerate(
        (
            "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
            "down_blocks.0.resnets.0.conv1",
            "down_blocks.0.downsamplers.0.conv",
            "mid_block.attentions.0.proj_in",
            "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
        )
    ):
        weight = modules[name].weight
        key = f"lora_unet_{name.replace('.', '_')}"
        tensors |= lora(key, tuple(weight.shape), rank=2 + place % 3, alpha=1.0 + place, seed=7 * place, tucker=place == 1 and not dora)
        if dora:
            lengths = weight.detach().flatten(1).norm(dim=1).reshape(-1, *(1 for _ in weight.shape[1:]))
            tensors[f"{key}.dora_scale"] = lengths * (1 + 0.1 * rand(place, *lengths.shape))
    return write(path, tensors)


def changes(before, unet, wrapped=""):
    """{module path: weight's change} after an adapter was merged into a UNet."""
    state = {name.replace(".base_layer", ""): tensor for name, tensor in unet.state_dict().items()}
    return {name: state[f"{wrapped}{name}"] - tensor for name, tensor in before.items() if not torch.equal(state[f"{wrapped}{name}"], tensor)}


def assert_as_here(path, before, made):
    network = open_network(path)
    found = {normal_name(name.removesuffix(".weight"))[1]: (name, change) for name, change in made.items()}
    assert len(found) == len(network.layers)
    for name, layer in network.layers.items():
        module, change = found[network.targets[name][1]]
        assert torch.allclose(change, layer.delta(before[module]), rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_diffusers_loads_the_file_and_changes_its_unet_as_we_do(dora, unet_maker, tmp_path):
    pytest.importorskip("peft")
    from diffusers.loaders import StableDiffusionLoraLoaderMixin

    unet = unet_maker()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    path = unet_network(tmp_path / "a.safetensors", unet, dora)
    convert(path, tmp_path / "diffusers.safetensors", "diffusers")
    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(str(tmp_path), weight_name="diffusers.safetensors", return_lora_metadata=True)
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, metadata=metadata)
    unet.fuse_lora()
    assert_as_here(path, before, changes(before, unet))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers 5 for something under its old name
@pytest.mark.parametrize("mlp_only", [False, True])
def test_diffusers_loads_the_file_into_its_text_encoder(mlp_only, tmp_path):
    pytest.importorskip("peft")
    pytest.importorskip("diffusers")
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=24, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, vocab_size=20, bos_token_id=0, eos_token_id=1)
    text = CLIPTextModel(config)
    layers = {"fc1": (96, 24), "fc2": (24, 96)} if mlp_only else {"fc1": (96, 24), "q_proj": (24, 24)}
    names = {part: TE.replace("mlp_fc1", f"self_attn_{part}" if part == "q_proj" else f"mlp_{part}") for part in layers}
    tensors = [lora(names[part], shape, rank=2 + place, alpha=1.0 + 5 * place, seed=place) for place, (part, shape) in enumerate(layers.items())]
    path = write(tmp_path / "a.safetensors", tensors[0] | tensors[1])
    convert(path, tmp_path / "diffusers.safetensors", "diffusers")
    state, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(str(tmp_path), weight_name="diffusers.safetensors", return_lora_metadata=True)
    StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(state, alphas, text, prefix="text_encoder", metadata=metadata)
    for part, name in names.items():
        module = next(module for path, module in text.named_modules() if path.endswith(part))
        before = module.base_layer.weight.clone()
        module.merge()
        expected = open_network(path).layers[name].delta(before)
        assert torch.allclose(module.base_layer.weight - before, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PEFT's own about a UNet without a transformers config
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_peft_loads_the_folder_and_changes_its_unet_as_we_do(dora, unet_maker, tmp_path):
    peft = pytest.importorskip("peft")
    unet = unet_maker()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    path = unet_network(tmp_path / "a.safetensors", unet, dora)
    convert(path, tmp_path / "folder", "peft")
    model = peft.PeftModel.from_pretrained(unet, str(tmp_path / "folder"))
    assert len(json.loads((tmp_path / "folder" / "adapter_config.json").read_text(encoding="utf-8"))["rank_pattern"]) >= 2
    assert_as_here(path, before, changes(before, model.merge_and_unload()))
    if not dora:  # and bytes are as they were, as the config holds the scale
        stored = read_tensors(tmp_path / "folder" / "adapter_model.safetensors")
        original = read_tensors(path)
        up = original["lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k.lora_up.weight"]
        assert torch.equal(stored["base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.lora_B.weight"], up)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers 5 for something under its old name
def test_peft_loads_the_text_encoders_folder(tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    if int(transformers.__version__.partition(".")[0]) < 5:
        pytest.skip("transformers below 5 has another level in CLIPTextModel's names")
    config = transformers.CLIPTextConfig(hidden_size=24, intermediate_size=96, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    text = transformers.CLIPTextModel(config)
    before = {name: tensor.clone() for name, tensor in text.state_dict().items()}
    path = write(tmp_path / "a.safetensors", lora(TE, (96, 24)))
    convert(path, tmp_path / "folder", "peft")
    merged = peft.PeftModel.from_pretrained(text, str(tmp_path / "folder")).merge_and_unload()
    assert_as_here(path, before, changes(before, merged))


@pytest.mark.parametrize(
    ("tensors", "rank"),
    [
        (loha(Q, (32, 24)), 9),
        (loha(CONV, (16, 8, 3, 3)), 9),
        (loha(CONV, (16, 8, 3, 3), tucker=True), 9),
        (loha(Q, (24, 32), rank=6), 24),
        (lokr(Q, (32, 24), rank=2), 8),
        (lokr(Q, (32, 24)), 24),
        (lokr(CONV, (16, 8, 3, 3), rank=1), 4),
        (lora(CONV, (16, 8, 3, 3), tucker=True), 4),
        ({f"{Q}.diff": rand(0, 32, 24)}, 24),
    ],
    ids=["loha", "loha conv", "loha tucker", "loha of full rank", "lokr", "lokr whole", "lokr conv", "locon tucker", "full"],
)
def test_every_linear_kind_becomes_a_locon_exactly(tensors, rank, tmp_path):
    path = write(tmp_path / "a.safetensors", tensors)
    done = convert(path, tmp_path / "b.safetensors", "locon")
    assert_same(deltas(path), deltas(done.path), 1e-5)
    written = read_tensors(done.path)
    name = next(iter(written)).partition(".")[0]
    assert set(written) == {f"{name}.{part}" for part in ("alpha", "lora_up.weight", "lora_down.weight")}
    down = written[f"{name}.lora_down.weight"]
    assert down.shape[0] == rank
    assert down.ndim == (4 if name == CONV else 2)
    if rank == 24:
        assert done.notes == ["layers of the full rank of their weight: 1; 'resize' makes the file small, with a loss that it tells"]


def test_an_adalora_that_peft_saved_becomes_a_locon_exactly(tmp_path):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    holder = torch.nn.ModuleDict({"mid_block": torch.nn.ModuleDict({"proj": torch.nn.Linear(24, 32)})})
    config = peft.AdaLoraConfig(target_modules=["proj"], init_r=6, target_r=3, lora_alpha=4, total_step=100)
    model = peft.get_peft_model(holder, config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(str(tmp_path / "ada"))
    merged = {name: tensor.clone() for name, tensor in holder.state_dict().items() if name.endswith("base_layer.weight")}
    expected = model.merge_and_unload()["mid_block"]["proj"].weight - next(iter(merged.values()))
    convert(tmp_path / "ada", tmp_path / "locon.safetensors", "locon")
    network = open_network(tmp_path / "locon.safetensors")
    (layer,) = network.layers.values()
    assert torch.allclose(layer.delta(torch.zeros(32, 24)), expected, rtol=1e-3, atol=1e-4)
    assert "lora_E" not in str(list(read_header(tmp_path / "locon.safetensors").tensors))
    with pytest.raises(NetworkFileError, match=r"adalora in PEFT's form.*--to locon"):
        convert(tmp_path / "ada", tmp_path / "kohya.safetensors", "kohya")


def test_metadata_goes_along_and_fingerprints_are_fresh(tmp_path):
    metadata = {
        "ss_output_name": "cat",
        "ss_tag_frequency": "{}",
        "sshs_model_hash": "old",
        "lora_adapter_metadata": "{}",
        "modelspec.trigger_phrase": "zorbix",
    }
    path = write_locon(tmp_path / "a.safetensors", metadata=metadata)
    convert(path, tmp_path / "b.safetensors", "locon")
    written = read_header(tmp_path / "b.safetensors").metadata
    assert written["ss_output_name"] == "cat"
    assert written["modelspec.trigger_phrase"] == "zorbix"
    assert written["sshs_model_hash"] == model_hash(tmp_path / "b.safetensors")
    assert written["ss_network_module"] == "networks.lora"
    assert "lora_adapter_metadata" not in written
    convert(path, tmp_path / "c.safetensors", "diffusers")
    assert read_header(tmp_path / "c.safetensors").metadata == {
        "format": "pt",
        "ss_output_name": "cat",
        "ss_tag_frequency": "{}",
        "modelspec.trigger_phrase": "zorbix",
    }
    convert(path, tmp_path / "folder", "peft")
    convert(tmp_path / "folder", tmp_path / "d.safetensors", "kohya")
    assert not {"peft_type", "r", "lora_alpha", "target_modules", "rank_pattern"} & set(read_header(tmp_path / "d.safetensors").metadata)


@pytest.mark.parametrize(
    ("tensors", "to", "words"),
    [
        (loha(Q, (32, 24)), "diffusers", "loha.*diffusers' low-rank form can't hold.*--to locon"),
        (lokr(Q, (32, 24)), "peft", "lokr.*PEFT's low-rank form can't hold.*--to locon"),
        (lora(Q, (32, 24)) | {f"{Q}.dora_scale": torch.ones(32, 1)}, "locon", "dora.*every base weight.*merge"),
        (lora(Q, (32, 24)) | {f"{Q}.dora_scale": torch.ones(1, 24)}, "diffusers", "dora.*can't hold"),
        (lora(Q, (32, 24)) | {f"{Q}.dora_scale": torch.ones(32, 1)} | lora(CONV, (16, 8, 3, 3)), "peft", "no DoRA while others are"),
        ({f"{Q}.weight": torch.ones(32), f"{Q}.on_input": torch.tensor(0)}, "locon", "ia3.*every base weight"),
        (lora("lora_unet_double_blocks_0_img_attn_qkv", (32, 24)), "diffusers", "none of a Stable Diffusion model's"),
    ],
)
def test_what_a_form_can_not_hold_is_told_by_its_kind_with_what_would_do(tensors, to, words, tmp_path):
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(NetworkFileError, match=words) as caught:
        convert(path, out_of(tmp_path, to), to)
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"]


def test_bad_outputs_are_refused_before_anything_is_read(tmp_path):
    path = write_locon(tmp_path / "a.safetensors")
    before = path.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(path)
    for out, to, words in (
        (path, "kohya", "is the input"),
        (tmp_path / "link.safetensors", "locon", "is the input"),
        (tmp_path / "b.bin", "kohya", "ends in .safetensors"),
        (tmp_path / "b.safetensors", "peft", "name a folder"),
        (tmp_path / "b", "oil", "known are kohya"),
    ):
        with pytest.raises(ConfigError, match=words):
            convert(path, out, to)
    with pytest.raises(NetworkFileError, match="folder without adapter_model"):
        convert(tmp_path, tmp_path / "c.safetensors", "kohya")
    assert path.read_bytes() == before


def test_embeddings_that_are_packed_with_a_network_stay_in_it(tmp_path):
    vectors = {"bundle_emb.zorbix.string_to_param.*": rand(0, 2, 768), "stray": torch.ones(1)}
    path = write(tmp_path / "a.safetensors", lora(Q, (32, 24)) | vectors)
    for to in ("kohya", "locon"):
        done = convert(path, tmp_path / "b.safetensors", to)
        assert torch.equal(read_tensors(done.path)["bundle_emb.zorbix.string_to_param.*"], rand(0, 2, 768))
        assert done.notes == ["keys that belong to no layer, left out: 1, for example stray"]
    assert convert(path, tmp_path / "c.safetensors", "diffusers").notes[-1].endswith("left out: zorbix")


def test_a_folder_is_not_written_into_the_folder_that_it_comes_from(tmp_path):
    convert(write_locon(tmp_path / "a.safetensors"), tmp_path / "folder", "peft")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    for source, out, to in (
        (tmp_path / "folder" / "unet" / "adapter_model.safetensors", tmp_path / "folder" / "unet", "peft"),
        (tmp_path / "folder", tmp_path / "folder", "peft"),
        (tmp_path / "folder", tmp_path / "folder" / "unet" / "adapter_model.safetensors", "kohya"),
        (tmp_path / "folder", tmp_path / "folder" / "unet", "peft"),
        (tmp_path / "folder" / "text_encoder", tmp_path / "folder", "peft"),
    ):
        with pytest.raises(ConfigError, match="input"):
            convert(source, out, to)
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before
    assert convert(tmp_path / "folder", tmp_path / "folder" / "all.safetensors", "kohya").layers == 6  # another name is another file
