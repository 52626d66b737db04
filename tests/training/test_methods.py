"""Every kind of network in training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import ConfigError
from lib_lycoris.library.load import open_network
from lib_lycoris.networks.adalora import AdaLoRALayer
from lib_lycoris.patching.session import attach
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training import export
from lib_lycoris.training.adalora import AdaLoRAMethod, lora_of, phases
from lib_lycoris.training.allocator import RankAllocator
from lib_lycoris.training.config import NetworkSettings, TrainConfig
from lib_lycoris.training.flat import Flat
from lib_lycoris.training.loop import train
from lib_lycoris.training.methods import make_method
from lib_lycoris.training.presets import PRESETS
from lib_lycoris.training.selection import select_targets

from .fake import FakeBackbone
from .test_export import KINDS
from .test_loop import losses_of, make_config

METHODS = {
    "lora": {},
    "locon": {},
    "locon, Tucker": {"network.tucker": True},
    "locon, rs": {"network.rs_lora": True},
    "locon, DoRA": {"network.dora": True},
    "loha": {},
    "loha, Tucker": {"network.tucker": True},
    "loha, DoRA": {"network.dora": True},
    "lokr": {"network.factor": 4},
    "lokr, full": {"network.full_matrix": True},
    "adalora": {"network.alpha": None, "network.targets": ["q", "k", "v", "ff", "resnet"], "network.interval": 1},
    "full": {},
    "norm": {},
    "ia3": {},
}
every_method = pytest.mark.parametrize("name", METHODS)


def config_of(folder, name, **changes):
    kind = name.partition(",")[0]
    extra = {"training.learning_rate": 0.003} if kind == "full" else {}
    return make_config(folder, **{"network.kind": kind, **extra, **METHODS[name], **changes})


@every_method
def test_the_loss_falls_and_the_file_gives_what_was_trained(name, tmp_path, monkeypatch):
    kept = {}
    real = export.network_tensors
    monkeypatch.setattr(export, "network_tensors", lambda layers, *rest, **named: kept.update(layers) or real(layers, *rest, **named))
    backbone = FakeBackbone()
    losses, result = losses_of(config_of(tmp_path, name, **{"training.steps": 60, "data.batch_size": 3}), backbone)
    assert sum(losses[-15:]) < 0.97 * sum(losses[:15])
    network, targets = open_network(result.path), find_targets(backbone.unet, backbone.text_encoders)
    assert {network.targets[key] for key in network.layers} == set(kept) and kept
    for key, layer in network.layers.items():
        weight = targets[network.targets[key]].module.weight
        torch.testing.assert_close(layer.delta(weight), kept[network.targets[key]].delta(weight).detach(), rtol=1e-5, atol=1e-7)


@every_method
def test_resuming_goes_on_bit_for_bit(name, tmp_path):
    whole, straight = losses_of(config_of(tmp_path / "a", name))
    halves = config_of(tmp_path / "b", name)
    count = iter(range(100))
    first, _ = losses_of(halves, should_stop=lambda: next(count) == 7)
    second, resumed = losses_of(halves, resume=True)
    assert first + second == whole
    one, two = open_network(straight.path), open_network(resumed.path)
    assert one.layers.keys() == two.layers.keys()
    for key, layer in one.layers.items():
        assert all(torch.equal(tensor, two.layers[key].tensors()[part]) for part, tensor in layer.tensors().items())


def test_norms_are_trained_alone_and_ia3_scales_keys_values_and_the_feed_forward():
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    assert {name for _, name in select_targets(targets, NetworkSettings(kind="norm"))} and all(
        isinstance(target.module, torch.nn.LayerNorm | torch.nn.GroupNorm) for target in select_targets(targets, NetworkSettings(kind="norm")).values()
    )
    names = {name for _, name in select_targets(targets, NetworkSettings(kind="ia3"))}
    assert names and all(name.endswith(("to_k", "to_v", "k_proj", "v_proj", "ff_net_2", "mlp_fc2")) for name in names)


def test_norms_that_others_do_not_find_are_trained_with_the_group_io_alone():
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    names = [{name for _, name in select_targets(targets, NetworkSettings(kind="norm", targets=groups))} for groups in (None, ("q", "io"))]
    assert names[1] - names[0] == {name for name in names[1] if name.endswith("final_layer_norm")} != set()


def test_a_training_too_short_for_adalora_is_told(tmp_path):
    config = make_config(tmp_path, network__kind="adalora", network__alpha=None, training__steps=2)
    assert any("every rank of every layer" in problem for problem in train(config, FakeBackbone()).problems)


def test_patterns_choose_layers_and_give_ranks_of_their_own():
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    chosen = NetworkSettings(only=("up_blocks.0*attn2",), exclude=("to_q",), block_ranks=("*=2", "to_v=8"), rank=4, alpha=2)
    where = select_targets(targets, NetworkSettings(only=chosen.only, exclude=chosen.exclude, text_encoder=False))
    layers = make_method(chosen, where, 10, 0, torch.device("cpu")).layers
    assert {name.rpartition("attn2_")[2]: (layer.rank, layer.scale) for (_, name), layer in layers.items()} == {
        "to_k": (2, 0.5), "to_v": (8, 0.5), "to_out_0": (2, 0.5),
    }


@pytest.mark.parametrize("kind", ["locon", "adalora"])
def test_a_text_encoder_is_trained_alone_where_only_its_layers_are_named(kind, tmp_path):
    config = make_config(tmp_path, network__kind=kind, network__alpha=None, network__only=["text_model"], training__steps=60, data__batch_size=3)
    losses, result = losses_of(config)
    network = open_network(result.path)
    assert {component for component, _ in network.targets.values()} == {"te1"} and sum(losses[-15:]) < sum(losses[:15])


def test_adalora_trains_what_its_paper_found_best_and_a_preset_adds_outputs_and_convolutions():
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    preset = next(preset for preset in PRESETS if preset.name.startswith("style · AdaLoRA"))
    usual, more = (set(select_targets(targets, settings)) for settings in (
        NetworkSettings(kind="adalora", alpha=None), TrainConfig().change({**preset.values, "network.text_encoder": True}).network))
    ends = ("to_q", "to_k", "to_v", "q_proj", "k_proj", "v_proj", "fc1", "fc2")
    assert usual == {key for key in more if key[1].endswith(ends)}
    assert {key[1].rpartition("_blocks_0_")[2] for key in more - usual if key[0] == "unet"} == {
        "attn2_to_out_0", "resnets_0_conv1", "resnets_0_conv2", "resnets_0_time_emb_proj"}


def test_a_unet_is_trained_alone_where_only_its_layers_are_named_and_a_name_that_none_has_is_told():
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    assert {component for component, _ in select_targets(targets, NetworkSettings(only=("up_blocks",)))} == {"unet"}
    with pytest.raises(ConfigError, match=r"network\.only = \['nowhere'\] and network\.exclude = \['to_q'\]: no layer is left"):
        select_targets(targets, NetworkSettings(only=("nowhere",), exclude=("to_q",)))


@settings(max_examples=60, deadline=None)
@given(steps=st.integers(2, 5000), warmup=st.none() | st.integers(0, 900), final=st.none() | st.integers(0, 900))
def test_adaloras_phases_leave_steps_between_them_wherever_that_is_possible(steps, warmup, final):
    found = phases(NetworkSettings(kind="adalora", warmup=warmup, final=final), steps)
    given_steps = (warmup or 0) + (final or 0)
    assert found.interval >= 1
    assert found.warmup + found.final < steps or given_steps >= steps
    assert (warmup is None or found.warmup == warmup) and (final is None or found.final == final)


def adalora_method(shapes, rank=3, orthogonality=0.1):
    seeds = {name: torch.Generator().manual_seed(index) for index, name in enumerate(shapes)}
    layers = {("unet", name): AdaLoRALayer.create(shape, rank, generator=seeds[name]) for name, shape in shapes.items()}
    with torch.no_grad():
        for layer in layers.values():
            layer.lora_E.normal_()
    flat = Flat({f"unet.{name}.{part}": value for (_, name), layer in layers.items() for part, value in layer.named_parameters()})
    ranks = {f"unet.{name}": layer.rank for (_, name), layer in layers.items()}
    method = AdaLoRAMethod(layers, {key: shapes[key[1]] for key in layers}, RankAllocator(ranks, 1, 10, 1, 4, 1), orthogonality)
    return method, flat


SHAPES = {"a": (7, 5), "b": (7, 5), "c": (6, 4, 3, 3), "d": (2, 9)}


def test_the_penalty_is_the_papers_and_its_gradient_autograds():
    method, _ = adalora_method(SHAPES)
    with torch.enable_grad():
        values = []
        for layer in method.layers.values():
            for rows in (layer.lora_A, layer.lora_B.T):
                values.append((rows @ rows.T - torch.eye(len(rows))).norm() ** 2)
        expected = 0.1 * sum(values) / len(method.layers)
        parameters = [part for layer in method.layers.values() for part in (layer.lora_A, layer.lora_B)]
        gradients = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(torch.as_tensor(method.add_penalty()), expected.detach())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_the_penalty_makes_the_factors_orthogonal():
    method, flat = adalora_method(SHAPES, rank=2, orthogonality=1.0)
    first = float(method.add_penalty())
    optimizer = torch.optim.SGD([flat.vector], lr=0.2)
    for _ in range(400):
        flat.zero_gradients()
        last = float(method.add_penalty())
        optimizer.step()
    assert last < 1e-3 < first


def test_ranks_are_taken_away_to_the_budget_and_the_export_is_exact():
    method, flat = adalora_method(SHAPES)
    for step in range(1, 11):
        flat.vector.grad.normal_(generator=torch.Generator().manual_seed(step))
        with torch.no_grad():
            flat.vector -= 0.05 * flat.vector.grad
        method.after_step(step)
    kept = method.figures()["ranks"]
    assert sum(kept.values()) == 4 and len(kept) == 4
    exported = method.export_layers()
    for key, layer in method.layers.items():
        weight = torch.zeros(SHAPES[key[1]])
        delta = exported[key].delta(weight) if key in exported else weight
        torch.testing.assert_close(delta, layer.delta(weight).detach(), rtol=1e-5, atol=1e-8)
        assert key not in exported or exported[key].rank == kept[f"unet.{key[1]}"]
    assert len({layer.alpha for layer in exported.values()}) == 1, "diffusers mixes alphas up where they differ"


def test_a_layer_without_ranks_has_no_lora():
    assert lora_of(AdaLoRALayer.create((4, 5), 2), (4, 5)) is None


def test_phases_that_do_not_fit_the_steps_are_told(tmp_path):
    config = config_of(tmp_path, "adalora", **{"network.warmup": 8, "network.final": 8})
    with pytest.raises(ConfigError, match="leave none of the 12 steps"):
        train(config, FakeBackbone())


@pytest.mark.parametrize("name", KINDS)
def test_what_is_attached_has_the_output_and_the_gradients_of_the_weights_that_it_stands_for(name):
    backbone = FakeBackbone()
    chosen = NetworkSettings(**{"rank": 2, "alpha": 3.0, "text_encoder": False, **KINDS[name]})
    targets = select_targets(find_targets(backbone.unet), chosen)
    layers = make_method(chosen, targets, 10, 0, torch.device("cpu")).layers
    parameters = [(key, part, value) for key, layer in layers.items() for part, value in layer.named_parameters() if value.requires_grad]
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, _, value in parameters:
            value.add_(0.3 * torch.randn(value.shape, generator=draw))
    inputs = torch.randn(2, 4, 16, 16, generator=draw), torch.tensor([300, 700]), torch.randn(2, 5, 8, generator=draw)
    backbone.unet.eval().requires_grad_(False)

    def gradients(output):
        return output.detach(), torch.autograd.grad(output.square().mean(), [value for _, _, value in parameters])

    with attach(targets, layers):
        attached, found = gradients(backbone.unet(*inputs))
    paths, changed = {module: path for path, module in backbone.unet.named_modules()}, {}
    for key, layer in layers.items():
        module, path = targets[key].module, paths[targets[key].module]
        changed[f"{path}.weight"] = module.weight + layer.delta(module.weight)
        bias = layer.delta_bias(module.bias)
        changed.update({} if bias is None else {f"{path}.bias": bias + (0 if module.bias is None else module.bias)})
    expected, wanted = gradients(torch.func.functional_call(backbone.unet, changed, inputs))
    torch.testing.assert_close(attached, expected, rtol=1e-3, atol=1e-4)
    for (key, part, _), one, other in zip(parameters, found, wanted, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-7, (key, part)
