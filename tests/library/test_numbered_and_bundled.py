"""Files without names (cloneofsimo's), HCP-Diffusion's, loralib's, packed embeddings, and good layers beside what is none."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.safetensors import write_tensors
from lib_lycoris.library.load import open_network

CLASSES = {"unet": ["CrossAttention", "Attention", "GEGLU"], "text_encoder": ["CLIPAttention"]}


def walk(tree, classes):
    """The layers in the order in which cloneofsimo's training walks them: for each module of these classes the linear layers and convolutions below it."""
    for path, ancestor in tree.named_modules():
        if type(ancestor).__name__ in classes:
            for inner, module in ancestor.named_modules():
                if isinstance(module, (nn.Linear, nn.Conv2d)):
                    yield f"{path}.{inner}".replace(".", "_"), module


def factors(module, draw):
    rows, columns = module.weight.shape[:2]
    kernel = module.weight.shape[2:]
    return torch.randn(rows, 2, *(1 for _ in kernel), generator=draw).half(), torch.randn(2, columns, *kernel, generator=draw).half()


def unet():
    """A UNet whose levels have widths of their own, as SD 1 has, for it is they that tell the order."""
    models = pytest.importorskip("diffusers", reason="diffusers is not installed here: its own order of modules can't be compared")
    return models.UNet2DConditionModel(block_out_channels=(4, 8, 16, 16), norm_num_groups=2, cross_attention_dim=6, attention_head_dim=2)


def clip():
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 5}
    return CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1))


@pytest.mark.parametrize("classes", [["CrossAttention", "Attention", "GEGLU"], ["Attention"], ["ResnetBlock2D", "Attention", "GEGLU"]])
def test_a_numbered_file_lays_each_pair_where_the_walk_of_the_model_came_by(tmp_path, classes):
    draw = torch.Generator().manual_seed(0)
    walked = {"unet": list(walk(unet(), classes)), "text_encoder": list(walk(clip(), {"CLIPAttention"}))}
    tensors, metadata, expected = {}, {"<cat>": "<embed>"}, {}
    for component, layers in walked.items():
        metadata[component] = json.dumps(classes if component == "unet" else CLASSES["text_encoder"])
        for number, (name, module) in enumerate(layers):
            up, down = factors(module, draw)
            tensors[f"{component}:{number}:up"], tensors[f"{component}:{number}:down"] = up, down
            metadata[f"{component}:{number}:rank"] = "2"
            home = ("unet", name) if component == "unet" else ("te1", f"text_model_{name.removeprefix('text_model_')}")
            expected[f"{component}:{number}"] = (home, torch.einsum("or,r...->o...", up.float().flatten(1), down.float()))
    write_tensors(tmp_path / "a.safetensors", {**tensors, "<cat>": torch.ones(768)}, metadata)
    network = open_network(tmp_path / "a.safetensors")
    assert network.targets == {name: home for name, (home, _) in expected.items()}
    for name, (_, delta) in expected.items():
        torch.testing.assert_close(network.layers[name].delta(torch.zeros_like(delta)), delta)
    assert network.unused == ("<cat>",) and torch.equal(network.embeddings["<cat>"]["emb_params"], torch.ones(768))


@pytest.mark.parametrize(("make", "classes", "side"), [(unet, CLASSES["unet"], "unet"), (clip, CLASSES["text_encoder"], "te1")])
def test_a_list_without_names_is_laid_by_its_shapes(tmp_path, make, classes, side):
    draw = torch.Generator().manual_seed(0)
    layers = list(walk(make(), classes))
    pairs = [factors(module, draw) for _, module in layers]
    torch.save([tensor for pair in pairs for tensor in pair], tmp_path / "a.pt")
    network = open_network(tmp_path / "a.pt")
    names = [name if side == "unet" else f"text_model_{name.removeprefix('text_model_')}" for name, _ in layers]
    assert list(network.targets.values()) == [(side, name) for name in names]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pairs: pairs[:-1],
        lambda pairs: pairs[::-1],
        lambda pairs: [*pairs[:4], pairs[8], *pairs[4:8], *pairs[9:20], *pairs[20:][::-1]],
        lambda pairs: [*pairs, *pairs],
        lambda pairs: [(torch.ones(3), torch.ones(3)), *pairs[1:]],
    ],
)
def test_a_list_that_fits_no_order_is_refused_with_advice(tmp_path, spoil):
    draw = torch.Generator().manual_seed(0)
    pairs = spoil([factors(module, draw) for _, module in walk(unet(), CLASSES["unet"])])
    torch.save([tensor for pair in pairs for tensor in pair], tmp_path / "a.pt")
    with pytest.raises(NetworkFileError, match="cloneofsimo's form"):
        open_network(tmp_path / "a.pt")


