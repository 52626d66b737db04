"""What a file may hold for a weight of a shape, in every form of every kind: (shape, rank) → tensors by parameter name."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Shape = tuple[int, ...]
Tensors = dict[str, Tensor]


def lora(shape: Shape, rank: int) -> Tensors:
    ones = (1,) * (len(shape) - 2)
    return {"lora_up.weight": torch.randn(shape[0], rank, *ones), "lora_down.weight": torch.randn(rank, *shape[1:]), "alpha": torch.tensor(rank / 2)}


def lora_tucker(shape: Shape, rank: int) -> Tensors:
    kernel = shape[2:] or (1, 1)
    sides = {"lora_up.weight": torch.randn(shape[0], rank, 1, 1), "lora_down.weight": torch.randn(rank, shape[1], 1, 1)}
    return {**sides, "lora_mid.weight": torch.randn(rank, rank, *kernel), "alpha": torch.tensor(1.5)}


def lora_with_bias(shape: Shape, rank: int) -> Tensors:
    return {**lora(shape, rank), "lora_up.bias": torch.randn(shape[0])}


def lora_with_sparse_values(shape: Shape, rank: int) -> Tensors:
    size = (shape[0], math.prod(shape[1:]))
    places = torch.randperm(math.prod(size))[: math.prod(size) // 2 + 1]
    indices = torch.stack([places // size[1], places % size[1]]).to(torch.int16)
    return {**lora(shape, rank), "bias_indices": indices, "bias_values": torch.randn(len(places)), "bias_size": torch.tensor(size, dtype=torch.int16)}


def loha(shape: Shape, rank: int) -> Tensors:
    columns = math.prod(shape[1:])
    sides = {f"hada_w{half}_{side}": torch.randn(size) for half in (1, 2) for side, size in (("a", (shape[0], rank)), ("b", (rank, columns)))}
    return {**sides, "alpha": torch.tensor(rank / 2)}


def loha_tall(shape: Shape, rank: int) -> Tensors:
    ones = (1,) * (len(shape) - 2)
    sides = {f"hada_w{half}_{side}": torch.randn(size) for half in (1, 2) for side, size in (("a", (shape[0], rank, *ones)), ("b", (rank, *shape[1:])))}
    return {**sides, "alpha": torch.tensor([1.5])}


def loha_tucker(shape: Shape, rank: int) -> Tensors:
    sides = {f"hada_w{half}_{side}": torch.randn(rank, shape[place]) for half in (1, 2) for place, side in enumerate("ab")}
    return {**sides, **{f"hada_t{half}": torch.randn(rank, rank, *(shape[2:] or (1, 1))) for half in (1, 2)}, "alpha": torch.tensor(1)}


def lokr(shape: Shape, rank: int) -> Tensors:
    (a, b), (c, d) = _pair(shape[0]), _pair(shape[1])
    second = {"lokr_w2_a": torch.randn(b, rank), "lokr_w2_b": torch.randn(rank, d * math.prod(shape[2:]))}
    return {"lokr_w1": torch.randn(a, c), **second, "alpha": torch.tensor(1.5)}


def lokr_both_in_parts(shape: Shape, rank: int) -> Tensors:
    (a, b), (c, d) = _pair(shape[0]), _pair(shape[1])
    first = {"lokr_w1_a": torch.randn(a, rank), "lokr_w1_b": torch.randn(rank, c)}
    return {**first, "lokr_w2_a": torch.randn(b, rank), "lokr_w2_b": torch.randn(rank, d, *shape[2:]), "alpha": torch.tensor(1.5)}


def lokr_whole(shape: Shape, rank: int) -> Tensors:
    (a, b), (c, d) = _pair(shape[0]), _pair(shape[1])
    return {"lokr_w1": torch.randn(a, c), "lokr_w2": torch.randn(b, d, *shape[2:]), "alpha": torch.tensor(float(rank))}


def lokr_whole_flat(shape: Shape, rank: int) -> Tensors:
    (a, b), (c, d) = _pair(shape[0]), _pair(shape[1])
    return {"lokr_w1": torch.randn(b, d), "lokr_w2": torch.randn(a, c * math.prod(shape[2:])), "scale": torch.tensor(0.5)}


def lokr_tucker(shape: Shape, rank: int) -> Tensors:
    (a, b), (c, d) = _pair(shape[0]), _pair(shape[1])
    core = torch.randn(rank, rank, *(shape[2:] or (1, 1)))
    return {"lokr_w1": torch.randn(a, c), "lokr_w2_a": torch.randn(rank, b), "lokr_w2_b": torch.randn(rank, d), "lokr_t2": core, "alpha": torch.tensor(1.5)}


def full(shape: Shape, rank: int) -> Tensors:
    return {"diff": torch.randn(shape)}


def full_with_bias(shape: Shape, rank: int) -> Tensors:
    return {"diff": torch.randn(shape), "diff_b": torch.randn(shape[0])}


def full_bias_alone(shape: Shape, rank: int) -> Tensors:
    return {"diff_b": torch.randn(shape[0])}


def full_replacing(shape: Shape, rank: int) -> Tensors:
    return {"set_weight": torch.randn(shape)}


def norm(shape: Shape, rank: int) -> Tensors:
    return {"w_norm": torch.randn(shape), "b_norm": torch.randn(shape)}


def norm_weight_alone(shape: Shape, rank: int) -> Tensors:
    return {"w_norm": torch.randn(shape)}


def norm_bias_alone(shape: Shape, rank: int) -> Tensors:
    return {"b_norm": torch.randn(shape)}


def _pair(dimension: int) -> tuple[int, int]:
    """Two factors of it, the smaller one first."""
    small = next(divisor for divisor in range(math.isqrt(dimension), 0, -1) if dimension % divisor == 0)
    return small, dimension // small
