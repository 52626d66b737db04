"""Laws of every kind of network layer. A new kind adds its rows to EXAMPLES; a kind that can be trained, one to FRESH."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lib_lycoris.files.safetensors import read_tensors, write_tensors
from lib_lycoris.networks.kinds import KINDS, build_layer
from lib_lycoris.networks.low_rank import LowRankLayer

Tensors = dict[str, Tensor]


def lora(shape: tuple[int, ...], rank: int) -> Tensors:
    ones = (1,) * (len(shape) - 2)
    return {"lora_up.weight": torch.randn(shape[0], rank, *ones), "lora_down.weight": torch.randn(rank, *shape[1:]), "alpha": torch.tensor(rank / 2)}


def tucker(shape: tuple[int, ...], rank: int) -> Tensors:
    kernel = shape[2:] or (1, 1)
    sides = {"lora_up.weight": torch.randn(shape[0], rank, 1, 1), "lora_down.weight": torch.randn(rank, shape[1], 1, 1)}
    return {**sides, "lora_mid.weight": torch.randn(rank, rank, *kernel), "alpha": torch.tensor(1.5)}


def with_bias(shape: tuple[int, ...], rank: int) -> Tensors:
    return {**lora(shape, rank), "lora_up.bias": torch.randn(shape[0])}


# What a file may hold for a weight of a shape: {name of the form: maker}
EXAMPLES: dict[str, Callable[[tuple[int, ...], int], Tensors]] = {"lora": lora, "lora, Tucker": tucker, "lora, with bias": with_bias}
FRESH: dict[str, Callable[..., nn.Module]] = {"lora": LowRankLayer.create}
MODULES = {
    "linear": lambda: nn.Linear(6, 5),
    "conv 1×1": lambda: nn.Conv2d(6, 5, 1),
    "conv 3×3": lambda: nn.Conv2d(6, 5, 3, padding=1),
    "conv 3×3, strided": lambda: nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
    "conv 3×3, dilated": lambda: nn.Conv2d(6, 5, 3, padding="same", dilation=2),
    "conv in groups": lambda: nn.Conv2d(6, 4, 3, groups=2),
    "conv 1-D": lambda: nn.Conv1d(6, 5, 3),
}

every_form = pytest.mark.parametrize("make", EXAMPLES.values(), ids=EXAMPLES)
every_module = pytest.mark.parametrize("module", [make() for make in MODULES.values()], ids=MODULES)


def inputs(module: nn.Module) -> Tensor:
    places = getattr(module, "kernel_size", ())
    return torch.randn(2, 6, *(7 + index for index in range(len(places)))) if places else torch.randn(2, 3, 6)


def slow_output(module: nn.Module, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """The module's output with another weight and bias: the second implementation."""
    return F.linear(x, weight, bias) if isinstance(module, nn.Linear) else module._conv_forward(x, weight, bias)


def test_every_kind_that_can_be_built_has_an_example():
    assert {build_layer("x", make((5, 6), 2)).algorithm for make in EXAMPLES.values()} >= {"lora"}
    assert sum(kind.build is not None for kind in KINDS) == len({build_layer("x", make((5, 6), 2)).algorithm for make in EXAMPLES.values()})


@every_module
@pytest.mark.parametrize("create", FRESH.values(), ids=FRESH)
def test_a_fresh_layer_adds_exactly_zero(create, module):
    layer = create(module, 3, 1.5)
    assert torch.count_nonzero(layer.delta(module.weight)) == 0
    assert torch.count_nonzero(layer.delta_output(inputs(module), module)) == 0


@every_form
@every_module
def test_the_output_beside_is_what_the_delta_in_the_weight_adds(make, module):
    layer, x = build_layer("x", make(tuple(module.weight.shape), 3)), inputs(module)
    assert layer.fits(module.weight.shape)
    bias = module.bias if module.bias is not None else torch.zeros(module.weight.shape[0])
    own = layer.delta_bias(module.bias)
    with torch.no_grad():
        changed = slow_output(module, module.weight + layer.delta(module.weight), bias if own is None else bias + own, x)
        torch.testing.assert_close(module(x) + layer.delta_output(x, module), changed, atol=1e-4, rtol=1e-4)


@every_form
@settings(max_examples=15, deadline=None)
@given(out=st.integers(1, 6), into=st.integers(1, 6), kernel=st.sampled_from([(), (1, 1), (3, 3), (3, 1)]), rank=st.integers(1, 7))
def test_a_delta_is_float32_in_the_weights_shape_and_leaves_the_weight_alone(make, out, into, kernel, rank):
    shape = (out, into, *kernel)
    weight = torch.randn(shape).half()
    before = weight.clone()
    delta = build_layer("x", make(shape, rank)).delta(weight)
    assert delta.shape == weight.shape and delta.dtype == torch.float32
    assert torch.equal(weight, before)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_written_reads_back_equal(make, dtype, tmp_path):
    layer = build_layer("x", {name: tensor.to(dtype) for name, tensor in make((5, 6, 3, 3), 2).items()})
    path = tmp_path / "a.safetensors"
    write_tensors(path, layer.tensors(), {})
    again = build_layer("x", read_tensors(path))
    weight = torch.randn(5, 6, 3, 3)
    assert torch.equal(again.delta(weight), layer.delta(weight))
    assert again.tensors().keys() == layer.tensors().keys()
