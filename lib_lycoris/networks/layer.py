"""What every kind of network layer can do: the contract between networks, patching and training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol

from torch import Tensor, nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.functional.added import Pull, pulled
from lib_lycoris.networks.parts import base_of, bias_of, full_precision, output_with

Way = Literal["beside", "weight", "factors"]
"""How a layer takes part in training: ΔW's own product beside its module's; or one product with W + ΔW, which is made anew for the backward pass, and there
either the gradient of the whole weight, or products for those of the factors alone."""


class Layer(Protocol):
    """A network's part for one target. Scale (alpha/rank) is already in every number it gives; strength never is.

    What is not abstract here has a right answer for every kind; a kind overrides it where it has a cheaper one.
    """

    algorithm: str
    weight_dependent: bool = False
    """Whether ΔW is another one for another base weight; where not, `delta` reads only the weight's shape and device."""

    @abstractmethod
    def delta(self, weight: Tensor) -> Tensor:
        """ΔW float32 at strength 1 for the base `weight`, in its shape and on its device; `weight` is not changed.

        Raises:
            NetworkFileError: the layer was made for a weight of another shape.
        """

    @abstractmethod
    def fits(self, shape: Sequence[int]) -> bool:
        """Whether `delta` can be given for a weight of this shape; no arithmetic on tensors."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The parameters as a file spells them: {"lora_up.weight": …, "alpha": …}; detached, on the layer's device, and of its dtype."""

    def delta_bias(self, bias: Tensor | None) -> Tensor | None:
        """The same for the base bias [O], or None when the layer leaves it alone."""
        return None

    def delta_output(self, x: Tensor, module: nn.Module, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What ΔW (and the bias's delta) adds to the output of `module` for its input `x`, in x's dtype; a convolution's stride, padding, … are module's.

        Args:
            x: what `module` was called with.
            module: the layer of the model.
            weight: the base weight, where module's own holds other networks too; None: module's own.
            bias: the base bias, likewise.
        """
        with full_precision(x):
            delta = self.delta(base_of(module, weight, x, self.weight_dependent))
            own = self.delta_bias(bias_of(module, bias, x))
        return output_with(x, module, delta, own)

    def add_output(self, output: Tensor, x: Tensor, module: nn.Module, strength: float = 1.0, weight: Tensor | None = None) -> Tensor:
        """The module's `output` for `x` with strength times delta_output added, as a new tensor of output's dtype; the way that training takes."""
        return output + strength * self.delta_output(x, module, weight).to(output.dtype)

    def weight_with(self, base: Tensor, strength: float) -> tuple[Tensor, Pull]:
        """base + strength · ΔW(base) in base's dtype and shape, and what turns its gradient into those of the parameters that want one."""
        total = base + strength * self.delta(base).to(base)
        return total, pulled([total], self.trained_parameters())

    def trained_parameters(self) -> list[Tensor]:
        """The parameters that want a gradient, in the order in which `weight_with` gives it."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def way(self, places: int | None = None, merges: bool = True) -> Way:
        """By which way training takes the least time.

        Args:
            places: how many rows the product has: tokens or pixels times the batch; None: whether there is any number of them for which it is not "beside".
            merges: whether W + ΔW is exact enough to be multiplied with; where not, ΔW has a product of its own on the way "weight" too.
        """
        return "beside"

    def trained_factors(self, shape: Sequence[int], strength: float) -> tuple[tuple[Tensor, Tensor], Pull]:
        """Factors up [O,R] and down [R,I(,K,K)] with up · down = strength · ΔW for a weight of that shape, and what turns their gradients into those of
        `trained_parameters`. Only of a kind that goes the way "factors".
        """
        raise NotImplementedError(f"{self.algorithm} has no factors to train by")

    def add_to(self, total: Tensor, base: Tensor, strength: float) -> None:
        """Adds strength · ΔW for the base weight `base` [O,…] to `total`, float32 or float64 of the same shape and on the same device, in place."""
        total.add_(self.delta(base).to(total), alpha=strength)

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """Two float32 factors [O,R] and [R,I·K·K], scale inside, whose product is ΔW; None for a kind whose ΔW is no single product, or cheaper without."""
        return None

    def truncated(self, ranks: int) -> Layer:
        """The layer of only the first `ranks` ranks (DyLoRA), its scale still alpha over the full rank; the tensors are shared.

        Raises:
            ConfigError: the kind has no ranks in an order of importance, or `ranks` is no whole number of at least 1.
        """
        raise ConfigError(f"a network of kind {self.algorithm} has no ranks to leave out; use dyn with LoRA, LoCon or DyLoRA files only")
