"""Files as the tools that people train with write them, onto the trees that people have: every layer finds its home, and ΔW is the tool's own."""

from __future__ import annotations

import copy
import functools
import logging

import pytest
import torch
from torch import nn

from lib_lycoris.library.load import open_network
from lib_lycoris.patching.session import Session
from lib_lycoris.patching.targets import find_targets
from tests.patching.trees import SD1, SDXL, Holder, LdmUNet, OpenClipText, diffusers_unet

# layers of every class and side of a UNet
LINEAR = ["attn1.to_q", "attn2.to_k", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
CONVOLUTIONS = ["conv1", "proj_in", "downsamplers.0.conv", "upsamplers.0.conv", "conv_shortcut"]
PARTS = [*LINEAR, *CONVOLUTIONS]


def clip_text_model():
    """CLIPTextModel with the text_model level in its names, as the files of all versions have it, of open_clip's sizes."""
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 5}
    model = CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1))
    return Holder(text_model=getattr(model, "text_model", model))


def assert_all_have_homes(network, kind="sd1"):
    """Every layer of the file fits its target, in diffusers' and in LDM's tree, with CLIP or with open_clip."""
    for targets in every_tree(kind):
        for name, home in network.targets.items():
            assert home in targets, (name, home)
            assert network.layers[name].fits(targets[home].shape), (name, home)


@functools.cache
def every_tree(kind):
    layout = {"sd1": SD1, "sdxl": SDXL}[kind]
    encoders = [clip_text_model(), OpenClipText()]
    return [find_targets(unet, texts) for unet in (diffusers_unet(kind), LdmUNet(**layout)) for texts in (encoders, encoders[::-1])]


def by_home(network):
    return {home: network.layers[name] for name, home in network.targets.items()}


def assert_close(one, other):
    assert (one - other).norm() <= 1e-5 * other.norm()
    assert other.norm() > 0


