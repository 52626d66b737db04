"""The forms of the kinds whose change depends on the weight, of AdaLoRA and of DoRA around others: (shape, rank) → tensors by parameter name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import examples

Shape = tuple[int, ...]
Tensors = dict[str, Tensor]


class NoSuchForm(Exception):
    """The kind can't have a layer for a weight of this shape."""


def adalora(shape: Shape, rank: int) -> Tensors:
    factors = {"lora_A": torch.randn(rank, math.prod(shape[1:])), "lora_B": torch.randn(shape[0], rank), "lora_E": torch.randn(rank, 1)}
    return {**factors, "alpha": torch.tensor(3.0)}


def adalora_pruned(shape: Shape, rank: int) -> Tensors:
    return {**adalora(shape, rank), "ranknum": torch.tensor([rank + 5.0])}


def ia3_on_outputs(shape: Shape, rank: int) -> Tensors:
    size = shape[:1] if len(shape) == 2 else (1, shape[0], *(1 for _ in shape[2:]))
    return {"weight": torch.randn(size), "on_input": torch.tensor(0)}


def ia3_on_inputs(shape: Shape, rank: int) -> Tensors:
    size = shape[1:] if len(shape) == 2 else (1, shape[1], *(1 for _ in shape[2:]))
    return {"weight": torch.randn(size), "on_input": torch.tensor(1)}


def ia3_peft(shape: Shape, rank: int) -> Tensors:
    return {"ia3_l": torch.randn((shape[0], 1) if len(shape) == 2 else (1, shape[0], *(1 for _ in shape[2:])))}


def ia3_peft_feedforward(shape: Shape, rank: int) -> Tensors:
    return {"ia3_l": torch.randn(1, shape[1], *(1 for _ in shape[2:]))}


def glora(shape: Shape, rank: int) -> Tensors:
    ones = (1,) * (len(shape) - 2)
    a = {"a1.weight": torch.randn(shape[1], rank, *ones), "a2.weight": torch.randn(rank, shape[1], *ones)}
    return {**a, "b1.weight": torch.randn(shape[0], rank, *ones), "b2.weight": torch.randn(rank, *shape[1:]), "alpha": torch.tensor(rank / 2)}


def glora_tucker(shape: Shape, rank: int) -> Tensors:
    core = {"b2.weight": torch.randn(rank, shape[1], 1, 1), "bm.weight": torch.randn(rank, rank, *(shape[2:] or (1, 1)))}
    return {**glora(shape, rank), **core}


def glora_old(shape: Shape, rank: int) -> Tensors:
    swapped = str.maketrans("12", "21")
    return {name.translate(swapped): tensor for name, tensor in glora(shape, rank).items()}


def oft(shape: Shape, rank: int) -> Tensors:
    size = _divisor(shape[0], rank + 1)
    return {"oft_blocks": torch.randn(shape[0] // size, size, size), "alpha": torch.tensor(0)}


def oft_constrained(shape: Shape, rank: int) -> Tensors:
    return {**oft(shape, rank), "alpha": torch.tensor(0.01)}


def oft_rescaled(shape: Shape, rank: int) -> Tensors:
    return {**oft(shape, rank), "rescale": torch.randn(shape[0], *(1 for _ in shape[1:]))}


def oft_rotation(shape: Shape, rank: int) -> Tensors:
    blocks = oft(shape, rank)["oft_blocks"]
    return {"oft_diag": torch.linalg.qr(blocks).Q.contiguous()}


def oft_v2(shape: Shape, rank: int) -> Tensors:
    columns = math.prod(shape[1:])
    size = _divisor(columns, rank + 2)
    return {"oft_R.weight": 0.2 * torch.randn(columns // size, size * (size - 1) // 2)}


def oft_v2_shared(shape: Shape, rank: int) -> Tensors:
    columns = math.prod(shape[1:])
    size = columns if columns % 2 else 2
    if size == 1:
        raise NoSuchForm
    return {"oft_R.weight": 0.2 * torch.randn(1, size * (size - 1) // 2)}


def oft_v2_scaled(shape: Shape, rank: int) -> Tensors:
    return {**oft_v2(shape, rank), "oft_R.scaled_oft": torch.tensor(True)}


def boft(shape: Shape, rank: int) -> Tensors:
    if shape[0] % 2:
        raise NoSuchForm
    count = next(power for power in (4, 2, 1) if shape[0] % (2 * power) == 0)
    return {"oft_blocks": 0.3 * torch.randn(count.bit_length(), count, shape[0] // count, shape[0] // count), "alpha": torch.tensor(0)}


def boft_constrained_and_rescaled(shape: Shape, rank: int) -> Tensors:
    return {**boft(shape, rank), "alpha": torch.tensor(0.02), "rescale": torch.randn(shape[0], *(1 for _ in shape[1:]))}


def boft_peft(shape: Shape, rank: int) -> Tensors:
    columns = math.prod(shape[1:])
    count = next(power for power in (4, 2, 1) if columns % (2 * power) == 0 or power == 1)
    return {"boft_R": torch.randn(count.bit_length(), count, columns // count, columns // count), "boft_s": torch.randn(shape[0], 1)}


def dora_on_outputs(shape: Shape, rank: int) -> Tensors:
    return {**examples.lora(shape, rank), "dora_scale": torch.rand(shape[0], *(1 for _ in shape[1:]))}


def dora_on_inputs(shape: Shape, rank: int) -> Tensors:
    return {**examples.loha(shape, rank), "dora_scale": torch.rand(1, shape[1], *(1 for _ in shape[2:]))}


def dora_peft(shape: Shape, rank: int) -> Tensors:
    lengths = torch.rand(shape[0]) if len(shape) == 2 else torch.rand(1, shape[0], *(1 for _ in shape[2:]))
    return {**examples.lokr(shape, rank), "lora_magnitude_vector": lengths}


def dora_with_bias(shape: Shape, rank: int) -> Tensors:
    return {**examples.lora_with_bias(shape, rank), "dora_scale": torch.rand(shape[0], *(1 for _ in shape[1:]))}


def _divisor(dimension: int, most: int) -> int:
    """The largest of its divisors up to `most` and above 1, or itself."""
    if dimension == 1:
        raise NoSuchForm
    return next((divisor for divisor in range(most, 1, -1) if dimension % divisor == 0), dimension)