@pytest.mark.parametrize("changes", [{"unet": '["Linear"]'}, {"unet": "{"}, {"unet": "[" * 10_000}])
def test_a_numbered_file_of_unknown_classes_is_refused(tmp_path, changes):
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (_, module) in enumerate(walk(unet(), CLASSES["unet"])):
        tensors[f"unet:{number}:up"], tensors[f"unet:{number}:down"] = factors(module, draw)
    write_tensors(tmp_path / "a.safetensors", tensors, changes)
    with pytest.raises(NetworkFileError):
        open_network(tmp_path / "a.safetensors")
    del tensors["unet:3:down"]
    write_tensors(tmp_path / "a.safetensors", tensors, {"unet": json.dumps(CLASSES["unet"])})
    with pytest.raises(NetworkFileError, match="pair 3"):
        open_network(tmp_path / "a.safetensors")


@pytest.mark.parametrize("form", ["safetensors", "ckpt"])
@pytest.mark.parametrize("names", [("layer.W_down", "layer.W_up"), ("layer.lora_down.weight", "layer.lora_up.weight")], ids=["new", "old"])
def test_hcp_diffusions_alpha_is_the_scale(tmp_path, form, names):
    down, up = torch.randn(2, 4), torch.randn(6, 2)
    unet, text = "down_blocks.0.attentions.0.proj_in.___", "clip_bigG.text_model.encoder.layers.0.mlp.fc1.___"
    state = {f"{place}.{name}": tensor for place in (unet, text) for name, tensor in zip(names, (down, up), strict=True)}
    state[f"{unet}.alpha"] = torch.tensor(0.25)
    path = tmp_path / f"a.{form}"
    if form == "ckpt":
        torch.save({"lora": state, "lora_ema": state}, path)
    else:
        write_tensors(path, {f"{part}:{key}": tensor for part in ("lora", "lora_ema") for key, tensor in state.items()})
    network = open_network(path)
    by_home = {home: network.layers[name] for name, home in network.targets.items()}
    assert set(by_home) == {("unet", "down_blocks_0_attentions_0_proj_in"), ("te2", "text_model_encoder_layers_0_mlp_fc1")}
    torch.testing.assert_close(by_home["unet", "down_blocks_0_attentions_0_proj_in"].delta(torch.zeros(6, 4)), up @ down / 4)
    assert len(network.unused) == 5 and all("ema" in key for key in network.unused)


def adalora(path, **tensors):
    a, e, b = torch.randn(3, 4), torch.randn(3, 1), torch.randn(6, 3)
    write_tensors(path, {"conv_in.lora_A": a, "conv_in.lora_E": e, "conv_in.lora_B": b, **{f"conv_in.{name}": value for name, value in tensors.items()}})
    return b @ (a * e)


@pytest.mark.parametrize(
    ("arguments", "tensors", "scale"),
    [
        ({}, {}, 8 / 3),
        ({"alpha": 2}, {}, 2 / 3),
        ({"init_rank": 12}, {}, 8 / 12),
        ({"alpha": 2, "init_rank": 12}, {"ranknum": torch.tensor(5.0)}, 2 / 5),
        ({}, {"ranknum": torch.tensor(5.0)}, 8 / 5),
    ],
)
def test_an_adalora_without_its_config_takes_the_callers_word_else_what_the_file_tells(tmp_path, arguments, tensors, scale):
    product = adalora(tmp_path / "a.safetensors", **tensors)
    delta = open_network(tmp_path / "a.safetensors", **arguments).layers["conv_in"].delta(torch.zeros(6, 4))
    torch.testing.assert_close(delta, product * scale, rtol=1e-4, atol=1e-5)


