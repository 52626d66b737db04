"""What is kept of a layer's input for the backward pass: where its own producer keeps what it was made of, nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_HOOKS = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # from torch 2.3 on


class Recipe:
    """Makes an input anew during the backward pass; once for all layers that have the same input."""

    def __init__(self, make: Callable[[], Tensor], node: torch.autograd.graph.Node, dtype: torch.dtype):
        self.node = node
        self._make, self._dtype = make, dtype
        self._made: Tensor | None = None
        self._users = self._left = 0

    def join(self) -> Recipe:
        """This recipe, which one more is going to ask."""
        self._users += 1
        return self

    def __call__(self) -> Tensor:
        """The input; kept until as many have asked as joined."""
        if self._made is None:
            # under autocast a normalisation computes in float32 what it gives in half precision
            self._made, self._left = self._make().to(self._dtype), self._users
        made = self._made
        self._left -= 1
        if self._left == 0:
            self._made = None
        return made


def recipe(x: Tensor) -> Recipe | None:
    """How to make `x` anew during the backward pass out of what the graph before it keeps; None where `x` itself must be kept.

    A frozen linear layer keeps no input. The normalisations and gates before one keep theirs, but not their output, so that a LoRA beside the layer would
    make that the largest part of what training needs beyond the frozen model. Only for such nodes as give it in a pass or two over memory, and not while
    others, such as checkpointing, look after what is kept.
    """
    node = x.grad_fn
    if node is None or _HOOKS is None:
        return None
    rule = _RECIPES.get(node.name())
    if rule is None or _HOOKS(True) is not None:
        return None
    known = getattr(x, "_recipe", None)
    if known is None or known.node is not node:  # changed in place, it is made of something else
        make = rule(node)
        if make is None:
            return None
        known = x._recipe = Recipe(make, node, x.dtype)
    return known.join()


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
