"""(IA)³: every row or every column of the weight times a number of its own, in LyCORIS' spelling (an offset from 1) and in PEFT's (the number itself)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.networks import parts, rotations
from lib_lycoris.networks.hints import Hints
from lib_lycoris.networks.layer import Layer

MARKS, OTHERS = ("on_input", "ia3_l"), ("weight",)


class IA3Layer(nn.Module, Layer):
    """The factors of one linear layer's or convolution's outputs or inputs, loaded or in training.

    The parameter is `weight` [N] or [1,N,1,1] with ΔW = W·weight, the bias left alone (LyCORIS), or `ia3_l` [N,1], [1,N] or [1,N,1,1] with ΔW = W·(ia3_l − 1)
    and, on outputs, the same for the bias (PEFT). N is the number of outputs or of inputs.
    """

    algorithm = "ia3"
    weight_dependent = True

    def __init__(self, weight: Tensor | None = None, on_input: bool | None = None, ia3_l: Tensor | None = None):
        """A layer of one of the two vectors; `on_input` None: whichever side has as many places, outputs first."""
        super().__init__()
        parts.register(self, weight=weight, ia3_l=ia3_l)
        self.on_input = on_input

    @classmethod
    def create(cls, target: nn.Module | Sequence[int], on_input: bool = False) -> IA3Layer:
        """A fresh layer for training in LyCORIS' spelling: a float32 vector of zeros with a gradient, so that it adds exactly nothing.

        Args:
            target: the module to train, or the shape of its weight: [O,I], or [O,I,K,K] for a convolution.
            on_input: whether it scales the inputs (as the paper does in feed-forward layers) rather than the outputs (as in keys and values).

        Raises:
            ConfigError: the target has no weight of 2 to 5 dimensions.

        Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning", section 3.3.
        """
        shape = parts.target_shape(target)
        size = shape[int(on_input)]
        return cls(torch.zeros(size) if len(shape) == 2 else torch.zeros(1, size, *(1 for _ in shape[2:])), on_input).requires_grad_(True)

    def delta(self, weight: Tensor) -> Tensor:
        return weight.float() * self._offset_for(weight)

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        total.addcmul_(base.to(total), self._offset_for(base).to(total), value=strength)

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        if self.ia3_l is None or bias is None or self._axis((bias.shape[0], -1)) != 0:
            return None
        return bias.float() * self._offset().to(bias.device)

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        base = parts.base_of(module, weight, x, True)
        parts.check_fits(self, base.shape, (self._size(),))
        places = (1,) * len(getattr(module, "kernel_size", ()))
        offset = self._offset().to(x)
        if self._axis(base.shape) == 1:
            offset = offset.repeat(getattr(module, "groups", 1)).reshape(-1, *places)
            return parts.output_with(x * offset, module, base, None)
        own = None if self.ia3_l is None else parts.bias_of(module, bias, x)
        return parts.output_with(x, module, base, own) * offset.reshape(-1, *places)

    def belongs_in_weight(self, places: int | None = None) -> bool:
        return True

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) > 1 and self._axis(shape) is not None

    def tensors(self) -> dict[str, Tensor]:
        named = parts.stored(self, None)
        return named if self.weight is None else {**named, "on_input": torch.tensor(int(bool(self.on_input)))}

    def _size(self) -> int:
        return (self.ia3_l if self.weight is None else self.weight).numel()

    def _offset(self) -> Tensor:
        """What is added to a factor of 1, float32 [N]."""
        return self.weight.float().flatten() if self.ia3_l is None else self.ia3_l.float().flatten() - 1

    def _axis(self, shape: Sequence[int]) -> int | None:
        """The axis of a weight of this shape that the vector runs along; None where it has another length."""
        axes = (0, 1) if self.on_input is None else (int(self.on_input),)
        return next((axis for axis in axes if shape[axis] == self._size()), None)

    def _offset_for(self, weight: Tensor) -> Tensor:
        parts.check_fits(self, weight.shape, (self._size(),))
        axis = self._axis(weight.shape)
        return self._offset().to(weight.device).reshape([-1 if other == axis else 1 for other in range(weight.ndim)])


def build(name: str, tensors: Mapping[str, Tensor], hints: Hints) -> IA3Layer:
    """The layer that a file's tensors describe.

    Raises:
        NetworkFileError: `on_input` stands without `weight` or is neither 0 nor 1, or the vector is none.
    """
    if "ia3_l" in tensors:
        vector = tensors["ia3_l"]
        rotations.check_factors(name, "ia3_l", vector)
        return IA3Layer(ia3_l=vector, on_input=_on_input_of(vector, hints))
    if "weight" not in tensors:
        raise parts.incomplete(name, tensors, "weight")
    rotations.check_factors(name, "weight", tensors["weight"])
    flag = tensors["on_input"]
    if flag.numel() != 1 or flag.item() not in (0, 1):
        values = shown(flag.flatten()[:4].tolist())
        raise NetworkFileError(f"layer {shown(name)}: on_input is {values} instead of 0 or 1; the file is damaged, get it again")
    return IA3Layer(tensors["weight"], bool(flag.item()))


def _on_input_of(vector: Tensor, hints: Hints) -> bool | None:
    # a linear layer's [N,1] and [1,N] tell the side; a convolution's [1,N,1,1] does not
    if vector.ndim == 2 and vector.numel() > 1:
        return vector.shape[0] == 1
    return hints.feedforward
