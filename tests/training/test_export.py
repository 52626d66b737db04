"""Files of every kind, in other programs' own classes: LyCORIS' modules and PEFT's loader give the ΔW that was trained."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib_lycoris.errors import ConfigError, TrainingError
from lib_lycoris.files.metadata import TrainingFacts, make_metadata
from lib_lycoris.files.safetensors import read_header
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.library.load import open_network
from lib_lycoris.networks.dora import DecomposedLayer
from lib_lycoris.networks.low_rank import LowRankLayer
from lib_lycoris.patching.session import attach
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.prompt.request import split_prompt
from lib_lycoris.training.config import NetworkSettings, TrainConfig
from lib_lycoris.training.description import describe_kind
from lib_lycoris.training.export import network_tensors
from lib_lycoris.training.loop import train
from lib_lycoris.training.methods import count_parameters, create_layer, make_method
from lib_lycoris.training.peft_form import write_peft
from lib_lycoris.training.rank_plot import arrange
from lib_lycoris.training.result import typed_for
from lib_lycoris.training.selection import select_targets

from ..patching.trees import OpenClipText
from .fake import FakeBackbone, make_pictures
from .test_loop import make_config

KINDS = {
    "lora": {"kind": "lora"},
    "locon": {"kind": "locon", "conv_rank": 2},
    "locon, Tucker": {"kind": "locon", "tucker": True},
    "locon, DoRA": {"kind": "locon", "dora": True},
    "locon, rs": {"kind": "locon", "rs_lora": True},
    "locon, ranks of its own": {"kind": "locon", "block_ranks": ("up_blocks*=3",)},
    "locon, DoRA of inputs": {"kind": "locon", "dora": True, "dora_on_output": False},
    "loha": {"kind": "loha"},
    "loha, Tucker": {"kind": "loha", "tucker": True},
    "loha, DoRA": {"kind": "loha", "dora": True},
    "lokr": {"kind": "lokr", "factor": 2},
    "lokr, both in parts": {"kind": "lokr", "factor": 4, "decompose_both": True, "rank": 1},
    "lokr, full": {"kind": "lokr", "full_matrix": True},
    "adalora": {"kind": "adalora", "targets": ("q", "k", "v", "ff", "resnet")},
    "full": {"kind": "full"},
    "norm": {"kind": "norm"},
    "ia3": {"kind": "ia3"},
}
every_kind = pytest.mark.parametrize("name", KINDS)
PEFT_KINDS = ["lora", "locon", "locon, Tucker", "locon, DoRA", "locon, rs", "locon, ranks of its own", "loha", "loha, Tucker", "adalora"]


def settings_of(name):
    return NetworkSettings(**{"rank": 4, "alpha": 2.0, **({"alpha": None} if name == "adalora" else {}), **KINDS[name]})


def trained(name, backbone):
    """(targets, layers as a file gets them), every parameter away from where it started."""
    settings = settings_of(name)
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), settings)
    method = make_method(settings, targets, 10, 0, torch.device("cpu"))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for layer in method.layers.values():
            for parameter in layer.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
        if name == "adalora":
            for number, layer in enumerate(method.layers.values()):
                layer.lora_E[number % 3 :] = 0
    return targets, method.export_layers()


# LyCORIS 4.1.3 can't make an (IA)³ module of any file (its own function takes one argument less than it is given); tests/networks holds the kind against it
# and reads every DoRA as one of outputs
@pytest.mark.parametrize("name", [name for name in KINDS if name not in ("ia3", "locon, DoRA of inputs")])
def test_lycoris_gives_the_output_that_was_trained(name):
    modules = pytest.importorskip("lycoris.modules")
    backbone = FakeBackbone()
    targets, layers = trained(name, backbone)
    tensors = network_tensors(layers, "fp32")
    seen = 0
    for key, layer in layers.items():
        prefix = next(prefix for prefix in ("lora_unet_", "lora_te_") if f"{prefix}{key[1]}" in {part.partition(".")[0] for part in tensors}) + key[1]
        kind, parameters = modules.get_module(tensors, prefix)
        module = targets[key].module
        theirs = modules.make_module(kind, parameters, prefix, module)
        places = () if isinstance(module, nn.Linear | nn.LayerNorm) else (5, 5)
        shape = (2, getattr(module, "in_features", getattr(module, "in_channels", 8)), *places)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        weight = module.weight.detach().float()
        delta = layer.delta(weight).double()
        own = layer.delta_bias(None if module.bias is None else module.bias.detach())
        module.double(), theirs.double()
        theirs.org_forward = module.forward
        with torch.no_grad():
            got = theirs(x) - module(x)
            changed = {"weight": delta + module.weight, **({} if module.bias is None else {"bias": module.bias + (0 if own is None else own.double())})}
            expected = torch.func.functional_call(module, changed, (x,)) - module(x)
        module.float()
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
        seen += float(expected.abs().max()) > 1e-4
    assert seen == len(layers) > 4


@pytest.mark.parametrize("name", PEFT_KINDS)
def test_pefts_own_loader_takes_the_folder(name, tmp_path):
    peft = pytest.importorskip("peft")
    backbone = FakeBackbone()
    targets, layers = trained(name, backbone)
    write_peft(tmp_path / "net", layers, "fp32", {"who": "us"})
    for component, model in (("unet", backbone.unet), ("text_encoder", backbone.text_encoders[0].text_model)):
        before = {part: value.detach().clone() for part, value in model.named_parameters()}
        names = {module: part for part, module in model.named_modules()}
        merged = peft.PeftModel.from_pretrained(model, tmp_path / "net" / component).merge_and_unload()
        after = dict(merged.named_parameters())
        chosen = {key: layer for key, layer in layers.items() if (key[0] == "unet") == (component == "unet")}
        changed = {f"{names[targets[key].module]}.weight": layer for key, layer in chosen.items()}
        assert changed
        for part, value in before.items():
            delta = after[part].detach() - value
            expected = changed[part].delta(value).detach() if part in changed else torch.zeros_like(value)
            torch.testing.assert_close(delta, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PEFT_KINDS)
def test_our_own_reader_takes_the_folder_too(name, tmp_path):
    backbone = FakeBackbone()
    targets, layers = trained(name, backbone)
    write_peft(tmp_path / "net", layers, "fp32", {})
    for component in ("unet", "text_encoder"):
        network = open_network(tmp_path / "net" / component / "adapter_model.safetensors")
        assert network.layers
        for key, layer in network.layers.items():
            # a text encoder's folder does not say whose it is
            home = (network.targets[key][0] if component == "unet" else "te1", network.targets[key][1])
            home = home if home in layers else (home[0], f"text_model_{home[1]}")
            weight = targets[home].module.weight.detach()
            torch.testing.assert_close(layer.delta(weight), layers[home].delta(weight).detach(), rtol=1e-4, atol=1e-6)


def test_a_training_writes_pefts_form(tmp_path):
    config = make_config(tmp_path, **{"output.form": "peft", "network.kind": "lora", "network.text_encoder": False, "training.steps": 3})
    result = train(config, FakeBackbone())
    assert result.path == tmp_path / "out" / "net"
    assert sorted(path.name for path in result.path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((result.path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 2.0)
    assert read_header(result.path / "adapter_model.safetensors").metadata["ss_output_name"] == "net"


@pytest.mark.parametrize("text_encoder", [True, False])
def test_the_tags_that_are_told_find_every_part_of_pefts_form(text_encoder, tmp_path):
    config = make_config(tmp_path, **{"output.form": "peft", "network.kind": "lora", "network.text_encoder": text_encoder, "training.steps": 1})
    typed = typed_for(config, train(config, FakeBackbone()).path)
    _, requests, problems = split_prompt(typed)
    catalogue = Catalogue([tmp_path / "out"])
    found = {component for request in requests for component, _ in open_network(catalogue.find(request.name)).targets.values()}
    assert not problems and found == ({"unet", "te1"} if text_encoder else {"unet"})


def test_pefts_file_of_a_second_text_encoder_is_for_that_one(tmp_path):
    _, layers = trained("lora", FakeBackbone())
    texts = {("te2", name): layer for (component, name), layer in layers.items() if component == "te1"}
    write_peft(tmp_path / "net", {**layers, **texts}, "fp32", {})
    files = sorted((tmp_path / "net").glob("*/adapter_model.safetensors"))
    assert [{component for component, _ in open_network(path).targets.values()} for path in files] == [{"te1"}, {"te2"}, {"unet"}]


@pytest.mark.filterwarnings("ignore")  # PEFT's and transformers' own; a file whose names don't fit is nothing but a warning to them
@pytest.mark.parametrize("name", ["lora", "locon, DoRA", "loha"])
def test_pefts_own_loader_takes_both_of_sdxls_text_encoders(name, tmp_path):
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 5}
    config = transformers.CLIPTextConfig(**sizes, projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    encoders = transformers.CLIPTextModel(config), transformers.CLIPTextModelWithProjection(config)
    targets = find_targets(None, encoders)
    layers = {key: create_layer(target, settings_of(name), 0) for key, target in targets.items() if key[1].endswith(("q_proj", "fc1"))}
    for layer in layers.values():
        for parameter in layer.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    write_peft(tmp_path / "net", layers, "fp32", {})
    for component, model in zip(("text_encoder", "text_encoder_2"), encoders, strict=True):
        own = {key: layer for key, layer in layers.items() if key[0] == {"text_encoder": "te1", "text_encoder_2": "te2"}[component]}
        wanted = {key: targets[key].module.weight.detach() + layer.delta(targets[key].module.weight).detach() for key, layer in own.items()}
        merged = dict(peft.PeftModel.from_pretrained(model, tmp_path / "net" / component).merge_and_unload().named_parameters())
        found = {name.removesuffix(".weight").replace(".", "_"): value for name, value in merged.items()}
        assert len(wanted) == 2
        for (_, name), weight in wanted.items():
            torch.testing.assert_close(found.get(name, found.get(name.removeprefix("text_model_"))), weight, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # PEFT's own
def test_diffusers_own_loader_gives_a_pruned_networks_layers_what_we_do(tmp_path):
    pytest.importorskip("peft")
    loaders, models = pytest.importorskip("diffusers.loaders"), pytest.importorskip("diffusers")
    unet = models.UNet2DConditionModel(block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4,
                                       down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    settings = NetworkSettings(kind="adalora", alpha=None, init_rank=6, target_rank=3, text_encoder=False, targets=("q", "k", "v", "out", "ff", "resnet"))
    targets = select_targets(find_targets(unet), settings)
    method = make_method(settings, targets, 100, 0, torch.device("cpu"))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for number, layer in enumerate(method.layers.values()):
            for parameter in layer.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
            layer.lora_E[1 + number % 5 :] = 0
    before = {key: target.module.weight.detach().clone() for key, target in targets.items()}
    save_file(network_tensors(method.export_layers(), "fp32"), str(tmp_path / "net.safetensors"))
    state, alphas = loaders.StableDiffusionLoraLoaderMixin.lora_state_dict(str(tmp_path), weight_name="net.safetensors", unet_config=unet.config)
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    unet.fuse_lora()
    after = {name.replace(".base_layer", "").removesuffix(".weight").replace(".", "_"): tensor for name, tensor in unet.state_dict().items()}
    for key, layer in method.layers.items():
        torch.testing.assert_close(after[key[1]] - before[key], layer.delta(before[key]).detach(), rtol=1e-3, atol=1e-5, msg=str(key))


@pytest.mark.parametrize("network", [{"kind": "lokr"}, {"kind": "full"}, {"kind": "norm"}, {"kind": "ia3"}, {"kind": "loha", "dora": True}])
def test_kinds_without_a_form_in_peft_are_told_before_training(network):
    with pytest.raises(ConfigError, match="PEFT has no form"):
        TrainConfig.from_dict({"network": network, "output": {"form": "peft"}})


def test_a_value_that_the_dtype_can_not_hold_is_told_in_both_forms(tmp_path):
    _, layers = trained("lora", FakeBackbone())
    with torch.no_grad():
        next(iter(layers.values())).lora_up.weight[0, 0] = 1e6
    for write in (lambda: network_tensors(layers, "fp16"), lambda: write_peft(tmp_path / "net", layers, "fp16", {})):
        with pytest.raises(TrainingError, match="fp16 can't hold"):
            write()


@pytest.mark.parametrize(("name", "module", "arguments"), [
    ("lora", "networks.lora", None),
    ("locon", "networks.lora", {"conv_dim": "2", "conv_alpha": "1.0"}),
    ("locon, DoRA", "lycoris.kohya", {"algo": "locon", "dora_wd": "True", "wd_on_output": "True", "conv_dim": "4", "conv_alpha": "2.0"}),
    ("locon, DoRA of inputs", "lycoris.kohya", {"algo": "locon", "dora_wd": "True", "conv_dim": "4", "conv_alpha": "2.0"}),
    ("locon, Tucker", "lycoris.kohya", {"algo": "locon", "use_tucker": "True", "conv_dim": "4", "conv_alpha": "2.0"}),
    ("loha", "lycoris.kohya", {"algo": "loha", "conv_dim": "4", "conv_alpha": "2.0"}),
    ("lokr", "lycoris.kohya", {"algo": "lokr", "factor": "2"}),
    ("full", "lycoris.kohya", {"algo": "full"}),
    ("norm", "lycoris.kohya", {"algo": "full", "train_norm": "True"}),
    ("ia3", "lycoris.kohya", {"algo": "ia3"}),
])
def test_the_metadata_says_who_loads_the_file(name, module, arguments):
    _, layers = trained(name, FakeBackbone())
    metadata = make_metadata_of(name, layers)
    found = json.loads(metadata["ss_network_args"]) if "ss_network_args" in metadata else None
    if name == "lokr":
        found = {key: value for key, value in found.items() if not key.startswith("conv")}
    assert (metadata["ss_network_module"], found) == (module, arguments)


def make_metadata_of(name, layers):
    return make_metadata(TrainingFacts(name="net", **describe_kind(settings_of(name), layers)))


def test_a_folders_word_calls_the_concept_only_where_a_caption_has_it(tmp_path):
    folder = make_pictures(tmp_path / "2_zorb", 2)
    (folder / "0.txt").write_text("a picture of a Zorb", encoding="utf-8")
    unsaid = make_pictures(tmp_path / "2_never", 2)
    config = make_config(tmp_path, training__steps=1, data__folders=[str(folder), str(unsaid)])
    assert read_header(train(config, FakeBackbone()).path).metadata["modelspec.trigger_phrase"] == "zorb"


def test_ranks_that_differ_are_dynamic():
    for name in ("adalora", "locon, ranks of its own"):
        _, layers = trained(name, FakeBackbone())
        metadata = make_metadata_of(name, layers)
        assert (metadata["ss_network_dim"], metadata["ss_network_alpha"], metadata["ss_network_module"]) == ("Dynamic", "Dynamic", "networks.lora")
    _, layers = trained("lora", FakeBackbone())
    assert (make_metadata_of("lora", layers)["ss_network_dim"], make_metadata_of("lora", layers)["ss_network_alpha"]) == ("4", "2.0")


def test_sdxls_layers_have_the_names_that_kohyas_files_have():
    _, layers = trained("lora", FakeBackbone())
    layer = next(iter(layers.values()))
    named = {("unet", "down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q"): layer, ("te1", "text_model_encoder_layers_0_mlp_fc1"): layer}
    starts = {key.partition(".")[0] for key in network_tensors(named, "fp32", "sdxl_base_v1-0")}
    assert starts == {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "lora_te1_text_model_encoder_layers_0_mlp_fc1"}


@every_kind
def test_parameters_are_counted_without_making_them(name):
    backbone = FakeBackbone()
    settings = settings_of(name)
    for tree in (backbone.text_encoders, [OpenClipText()]):
        for target in select_or_none(find_targets(backbone.unet, tree), settings).values():
            layer = create_layer(target, settings, 0)
            assert count_parameters(target, settings) == sum(value.numel() for value in layer.parameters() if value.requires_grad)


def select_or_none(targets, settings):
    try:
        return select_targets(targets, settings)
    except ConfigError:
        return {}


@pytest.mark.parametrize("name", [name for name in KINDS if name != "norm"])
def test_fused_projections_of_a_text_encoder_are_trained_and_written(name):
    torch.manual_seed(0)
    tree = OpenClipText().requires_grad_(False)
    targets = find_targets(FakeBackbone().unet, [tree])
    settings = settings_of(name)
    chosen = {key: target for key, target in select_targets(targets, settings).items() if target.component != "unet"}
    assert any(target.rows is not None for target in chosen.values())
    method = make_method(settings, chosen, 10, 0, torch.device("cpu"))
    tokens = torch.tensor([[3, 4, 5, 6, 1]])
    plain = tree(tokens)
    with torch.no_grad():
        for layer in method.layers.values():
            if name == "adalora":
                layer.lora_E.fill_(0.1)
    optimizer = torch.optim.SGD([value for layer in method.layers.values() for value in layer.parameters()], lr=0.1)
    with attach(targets, method.layers):
        fresh = tree(tokens)
        if name != "adalora":
            torch.testing.assert_close(fresh, plain)
        for _ in range(2):
            optimizer.zero_grad()
            (tree(tokens) * torch.linspace(-1, 1, plain.numel()).reshape(plain.shape)).sum().backward()
            assert all(value.grad is not None for layer in method.layers.values() for value in layer.parameters())
            optimizer.step()
        with torch.no_grad():
            after = tree(tokens)
    assert not torch.allclose(after, plain, atol=1e-6)
    made = {}
    names = {id(value): part for part, value in tree.named_parameters()}
    for key, layer in method.export_layers().items():
        target = chosen[key]
        for parameter, delta in ((target.weight, layer.delta), (target.bias, layer.delta_bias)):
            whole = None if parameter is None else target.module._parameters.get(parameter)
            if whole is None:
                continue
            rows = target.rows or slice(None)
            base = made.get(names[id(whole)], whole.detach().clone())
            change = delta(whole.detach()[rows])
            base[rows] += 0 if change is None else change.detach()
            made[names[id(whole)]] = base
    torch.testing.assert_close(torch.func.functional_call(tree, made, (tokens,)), after, rtol=1e-4, atol=1e-5)
    prefixes = {key.partition(".")[0] for key in network_tensors(method.export_layers(), "fp32")}
    assert any("self_attn_q_proj" in prefix or "self_attn_k_proj" in prefix for prefix in prefixes)


def test_the_rank_that_each_layer_kept_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    config = make_config(tmp_path, **{"network.kind": "adalora", "network.alpha": None, "training.steps": 10, "network.interval": 1})
    totals = []
    result = train(config, FakeBackbone(), on_step=lambda report: totals.append(report.ranks))
    layers = len(result.ranks)
    assert totals[-1] == sum(result.ranks.values()) == 4 * layers and totals == sorted(totals, reverse=True)
    assert (tmp_path / "out" / "net-ranks.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_of_ranks_has_a_row_for_each_block_and_a_column_for_each_sort_of_layer(tmp_path):
    ranks = {
        "unet.down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": 3, "unet.down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj": 5,
        "unet.down_blocks_0_attentions_0_proj_in": 2, "unet.down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_q": 4, "unet.conv_in": 1,
        "te1.text_model_encoder_layers_0_self_attn_q_proj": 6,
    }
    blocks, parts, cells = arrange(ranks)
    assert blocks == ["unet down blocks 0 attentions 0", "unet down blocks 1 attentions 0 t1", "unet", "te1 layers 0"]
    assert parts == ["attn1 q", "ff f1", "proj in", "conv_in", "q"] and sorted(cells.values()) == [1, 2, 3, 4, 5, 6]


def test_dora_is_the_same_for_a_weight_as_for_its_module():
    module = nn.Linear(5, 4)
    layers = [DecomposedLayer.create(one, LowRankLayer.create((4, 5), 2)) for one in (module, module.weight)]
    assert torch.equal(layers[0].dora_scale, layers[1].dora_scale)
