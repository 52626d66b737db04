"""Low-rank layers as a file holds them: factors in the shapes that the module's own weight demands, alpha beside them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib_lycoris.networks.dora import DecomposedLayer
from lib_lycoris.networks.layer import Layer
from lib_lycoris.tools.facts import fitted
from lib_lycoris.tools.names import Key, is_convolution, kernel_side
from lib_lycoris.tools.products import Product, exact_product


def module_shaped(key: Key, up: Tensor, down: Tensor, base_model: str | None, like: Tensor | None = None) -> Product:
    """up [O,R] and down [R,N], as [O,R,1,1] and [R,I,K,K] where the module is a convolution: its name tells, or `like`, the file's own tensor."""
    if like is not None and like.ndim == 4 and like.shape[0] * like[0].numel() == down.numel() and like[0, 0].numel() > 1:
        return up.reshape(*up.shape, 1, 1), down.reshape(like.shape)
    convolution, side = is_convolution(key, base_model), kernel_side(key)
    if convolution is None:
        convolution = like is not None and like.ndim == 4
    if not convolution or down.shape[1] % (side * side):
        return up, down
    return up.reshape(*up.shape, 1, 1), down.reshape(down.shape[0], -1, side, side)


def low_rank_parts(key: Key, product: Product, base_model: str | None, dtype: torch.dtype, exact: bool, like: Tensor | None = None,
                   bias: Tensor | None = None) -> dict[str, Tensor]:
    """The layer's tensors under kohya's names, scale 1 (alpha = R).

    Args:
        key: the module.
        product: up [O,R] and down [R,N] float32.
        base_model: as find_base_model gives it.
        dtype: what to store in; a factor that this would round stays float32 where `exact`.
        exact: see `dtype`.
        like: the file's own tensor, for its number of dimensions.
        bias: what is added to the module's bias, float32 [O].
    """
    up, down = module_shaped(key, *product, base_model, like)
    parts = {"lora_up.weight": fitted(up, dtype, exact), "lora_down.weight": fitted(down, dtype, exact), "alpha": torch.tensor(float(down.shape[0]))}
    if bias is not None:
        parts["lora_up.bias"] = fitted(bias, dtype, exact)
    return parts


@dataclass(frozen=True)
class Factors:
    """A low-rank layer taken apart: up [O,R,…], down [R,I,…], scale, what is added to the bias [O], and DoRA's length of each row [O]."""

    up: Tensor
    down: Tensor
    scale: float
    bias: Tensor | None = None
    magnitude: Tensor | None = None


def own_factors(layer: Layer) -> Factors | None:
    """The factors of a low-rank layer, DoRA around it or not; None for other kinds, and for DoRA over columns.

    Plain LoRA gives the tensors as the file has them; a Tucker core or AdaLoRA's diagonal is multiplied in, with scale 1.
    """
    if isinstance(layer, DecomposedLayer):
        inner, parts = own_factors(layer.inner), layer.tensors()
        magnitude = parts.get("lora_magnitude_vector", parts.get("dora_scale"))
        by_column = "dora_scale" in parts and magnitude.ndim > 1 and magnitude.shape[0] == 1
        return None if inner is None or by_column or magnitude.numel() != inner.up.shape[0] else replace(inner, magnitude=magnitude.flatten())
    if getattr(layer, "weight_dependent", False):
        return None
    parts, bias = layer.tensors(), layer.delta_bias(None)
    if layer.algorithm == "lora" and set(parts) - {"lora_up.bias", "alpha", "scale"} == {"lora_up.weight", "lora_down.weight"}:
        return Factors(parts["lora_up.weight"], parts["lora_down.weight"], layer.scale, bias)
    if layer.algorithm not in ("lora", "adalora") or (product := exact_product(layer)) is None:
        return None
    return Factors(*product, 1.0, bias)


def like_tensor(layer: Layer) -> Tensor | None:
    """The tensor of a layer whose number of dimensions tells whether its module is a convolution."""
    parts = layer.tensors()
    return next((parts[name] for name in ("lora_down.weight", "diff", "hada_w1_b", "lokr_w2") if name in parts), None)
