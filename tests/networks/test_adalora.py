from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.networks.adalora import AdaLoRALayer
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.kinds import build_layer

from .oracles import relative
from .peers import peft_layer


def factors(rank: int = 3, out: int = 4, into: int = 6) -> dict[str, Tensor]:
    return {"lora_A": torch.randn(rank, into), "lora_B": torch.randn(out, rank), "lora_E": torch.randn(rank, 1)}


def slow_delta(tensors: dict[str, Tensor], alpha: float, init_rank: float) -> Tensor:
    """A sum over the ranks in float64."""
    q, p, values = (tensors[name].double() for name in ("lora_A", "lora_B", "lora_E"))
    total = torch.zeros(p.shape[0], q.shape[1], dtype=torch.float64)
    for rank in range(q.shape[0]):
        total += values[rank] * torch.outer(p[:, rank], q[rank])
    return total * alpha / (init_rank + 1e-5)


@pytest.mark.parametrize("new", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(6, 4, 3)], ids=["linear", "conv"])
@pytest.mark.parametrize("alpha", [5, 0])
def test_peft_makes_the_same_of_its_own_tensors(new, alpha):
    module = new()
    weight = module.weight.detach().clone()
    tensors, delta, _ = peft_layer("AdaLoraConfig", module, init_r=3, target_r=2, total_step=10, lora_alpha=alpha)
    assert set(tensors) == {"lora_A", "lora_B", "lora_E"}
    assert relative(build_layer("x", tensors, Hints(alpha=alpha, init_rank=3)).delta(weight), delta) < 1e-5


def test_what_pruning_left_is_still_divided_by_the_rank_at_the_beginning():
    tensors, weight = factors(2), torch.zeros(4, 6)
    assert relative(build_layer("x", tensors, Hints(alpha=5.0, init_rank=12)).delta(weight), slow_delta(tensors, 5, 12)) < 1e-5
    # raw loralib has that rank beside the factors, and it outranks a config's
    raw = {**tensors, "ranknum": torch.tensor([7.0])}
    assert relative(build_layer("x", raw, Hints(alpha=5.0, init_rank=12)).delta(weight), slow_delta(tensors, 5, 7)) < 1e-5


def test_without_a_config_alpha_is_pefts_own_and_nothing_was_pruned():
    tensors = factors(3)
    assert relative(build_layer("x", tensors).delta(torch.zeros(4, 6)), slow_delta(tensors, 8, 3)) < 1e-5


def test_a_file_of_ours_says_all_of_it_and_peft_reads_the_rest():
    peft = pytest.importorskip("peft")
    ours = AdaLoRALayer.create((4, 6), 3, 5.0)
    nn.init.normal_(ours.lora_E)
    named = ours.tensors()
    assert set(named) == {"lora_A", "lora_B", "lora_E", "ranknum", "alpha"}
    model = nn.ModuleDict({"layer": nn.Linear(6, 4)})
    model.config = SimpleNamespace(model_type="none")
    model = peft.get_peft_model(model, peft.AdaLoraConfig(target_modules=["layer"], init_r=3, target_r=2, total_step=10, lora_alpha=5))
    peft.set_peft_model_state_dict(model, {f"base_model.model.layer.{name}": tensor for name, tensor in named.items()})
    with torch.no_grad():
        theirs = model.base_model.model["layer"].get_delta_weight("default")
    assert relative(build_layer("x", named).delta(torch.zeros(4, 6)), theirs) < 1e-5


def test_a_layer_of_no_ranks_adds_nothing():
    for module, x in ((nn.Linear(6, 4), torch.randn(2, 6)), (nn.Conv2d(6, 4, 3), torch.randn(2, 6, 5, 5))):
        columns = module.weight[0].numel()
        layer = build_layer("x", {"lora_A": torch.empty(0, columns), "lora_B": torch.empty(4, 0), "lora_E": torch.empty(0, 1)}, Hints(init_rank=12))
        assert layer.fits(module.weight.shape) and not layer.delta(module.weight).any()
        assert layer.delta_output(x, module).shape == module(x).shape and not layer.delta_output(x, module).any()
        total = torch.ones(module.weight.shape)
        layer.add_to(total, module.weight, 2.0)
        assert torch.equal(total, torch.ones(module.weight.shape))


def test_fewer_ranks_are_those_that_count_most():
    tensors = {"lora_A": torch.eye(3, 6), "lora_B": torch.eye(4, 3), "lora_E": torch.tensor([[1.0], [-3.0], [2.0]]), "alpha": torch.tensor(3.0)}
    cut = build_layer("x", tensors).truncated(2)
    kept = {"lora_A": tensors["lora_A"][1:], "lora_B": tensors["lora_B"][:, 1:], "lora_E": tensors["lora_E"][1:]}
    assert relative(cut.delta(torch.zeros(4, 6)), slow_delta(kept, 3, 3)) < 1e-5


def test_a_fresh_layer_starts_as_loralibs_does_and_no_larger_than_the_weight():
    layer = AdaLoRALayer.create((400, 300), 100, generator=torch.Generator().manual_seed(1))
    assert not layer.lora_E.any() and layer.lora_A.std().item() == pytest.approx(0.02, rel=0.05) and layer.lora_B.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.scale == pytest.approx(1)
    small = AdaLoRALayer.create(nn.Conv2d(320, 4, 3), 12, 12.0)
    assert small.rank == 4 and small.lora_A.shape == (4, 320 * 9)


@pytest.mark.parametrize("arguments", [((4, 4), 0), ((4, 4), 2.5), ((4, 4), True), ((4, 4), 2, float("inf")), ((4,), 2)])
def test_arguments_that_make_no_layer_are_refused(arguments):
    with pytest.raises(ConfigError):
        AdaLoRALayer.create(*arguments)


def test_small_singular_values_survive_half_precision():
    tensors = {"lora_A": 0.02 * torch.randn(4, 64), "lora_B": 0.02 * torch.randn(48, 4), "lora_E": torch.full((4, 1), 1e-3), "alpha": torch.tensor(4.0)}
    layer, module, x = build_layer("x", tensors), nn.Linear(64, 48).half(), torch.randn(3, 64).half()
    exact = x.double() @ layer.delta(module.weight).double().T
    assert relative(layer.delta_output(x, module), exact) < 0.01


@pytest.mark.parametrize(
    "change",
    [
        {"lora_A": None},
        {"lora_B": None},
        {"lora_E": None},
        {"lora_E": torch.ones(3)},
        {"lora_E": torch.ones(2, 1)},
        {"lora_B": torch.ones(4, 2)},
        {"lora_A": torch.ones(3, 6, 1)},
        {"lora_A": torch.ones(3, 0)},
        {"lora_A": torch.ones(3, 6).int()},
        {"ranknum": torch.tensor([2.0])},
        {"ranknum": torch.tensor([-4.0])},
        {"ranknum": torch.tensor([3.0, 3.0])},
        {"ranknum": torch.tensor([float("nan")])},
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(change):
    tensors = {name: tensor for name, tensor in {**factors(), **change}.items() if tensor is not None}
    if "lora_E" not in tensors:
        tensors["ranknum"] = torch.tensor([3.0])
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", tensors)
