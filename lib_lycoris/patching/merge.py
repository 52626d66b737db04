"""Merged weights and biases: the model's own plus strength times each delta, added up in float32 and rounded once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib_lycoris.networks.parts import full_precision

from .buffers import Buffers
from .layout import Layout
from .plan import Effect

BLOCK = 1 << 19
"""Values that are worked on at a time on the CPU, so that they are still in its cache when the product is added."""

GROUP_VALUES = 1 << 26
"""Values that a batched product makes at a time elsewhere, in float32."""


@dataclass(eq=False)
class Job:
    """A weight to be merged.

    Attributes:
        weight: the model's own, with all that a host merged into it.
        base: the same without any network.
        effects: what to add, at least one.
        out: the sum, in the weight's shape, dtype and memory layout; filled by merge_all.
        piece: the memory of the sum, where it can serve again for another one.
    """

    weight: Tensor
    base: Tensor
    effects: Sequence[Effect]
    out: Tensor | None = None
    piece: Tensor | None = None


def merge_all(jobs: Sequence[Job], buffers: Buffers, batched: bool | None = None) -> None:
    """Fills each job's `out`.

    Args:
        jobs: of any devices and dtypes.
        buffers: where memory on the CPU comes from.
        batched: whether weights of one shape are merged in one batched product; None: on all devices but the CPU, where one after the other is faster.
    """
    groups: dict[tuple, list[tuple[Job, Tensor, Tensor]]] = {}
    with torch.inference_mode(False), torch.no_grad(), _exact_products([job.weight for job in jobs]):
        single = []
        for job in jobs:
            factors = _one_product(job) if (job.weight.device.type != "cpu" if batched is None else batched) else None
            if factors is None:
                single.append(job)
            else:
                weight = job.weight
                groups.setdefault((weight.shape[0], weight.numel(), factors[0].shape[1], weight.dtype, weight.device), []).append((job, *factors))
        buffers.reserve((job.weight.numel(), job.weight.dtype, job.weight.device) for job in single)
        for job in single:
            _merge_one(job, buffers)
        for group in groups.values():
            _merge_group(group)


def merge_in_graph(weight: Tensor, effects: Sequence[Effect]) -> Tensor:
    """weight + Σ strength · ΔW as a new tensor, through which gradients reach the layers' own parameters."""
    with full_precision(weight):
        total = weight.detach().to(_exact(weight.dtype), copy=True)
        for effect in effects:
            effect.part(total).add_(effect.layer.delta(effect.part(weight.detach())).to(total), alpha=effect.amount)
        return total.to(weight.dtype)


def merge_bias(bias: Tensor | None, base: Tensor | None, weight: Tensor, effects: Sequence[Effect]) -> Tensor | None:
    """The same for a bias [O] of the layer with this weight [O,…]; zeros stand for a bias that is not there. None when no layer changes it.

    Args:
        bias: the model's own.
        base: the same without any network.
        weight: tells size and dtype where there is no bias.
        effects: what to add.
    """
    deltas = [effect.layer.delta_bias(None if base is None else effect.part(base.detach()).to(weight.device)) for effect in effects]
    if all(delta is None for delta in deltas):
        return None
    like = weight.detach() if bias is None else bias.detach()
    exact = _exact(like.dtype)
    total = torch.zeros(weight.shape[0], dtype=exact, device=like.device) if bias is None else like.to(exact, copy=True)
    for effect, delta in zip(effects, deltas, strict=True):
        if delta is not None:
            part = effect.part(total)
            part.add_(delta.to(part), alpha=effect.amount)
    return total.to(like.dtype)


def _merge_one(job: Job, buffers: Buffers) -> None:
    weight, layout = job.weight, Layout.of(job.weight)
    exact = _exact(weight.dtype)
    products, others = _sorted_out(job.effects, layout)
    if layout.dense:
        job.piece = buffers.take(weight.numel(), weight.dtype, weight.device)
        job.out = layout.weight(job.piece)
    else:
        job.out = torch.empty_like(weight)
    if weight.dtype != exact and products and not others:
        _round_blocks(layout.matrix(weight), *_factors(products, layout, exact, weight.device), layout.matrix(job.out))
        return
    total = job.out if weight.dtype == exact else weight.to(exact)
    if products and weight.dtype == exact:
        _add_blocks(layout.matrix(weight), *_factors(products, layout, exact, weight.device), layout.matrix(total))
    elif products:
        up, down, alpha = _factors(products, layout, exact, weight.device)
        layout.matrix(total).addmm_(up, down, alpha=alpha)
    elif total is job.out:
        total.copy_(weight)
    for effect in others:
        _add(effect, effect.part(total), effect.part(job.base))
    if total is not job.out:
        job.out.copy_(total)