def stir(model):
    """Values everywhere: what a tool starts at zero would hide a mistake."""
    for _, parameter in sorted((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad):
        nn.init.normal_(parameter, std=0.05)


def peft_configs():
    peft = pytest.importorskip("peft", reason="peft is not installed here: its own files can't be compared")
    return {
        "lora": lambda parts: peft.LoraConfig(r=2, lora_alpha=6, target_modules=parts),
        "rslora with patterns": lambda parts: peft.LoraConfig(
            r=2, lora_alpha=6, target_modules=parts, use_rslora=True, rank_pattern={"to_q": 3}, alpha_pattern={r"attn2\.to_k": 5}
        ),
        "dora": lambda parts: peft.LoraConfig(r=2, lora_alpha=6, target_modules=parts, use_dora=True),
        "loha": lambda parts: peft.LoHaConfig(r=2, alpha=6, target_modules=parts, use_effective_conv2d=True, rank_pattern={"to_q": 1}),
        "loha flat": lambda parts: peft.LoHaConfig(r=2, alpha=6, target_modules=parts, alpha_pattern={"to_q": 1}),
        "lokr": lambda parts: peft.LoKrConfig(r=1, alpha=6, target_modules=parts, decompose_both=True, decompose_factor=4, rank_pattern={"to_q": 2}),
        "lokr whole": lambda parts: peft.LoKrConfig(r=64, alpha=6, target_modules=parts, use_effective_conv2d=True),
        "ia3": lambda parts: peft.IA3Config(target_modules=parts, feedforward_modules=["ff.net.2", "proj_in", "attn1.to_q"]),
        "oft": lambda parts: peft.OFTConfig(oft_block_size=2, r=0, target_modules=parts),
        "oft shared": lambda parts: peft.OFTConfig(oft_block_size=2, r=0, target_modules=parts, block_share=True, use_cayley_neumann=False),
        "oft of three terms": lambda parts: peft.OFTConfig(oft_block_size=2, r=0, target_modules=parts, num_cayley_neumann_terms=3),
        "boft": lambda parts: peft.BOFTConfig(boft_block_size=2, boft_n_butterfly_factor=1, target_modules=[part for part in parts if part in LINEAR]),
        "adalora": lambda parts: peft.AdaLoraConfig(
            init_r=4, target_r=2, lora_alpha=6, target_modules=[part for part in parts if part in LINEAR], total_step=10, tinit=1, tfinal=1
        ),
    }


KINDS = ("lora", "rslora with patterns", "dora", "loha", "loha flat", "lokr", "lokr whole", "ia3", "oft", "oft shared", "oft of three terms", "boft", "adalora")


def middle(tree):
    """A small part of a UNet with layers of every class, under the names that it has there."""
    return Holder(mid_block=tree.mid_block)


@pytest.mark.filterwarnings("ignore")  # PEFT's and torch's own, of many kinds
@pytest.mark.parametrize("form", ["folder", "dump"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_peft_writes_finds_its_homes_and_gives_what_peft_merges(tmp_path, kind, form):
    configs = peft_configs()
    import peft

    torch.manual_seed(0)
    tree = middle(diffusers_unet("sd1"))
    before = {name: parameter.clone() for name, parameter in tree.state_dict().items()}
    model = peft.get_peft_model(tree, configs[kind](["attn1.to_q", "attn2.to_k", "ff.net.2", "proj_in", "conv1"]))
    stir(model)
    if kind == "adalora":  # as training leaves it: three of four singular values of one layer, none of another
        state = peft.get_peft_model_state_dict(model)
        layers = sorted({key.rpartition(".lora_")[0].removeprefix("base_model.model.") for key in state})
        pattern = {f"{layer}.lora_E": [number >= index for number in range(4)] for index, layer in enumerate(layers)}
        model.base_model.resize_modules_by_rank_pattern(pattern, "default") if form == "folder" else None
    if form == "folder":
        model.save_pretrained(tmp_path)
        network = open_network(tmp_path / "adapter_model.safetensors")
        assert network.metadata["peft_type"] == kind.partition(" ")[0].upper().replace("RSLORA", "LORA").replace("DORA", "LORA")
    else:
        model.peft_config["default"].save_pretrained(tmp_path)
        torch.save({name: tensor for name, tensor in model.state_dict().items() if "default" in name}, tmp_path / "adapter_model.bin")
        network = open_network(tmp_path / "adapter_model.bin")
    assert not network.unused
    assert_all_have_homes(network)
    merged = model.double().merge_and_unload().state_dict()  # exact enough for what the difference of two weights shows
    layers = by_home(network)
    assert layers
    for (_, name), layer in layers.items():
        path = next(path[: -len(".weight")] for path in before if path.endswith(".weight") and path[: -len(".weight")].replace(".", "_") == name)
        assert_close(layer.delta(before[f"{path}.weight"]), merged[f"{path}.weight"] - before[f"{path}.weight"])
        bias = before.get(f"{path}.bias")
        change = layer.delta_bias(bias)
        if bias is not None and not torch.equal(bias, merged[f"{path}.bias"]):
            torch.testing.assert_close(change, (merged[f"{path}.bias"] - bias).float(), atol=1e-6, rtol=1e-4)


def peft_adapters(unet, text):
    peft = pytest.importorskip("peft", reason="peft is not installed here: diffusers' own files can't be compared")
    unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=6, target_modules=["to_q", "to_k", "to_out.0", "proj_in"], alpha_pattern={"attn2.to_k": 3}))
    text = peft.inject_adapter_in_model(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "fc1"]), text)
    stir(unet)
    stir(text)
    return peft, text


def own_deltas(model, prefix=""):
    modules = ((prefix + path.replace(".", "_"), module) for path, module in model.named_modules() if hasattr(module, "get_delta_weight"))
    return {name: module.get_delta_weight("default").detach() for name, module in modules}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["new", "old", "adapter"])
