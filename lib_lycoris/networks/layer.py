"""What every kind of network layer can do: the contract between networks, patching and training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn


class Layer(Protocol):
    """A network's part for one target. Scale (alpha/rank) is already in every number it gives; strength never is."""

    algorithm: str

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW float32 at strength 1 for the base `weight`, in its shape and on its device; `weight` is not changed.

        Raises:
            NetworkFileError: the layer was made for a weight of another shape.
        """

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """The same for the base bias [O], or None when the layer leaves it alone."""

    def delta_output(self, x: Tensor, module: nn.Module) -> Tensor:
        """What ΔW (and the bias's delta) adds to the output of `module` for its input `x`, in x's dtype; a convolution's stride, padding, … are module's."""

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether `delta` can be given for a weight of this shape."""

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Two float32 factors [O,R] and [R,I·K·K], scale inside, whose product is ΔW; None for a kind whose ΔW is no single product."""

    def tensors(self) -> dict[str, Tensor]:
        """The parameters as a file spells them: {"lora_up.weight": …, "alpha": …}; detached, on the layer's device, and of its dtype."""
