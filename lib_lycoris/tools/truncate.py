"""How many parts of a ΔW are kept, and what that keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lib_lycoris.errors import ConfigError, shown
from lib_lycoris.functional.truncation import balanced_factors, rank_for_energy
from lib_lycoris.tools.products import Product


@dataclass(frozen=True)
class Keep:
    """What to keep of each layer: at most `rank` parts, or as many as hold the share `energy` of its squared singular values.

    Raises:
        ConfigError: both or neither is given, or one is out of range.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ConfigError("give either --rank or --energy, not both and not neither")
        if self.rank is not None and (isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1):
            raise ConfigError(f"rank {shown(self.rank)} is not a whole number of at least 1")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy {shown(self.energy)} is not above 0 and up to 1; 0.95 keeps 95% of each layer's squared singular values")

    def count(self, values: Tensor) -> int:
        """How many of these singular values, largest first, to keep; none that is zero."""
        there = rank_for_energy(values, 1.0)
        return min(self.rank, there) if self.rank is not None else rank_for_energy(values, self.energy)


@dataclass
class Kept:
    """Ranks and energies of all layers."""

    ranks: list[int] = field(default_factory=list)
    energies: list[tuple[float, float]] = field(default_factory=list)
    """(kept, all) for each layer."""

    @property
    def share(self) -> float:
        """The share of the whole network's energy that is kept, 0..1."""
        total = sum(whole for _, whole in self.energies)
        return sum(kept for kept, _ in self.energies) / total if total else 1.0

    @property
    def worst(self) -> float:
        """The smallest share of a layer."""
        return min((kept / whole for kept, whole in self.energies if whole), default=1.0)

    def line(self) -> str:
        """Ranks and energy in words."""
        if not self.ranks:
            return "nothing was kept"
        least, most, mean = min(self.ranks), max(self.ranks), sum(self.ranks) / len(self.ranks)
        ranks = f"rank {least}" if least == most else f"ranks {least} to {most} (mean {mean:.1f})"
        return f"{len(self.ranks)} layers, {ranks}, {self.share:.2%} of the energy kept (least in one layer {self.worst:.2%})"


def truncated(u: Tensor, values: Tensor, vt: Tensor, keep: Keep, kept: Kept) -> Product | None:
    """The balanced factors of what is kept of U diag(σ) Vᵀ, noted in `kept`; None where all is zero."""
    count = keep.count(values)
    squares = values.double().square()
    if count == 0:
        return None
    kept.ranks.append(count)
    kept.energies.append((squares[:count].sum().item(), squares.sum().item()))
    return balanced_factors(u[:, :count], values[:count], vt[:count])