def _merge_group(group: Sequence[tuple[Job, Tensor, Tensor]]) -> None:
    """Weights of one shape: stacked, one batched product, and views of the stack; a handful of launches for any number of them."""
    weight = group[0][0].weight
    step = max(1, GROUP_VALUES // weight.numel())
    for start in range(0, len(group), step):
        some = group[start:start + step]
        ups, downs = (torch.stack([item[number] for item in some]).to(weight.device) for number in (1, 2))
        stack = torch.stack([Layout.of(job.weight).matrix(job.weight) for job, _, _ in some])
        if stack.dtype == ups.dtype:
            stack.baddbmm_(ups, downs)
        else:
            stack.copy_(torch.bmm(ups, downs).add_(stack))
        for (job, _, _), values in zip(some, stack, strict=True):
            job.out = Layout.of(job.weight).weight(values)


def _one_product(job: Job) -> tuple[Tensor, Tensor] | None:
    """Two factors whose product is all that the job adds, in the order of its memory and still on the layers' device; None where there are none."""
    layout = Layout.of(job.weight)
    products, others = _sorted_out(job.effects, layout)
    if others or not products:
        return None
    up, down, alpha = _factors(products, layout, _exact(job.weight.dtype), products[0][1][0].device)
    return up * alpha, down


def _sorted_out(effects: Sequence[Effect], layout: Layout) -> tuple[list[tuple[Effect, tuple[Tensor, Tensor]]], list[Effect]]:
    """The effects on the whole weight that are products, with their factors, and the others."""
    products, others = [], []
    for effect in effects:
        whole = layout.dense and effect.target.rows is None and effect.columns is None
        factors = effect.layer.factors() if whole else None
        if factors is None:
            others.append(effect)
        else:
            products.append((effect, factors))
    return products, others


def _factors(
    products: Sequence[tuple[Effect, tuple[Tensor, Tensor]]], layout: Layout, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, float]:
    """Factors [O,ΣR] and [ΣR,I·K·K] and a number whose product is the sum of all: several low ranks are one that is less low."""
    if len(products) == 1:
        (effect, (up, down)), = products
        return up.to(device, dtype), layout.order(down.to(device, dtype)), effect.amount
    up = torch.cat([up.to(device, dtype) * effect.amount for effect, (up, _) in products], dim=1)
    return up, layout.order(torch.cat([down.to(device, dtype) for _, (_, down) in products])), 1.0


def _add_blocks(weight: Tensor, up: Tensor, down: Tensor, alpha: float, out: Tensor) -> None:
    if weight.numel() <= BLOCK:
        torch.addmm(weight, up, down, alpha=alpha, out=out)
        return
    for rows in _blocks(weight):
        torch.addmm(weight[rows], up[rows], down, alpha=alpha, out=out[rows])


def _round_blocks(weight: Tensor, up: Tensor, down: Tensor, alpha: float, out: Tensor) -> None:
    for rows in _blocks(weight):
        out[rows].copy_(weight[rows].to(up.dtype).addmm_(up[rows], down, alpha=alpha))


def _blocks(matrix: Tensor) -> Iterator[slice]:
    rows, columns = matrix.shape
    step = max(1, BLOCK // max(1, columns)) if matrix.device.type == "cpu" else rows
    return (slice(start, start + step) for start in range(0, rows, step))


def _add(effect: Effect, total: Tensor, base: Tensor) -> None:
    """Adds strength · ΔW to `total` in place, for a base weight that may lie elsewhere."""
    base = base if base.device == total.device else base.to(total.device)
    if total.is_contiguous() and hasattr(effect.layer, "add_to"):
        effect.layer.add_to(total, base, effect.amount)
    else:
        total.add_(effect.layer.delta(base).to(total), alpha=effect.amount)


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextlib.contextmanager
def _exact_products(weights: Sequence[Tensor]) -> Iterator[None]:
    """Products of float32 as float32: a host's forward runs under autocast, and a host may allow shortened factors on a GPU."""
    kinds = {weight.device.type: weight for weight in weights}
    with contextlib.ExitStack() as stack:
        for weight in kinds.values():
            stack.enter_context(full_precision(weight))
        matmul = torch.backends.cuda.matmul
        if "cuda" in kinds and matmul.allow_tf32:
            stack.callback(setattr, matmul, "allow_tf32", True)
            matmul.allow_tf32 = False
        yield
