"""A layer's ΔW as one product of two matrices, exactly, and its norm and singular values; whatever its kind."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.functional.hadamard import khatri_rao_factors
from lib_lycoris.functional.low_rank import fold_core
from lib_lycoris.functional.truncation import matrix_svd, product_energy, product_svd
from lib_lycoris.networks.layer import Layer
from lib_lycoris.networks.loha import LohaLayer

Product = tuple[Tensor, Tensor]
"""up [O,R] and down [R,N] float32 with ΔW = up · down, N = I·K·K, scale inside."""


def exact_product(layer: Layer) -> Product | None:
    """ΔW as a product of two matrices, exact up to rounding though its rank may be large; None for kinds that have none (a full difference, a norm).

    A Tucker core goes into the down side, LoHa becomes the Khatri–Rao products of its factors (rank R²), LoKr the Kronecker products of its own.
    """
    if getattr(layer, "weight_dependent", False):
        return None
    factors = layer.factors()
    if factors is not None:
        return tuple(factor.detach().float().flatten(1) for factor in factors)
    if isinstance(layer, LohaLayer):
        return khatri_rao_factors(*(half.detach() for half in layer.halves()))
    parts = {name: tensor.detach() for name, tensor in layer.tensors().items()}
    if any(name in parts for name in ("bias_indices", "diff", "diff_b", "w_norm", "b_norm")):
        return None
    if "lora_mid.weight" in parts:
        return _tucker(parts, layer.scale)
    if any(name.startswith("lokr_") for name in parts):
        return _kronecker(parts, layer.scale)
    return None


def capped(product: Product) -> Product:
    """The same ΔW with R at most the smaller side of the matrix; a product that is longer is multiplied out and the identity takes the other side."""
    up, down = product
    rows, columns = up.shape[0], down.shape[1]
    if up.shape[1] <= min(rows, columns):
        return product
    delta = (up.double() @ down.double()).float()
    return (torch.eye(rows), delta) if rows <= columns else (delta, torch.eye(columns))


def stand_in(shape: tuple[int, ...]) -> Tensor:
    """A weight for kinds that read only its shape; it takes four bytes."""
    return torch.zeros(1).expand(shape)


def dense_shape(layer: Layer) -> tuple[int, ...] | None:
    """The shape in which the layer's own tensors give ΔW; None where they give none, or none that does without the base weight's."""
    parts = layer.tensors()
    for name in ("diff", "w_norm"):
        if name in parts:
            return tuple(parts[name].shape)
    if "lora_up.weight" in parts and "lora_down.weight" in parts and "lora_mid.weight" not in parts:
        return (parts["lora_up.weight"].shape[0], *parts["lora_down.weight"].shape[1:])
    if not getattr(layer, "weight_dependent", False) and (product := exact_product(layer)) is not None:
        return product[0].shape[0], product[1].shape[1]
    return None


def only_bias(layer: Layer) -> bool:
    """Whether the layer changes its module's bias alone."""
    return set(layer.tensors()) <= {"diff_b", "b_norm", "alpha"}


def dense_delta(layer: Layer, where: str) -> Tensor:
    """ΔW float32 without a base weight, in the shape that the layer's own tensors have.

    Raises:
        NetworkFileError: it is another one for every base weight, or no tensor tells its shape.
    """
    if getattr(layer, "weight_dependent", False):
        raise needs_base(layer, where)
    shape = dense_shape(layer)
    if shape is None:
        raise NetworkFileError(f"layer {shown(where)} ({layer.algorithm}) does not tell the shape of its ΔW; merge the file into a checkpoint instead")
    return layer.delta(stand_in(shape))


def needs_base(layer: Layer, where: str) -> NetworkFileError:
    """The error for a layer whose ΔW depends on the weight that it is added to."""
    advice = "use 'merge OUT FILE:STRENGTH --checkpoint BASE', and 'extract' if you need a LoCon of it"
    return NetworkFileError(f"layer {shown(where)} is {layer_kind(layer)}, whose ΔW is another one for every base weight: {advice}")


def layer_kind(layer: Layer) -> str:
    """The kind as a word for users: the algorithm, "dora" where a magnitude stands beside it, "locon" for larger convolutions, "full", …"""
    parts = layer.tensors()
    if "dora_scale" in parts or any(name.startswith("lora_magnitude_vector") for name in parts):
        return f"{layer.algorithm} with dora" if layer.algorithm not in ("lora", "dora") else "dora"
    if layer.algorithm == "lora" and ("lora_mid.weight" in parts or math.prod(parts["lora_down.weight"].shape[2:]) > 1):
        return "locon"
    return layer.algorithm


def delta_norm(layer: Layer) -> float | None:
    """‖ΔW‖ (Frobenius) at strength 1; None for kinds whose ΔW needs the base weight."""
    if getattr(layer, "weight_dependent", False):
        return None
    product = exact_product(layer)
    if product is not None:
        return math.sqrt(product_energy(*product))
    shape = dense_shape(layer)
    return 0.0 if only_bias(layer) else None if shape is None else layer.delta(stand_in(shape)).double().norm().item()


def singular_values(layer: Layer) -> Tensor | None:
    """The singular values of ΔW [R], largest first; None for kinds whose ΔW needs the base weight, and for norms."""
    if getattr(layer, "weight_dependent", False):
        return None
    product = exact_product(layer)
    if product is not None:
        return product_svd(*product)[1]
    shape = dense_shape(layer)
    if shape is None or len(shape) < 2:
        return None
    return matrix_svd(layer.delta(stand_in(shape)).flatten(1))[1]


def _tucker(parts: Mapping[str, Tensor], scale: float) -> Product:
    """ΔW[o,i,k,l] = Σₙ up[o,n] · (Σₚ mid[n,p,k,l] · down[p,i]): the rank stays what it was."""
    up, mid, down = (parts[f"lora_{part}.weight"].float() for part in ("up", "mid", "down"))
    return up.flatten(1) * scale, fold_core(mid, down.flatten(1))


def _kronecker(parts: Mapping[str, Tensor], scale: float) -> Product:
    """(A·B) ⊗ (C·D) = (A ⊗ C) · (B ⊗ D); a factor that is not decomposed is itself times the identity."""
    (a, b), (c, d) = (_kronecker_half(parts, number) for number in "12")
    return torch.kron(a, c) * scale, torch.kron(b, d)


def _kronecker_half(parts: Mapping[str, Tensor], number: str) -> Product:
    whole = parts.get(f"lokr_w{number}")
    if whole is not None:
        whole = whole.float().flatten(1)
        rows, columns = whole.shape
        return (torch.eye(rows), whole) if rows <= columns else (whole, torch.eye(columns))
    outer, inner, core = parts[f"lokr_w{number}_a"].float(), parts[f"lokr_w{number}_b"].float(), parts.get(f"lokr_t{number}")
    if core is None:
        return outer.flatten(1), inner.flatten(1)
    return outer.flatten(1).T, fold_core(core, inner.flatten(1))