def test_a_file_that_diffusers_writes_finds_its_homes_and_gives_diffusers_own_delta(tmp_path, form):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed here: its own files can't be compared")
    torch.manual_seed(0)
    unet = diffusers_unet("sd1")
    peft, text = peft_adapters(unet, clip_text_model())
    states = [peft.get_peft_model_state_dict(each) if each is unet else peft.get_peft_model_state_dict(each, adapter_name="default") for each in (unet, text)]
    expected = {("unet", name): delta for name, delta in own_deltas(unet).items()}
    if form == "adapter":
        unet.save_lora_adapter(tmp_path)
    else:
        expected |= {("te1", name): delta for name, delta in own_deltas(text).items()}
        if form == "old":  # "….lora.down.weight", where the scale was always one
            from diffusers.utils import convert_state_dict_to_diffusers

            states = [convert_state_dict_to_diffusers(state) for state in states]
            configs = {}
            expected = {key: delta / (2 if key[0] == "te1" else 1.5 if key[1].endswith("attn2_to_k") else 3) for key, delta in expected.items()}
        else:
            configs = {f"{name}_lora_adapter_metadata": each.peft_config["default"].to_dict() for name, each in (("unet", unet), ("text_encoder", text))}
        diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, *states, **configs)
    network = open_network(tmp_path / "pytorch_lora_weights.safetensors")
    assert not network.unused
    assert_all_have_homes(network)
    layers = by_home(network)
    assert layers.keys() == expected.keys()
    for home, delta in expected.items():
        assert_close(layers[home].delta(torch.zeros_like(delta)), delta)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("parts", ["unet", "text", "both"])
def test_a_file_that_diffusers_converts_to_kohyas_form_is_read_whole(tmp_path, parts, dora):
    pytest.importorskip("diffusers", reason="diffusers is not installed here: its own files can't be compared")
    peft = pytest.importorskip("peft", reason="peft is not installed here: its own files can't be compared")
    from diffusers.utils import convert_all_state_dict_to_peft, convert_state_dict_to_diffusers, convert_state_dict_to_kohya

    torch.manual_seed(0)
    trees = {"unet": (middle(diffusers_unet("sd1")), ["to_q", "to_k", "to_out.0", "proj_in", "conv1"]), "text": (clip_text_model(), ["q_proj", "fc1"])}
    expected, state = {}, {}
    for part, (tree, names) in trees.items() if parts == "both" else [(parts, trees[parts])]:
        before = {name: tensor.clone() for name, tensor in tree.state_dict().items()}
        model = peft.get_peft_model(tree, peft.LoraConfig(r=2, lora_alpha=2, target_modules=names, use_dora=dora))
        stir(model)
        saved = {key.removeprefix("base_model.model."): value for key, value in peft.get_peft_model_state_dict(model).items()}
        prefix, component = {"unet": ("unet", "unet"), "text": ("text_encoder", "te1")}[part]
        state |= {f"{prefix}.{key}": value.contiguous() for key, value in convert_state_dict_to_diffusers(saved).items()}
        merged = model.double().merge_and_unload().state_dict()
        changed = [name for name in before if not torch.equal(before[name], merged[name].float())]
        for name in changed:
            expected[component, name.removesuffix(".weight").replace(".", "_")] = (before[name], merged[name] - before[name])
    converted = convert_state_dict_to_kohya(convert_all_state_dict_to_peft(state))
    torch.save(converted, tmp_path / "converted.ckpt")
    network = open_network(tmp_path / "converted.ckpt")
    assert not network.unused
    assert by_home(network).keys() == expected.keys() and expected
    for home, layer in by_home(network).items():
        assert_close(layer.delta(expected[home][0]), expected[home][1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}, {"modules_to_save": ["conv2"]}], ids=str)
def test_what_peft_saves_whole_is_among_the_leftovers(tmp_path, settings):
    peft = pytest.importorskip("peft", reason="peft is not installed here: its own files can't be compared")
    tree = middle(diffusers_unet("sd1"))
    peft.get_peft_model(copy.deepcopy(tree), peft.LoraConfig(r=2, target_modules=["to_out.0", "conv1"], **settings)).save_pretrained(tmp_path)
    network = open_network(tmp_path / "adapter_model.safetensors")
    assert network.replacing and set(network.replacing) == set(network.unused)
    with Session(tree) as session:
        assert set(session.apply([(network, 1.0)])) == set(network.replacing)


@pytest.fixture
def lycoris():
    package = pytest.importorskip("lycoris", reason="lycoris-lora is not installed here: its own files can't be compared")
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    return package


