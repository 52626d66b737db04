"""What is kept of a layer's input for the backward pass: where its own producer keeps what it was made of, nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # from torch 2.3 on


def recipe(x: Tensor) -> Callable[[], Tensor] | None:
    """How to make `x` anew during the backward pass out of what the graph before it keeps; None where `x` itself must be kept.

    A frozen linear layer keeps no input. The normalisations and gates before one keep theirs, but not their output, so that a LoRA beside the layer would
    make that the largest part of what training needs beyond the frozen model. Only for such nodes as give it in a pass or two over memory, and not while
    others, such as checkpointing, look after what is kept.
    """
    made_by = x.grad_fn
    if made_by is None or _HOOKS is None or _HOOKS(True) is not None:
        return None
    made, dtype = _RECIPES.get(made_by.name(), _none)(made_by), x.dtype
    # under autocast a normalisation computes in float32 what it gives in half precision
    return None if made is None else lambda: made().to(dtype)


def _none(node: torch.autograd.graph.Node) -> None:
    return None


def _of_product(node: torch.autograd.graph.Node) -> Callable[[], Tensor] | None:
    if node._saved_self is None or node._saved_other is None:
        return None
    return lambda: (node._saved_self * node._saved_other).detach()


def _of_layer_norm(node: torch.autograd.graph.Node) -> Callable[[], Tensor] | None:
    def make() -> Tensor:
        with torch.no_grad():
            centred = (node._saved_input - node._saved_result1).mul_(node._saved_result2)
            weight, bias = node._saved_weight, node._saved_bias
            if weight is None:
                return centred
            return centred.mul_(weight) if bias is None else torch.addcmul(bias, centred, weight)

    return make


_RECIPES = {"MulBackward0": _of_product, "NativeLayerNormBackward0": _of_layer_norm}