def test_the_largest_rank_of_an_adalora_file_stands_for_the_one_it_began_with(tmp_path):
    tensors = {f"layer{rank}.lora_{name}": torch.ones(size) for rank in (1, 4) for name, size in (("A", (rank, 2)), ("E", (rank, 1)), ("B", (3, rank)))}
    write_tensors(tmp_path / "a.safetensors", tensors)
    delta = open_network(tmp_path / "a.safetensors", alpha=1).layers["layer1"].delta(torch.zeros(3, 2))
    torch.testing.assert_close(delta, torch.full((3, 2), 0.25), rtol=1e-4, atol=0)


def test_a_lora_of_loralib_has_factors_without_weight_in_their_names(tmp_path):
    a, b = torch.randn(2, 4), torch.randn(6, 2)
    torch.save({"down_blocks.0.attentions.0.proj_in.lora_A": a, "down_blocks.0.attentions.0.proj_in.lora_B": b}, tmp_path / "a.pt")
    layer = open_network(tmp_path / "a.pt", alpha=4).layers["down_blocks.0.attentions.0.proj_in"]
    assert layer.algorithm == "lora"
    torch.testing.assert_close(layer.delta(torch.zeros(6, 4)), b @ a * 2)


@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_packed_embeddings_hinder_nothing_and_are_read_when_asked_for(tmp_path, form):
    vectors = torch.randn(3, 768)
    bundle = {"bundle_emb.cat.string_to_param.*": vectors, "bundle_emb.dog.clip_l": vectors[:1], "bundle_emb.dog.clip_g": torch.randn(1, 1280)}
    layer = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4), "lora_unet_conv_in.lora_up.weight": torch.ones(6, 2)}
    path = tmp_path / f"a.{form}"
    write_tensors(path, {**layer, **bundle}) if form == "safetensors" else torch.save({**layer, **bundle}, path)
    network = open_network(path)
    assert list(network.layers) == ["lora_unet_conv_in"] and set(network.unused) == set(bundle)
    assert set(network.embeddings) == {"cat", "dog"} and network.nbytes == 4 * (8 + 12)
    assert torch.equal(network.embeddings["cat"]["string_to_param.*"], vectors) and set(network.embeddings["dog"]) == {"clip_l", "clip_g"}
    late = open_network(path)
    write_tensors(path, layer)
    assert torch.equal(network.embeddings["cat"]["string_to_param.*"], vectors)  # what was read stays
    with pytest.raises(NetworkFileError, match="changed since it was opened"):
        late.embeddings["cat"]


def test_good_layers_load_beside_what_is_no_network(tmp_path):
    good = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4), "lora_unet_conv_in.lora_up.weight": torch.ones(6, 2)}
    names = ("lora_unet_conv_out.unheard_of", "lora_unet_x.alpha", "lora_unet_y.weight", "z")
    strange = {name: torch.ones(1) for name in names}
    write_tensors(tmp_path / "a.safetensors", {**good, **strange})
    network = open_network(tmp_path / "a.safetensors")
    assert list(network.layers) == ["lora_unet_conv_in"] and set(network.unused) == set(strange)


def test_of_two_adapters_in_a_raw_dump_the_first_counts_and_the_other_is_told(tmp_path):
    tensors = {f"x.lora_{half}.{name}.weight": torch.full((2, 2), value) for half in "AB" for name, value in (("default", 1.0), ("other", 5.0))}
    torch.save(tensors, tmp_path / "a.bin")
    network = open_network(tmp_path / "a.bin")
    assert set(network.unused) == {"x.lora_A.other.weight", "x.lora_B.other.weight"}
    assert network.layers["x"].delta(torch.zeros(2, 2))[0, 0] == 2


def test_layers_are_the_same_objects_at_every_question(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {f"lora_unet_{name}.lora_{half}.weight": torch.ones(2, 2) for name in "ab" for half in ("up", "down")})
    layers = open_network(tmp_path / "a.safetensors").layers
    assert layers["lora_unet_b"] is layers["lora_unet_b"] and len(layers) == 2 and "lora_unet_c" not in layers
    with pytest.raises(KeyError):
        layers["lora_unet_c"]
