from __future__ import annotations

import pytest
import torch
from torch import nn

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.networks.kinds import build_layer

from .oracles import relative
from .peers import lycoris_layer


def factors(out: int, into: int, rank: int, kernel: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    ones = (1,) * len(kernel)
    sizes = {"a1": (into, rank, *ones), "a2": (rank, into, *ones), "b1": (out, rank, *ones), "b2": (rank, into, *kernel)}
    return {f"{name}.weight": torch.randn(size) for name, size in sizes.items()}


def swapped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.translate(str.maketrans("12", "21")): tensor for name, tensor in tensors.items()}


def slow_delta(weight: torch.Tensor, tensors: dict[str, torch.Tensor], scale: float) -> torch.Tensor:
    """B + W·A place by place in float64, from tensors in today's spelling."""
    a1, a2, b1, b2 = (tensors[f"{name}.weight"].double().flatten(1) for name in ("a1", "a2", "b1", "b2"))
    weight = weight.double()
    delta = (b1 @ b2).reshape(weight.shape)
    for j in range(weight.shape[1]):
        for i in range(weight.shape[1]):
            delta[:, j] += weight[:, i] * (a1[i] * a2[:, j]).sum()
    return delta * scale


@pytest.mark.parametrize("module", [nn.Linear(6, 4), nn.Linear(5, 5), nn.Conv2d(6, 4, 3), nn.Conv2d(4, 4, 1)], ids=str)
@pytest.mark.parametrize("alpha", [1, 0.5, 3])
def test_lycoris_makes_the_same_of_its_own_tensors(module, alpha):
    tensors, theirs = lycoris_layer("glora", module, lora_dim=3, alpha=alpha)
    assert relative(build_layer("x", tensors).delta(module.weight), theirs.get_diff_weight()[0]) < 1e-5


@pytest.mark.parametrize("kernel", [(), (3, 3), (1, 1)])
@pytest.mark.parametrize(("out", "into", "rank"), [(4, 6, 2), (6, 4, 2), (5, 5, 2), (2, 3, 4)])
@pytest.mark.parametrize("old", [False, True])
def test_both_spellings_are_told_apart_and_alpha_counts(out, into, rank, kernel, old):
    tensors, weight = factors(out, into, rank, kernel), torch.randn(out, into, *kernel)
    held = swapped(tensors) if old else tensors
    layer = build_layer("x", {**held, "alpha": torch.tensor(1.5)})
    assert relative(layer.delta(weight), slow_delta(weight, tensors, 1.5 / rank)) < 1e-5


def test_without_alpha_the_scale_is_one():
    tensors, weight = factors(4, 6, 2), torch.randn(4, 6)
    assert relative(build_layer("x", tensors).delta(weight), slow_delta(weight, tensors, 1.0)) < 1e-5


def test_where_both_spellings_fit_the_old_one_holds():
    tensors, weight = factors(3, 3, 3), torch.randn(3, 3)
    assert relative(build_layer("x", tensors).delta(weight), slow_delta(weight, swapped(tensors), 1.0)) < 1e-5


def test_a_core_stands_between_the_factors_of_b():
    tensors, weight = factors(4, 6, 2, (1, 1)), torch.randn(4, 6, 3, 3)
    core = torch.randn(2, 2, 3, 3)
    whole = torch.einsum("mnkl,om,ni->oikl", core.double(), tensors["b1.weight"].flatten(1).double(), tensors["b2.weight"].flatten(1).double())
    plain = {**tensors, "b1.weight": torch.zeros(4, 1), "b2.weight": torch.zeros(1, 54)}
    expected = whole + slow_delta(weight, plain, 1.0)
    assert relative(build_layer("x", {**tensors, "bm.weight": core}).delta(weight), expected) < 1e-5


def test_fewer_ranks_are_the_first_of_both_parts_at_the_full_scale():
    tensors, weight = factors(4, 6, 3), torch.randn(4, 6)
    cut = {name: tensor[:2] if name in ("a2.weight", "b2.weight") else tensor[:, :2] for name, tensor in tensors.items()}
    layer = build_layer("x", {**tensors, "alpha": torch.tensor(1.5)}).truncated(2)
    assert relative(layer.delta(weight), slow_delta(weight, cut, 0.5)) < 1e-5


@pytest.mark.parametrize(
    "change",
    [
        {"a1.weight": torch.ones(5, 2)},
        {"a1.weight": torch.ones(6, 3)},
        {"b1.weight": torch.ones(4, 3)},
        {"b2.weight": torch.ones(3, 6)},
        {"a1.weight": torch.ones(6, 2, 3, 3)},
        {"b1.weight": torch.ones(4, 2, 3, 3)},
        {"bm.weight": torch.ones(3, 3, 3, 3)},
        {"bm.weight": torch.ones(2, 2)},
        {"a2.weight": torch.ones(2)},
        {"a2.weight": torch.ones(2, 6).long()},
    ],
)
def test_shapes_that_do_not_fit_each_other_are_refused(change):
    with pytest.raises(NetworkFileError, match="lora_unet_x"):
        build_layer("lora_unet_x", {**factors(4, 6, 2), **change})


@pytest.mark.parametrize("missing", ["a1", "a2", "b1", "b2"])
def test_a_missing_factor_is_named(missing):
    with pytest.raises(NetworkFileError, match=f"without {missing}.weight"):
        build_layer("x", {name: tensor for name, tensor in factors(4, 6, 2).items() if name != f"{missing}.weight"})