LYCORIS = {
    "locon": {"algo": "locon", "use_tucker": True},
    "loha": {"algo": "loha"},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 4},
    "lokr dora": {"algo": "lokr", "factor": 2, "dora_wd": True},
    "dora": {"algo": "locon", "dora_wd": True},
    "dora on the input": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "dylora": {"algo": "dylora", "block_size": 1},
    "glora": {"algo": "glora"},
    "ia3": {"algo": "ia3"},
    "full": {"algo": "full"},
    "diag-oft": {"algo": "diag-oft", "constraint": 1e-2, "rescaled": True},
    "boft": {"algo": "boft"},
    "norms too": {"algo": "locon", "train_norm": True},
}


WHOLE_MODEL = {  # LyCORIS' own "full" takes time_embedding's layers twice
    "enable_conv": True,
    "unet_target_module": ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"],
    "unet_target_name": ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"],
    "text_encoder_target_module": ["CLIPAttention", "CLIPMLP"],
    "text_encoder_target_name": [],
}


def assert_same_outputs(network, modules, trees):
    """What each of LyCORIS' modules makes of a layer's output is what our layer adds to it; `trees`: by prefix, as they were without LyCORIS."""
    bases = {f"{prefix}_{path}".replace(".", "_"): module for prefix, tree in trees.items() for path, module in tree.named_modules()}
    for module in modules:
        base = bases[module.lora_name]
        x = torch.randn(2, base.weight.shape[1], 5, 5) if base.weight.ndim == 4 else torch.randn(3, base.weight.shape[-1])
        x = torch.randn(2, base.num_channels, 5, 5) if isinstance(base, nn.GroupNorm) else x
        with torch.no_grad():
            theirs = module.eval()(x)
            ours = base(x) + network.layers[module.lora_name].delta_output(x, base)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def every(items, count=12):
    items = list(items)
    return items[:: max(1, len(items) // count)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", LYCORIS.values(), ids=LYCORIS)
def test_a_file_that_lycoris_writes_in_kohyas_trainer_finds_its_homes(tmp_path, lycoris, monkeypatch, options):
    from lycoris.kohya import PRESET, create_network

    monkeypatch.setitem(PRESET, "here", WHOLE_MODEL)
    torch.manual_seed(0)
    unet, text = diffusers_unet("sd1"), clip_text_model()
    pristine = {"lora_unet": copy.deepcopy(unet), "lora_te": copy.deepcopy(text)}
    network = create_network(1.0, 2, 1.0, None, text, unet, preset="here", **options)
    network.apply_to(text, unet, True, True)
    stir(network)
    path = tmp_path / "net.safetensors"
    network.save_weights(path, torch.float32, {"ss_network_module": "lycoris.kohya"})
    ours = open_network(path)
    assert len(ours.layers) == len(network.unet_loras) + len(network.text_encoder_loras) and network.text_encoder_loras
    assert_all_have_homes(ours)
    if options["algo"] != "dylora":  # whose forward draws its rank by lot
        assert_same_outputs(ours, every([*network.unet_loras, *network.text_encoder_loras]), pristine)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("prefix", ["lycoris", "lora_unet"])
@pytest.mark.parametrize(("kind", "layout"), [("sd1", SD1), ("sdxl", SDXL)])
@pytest.mark.parametrize("tree", ["diffusers", "ldm"])
def test_a_file_that_lycoris_wrapper_writes_for_either_tree_finds_its_homes_in_both(tmp_path, lycoris, prefix, kind, layout, tree):
    from lycoris import LycorisNetwork, create_lycoris

    torch.manual_seed(0)
    unet = diffusers_unet(kind) if tree == "diffusers" else LdmUNet(**layout)
    pristine = copy.deepcopy(unet)
    LycorisNetwork.apply_preset({"target_name": [".*"], "lora_prefix": prefix})
    try:
        network = create_lycoris(unet, 1.0, 2, 1.0, algo="lora")
        network.apply_to()
        stir(network)
        network.save_weights(tmp_path / "net.safetensors", torch.float32, {})
    finally:
        LycorisNetwork.apply_preset({"lora_prefix": "lycoris"})
    ours = open_network(tmp_path / "net.safetensors")
    assert len(ours.layers) > 100
    assert_all_have_homes(ours, kind)
    assert_same_outputs(ours, every(network.loras), {prefix: pristine})
