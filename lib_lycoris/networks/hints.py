"""What a config says of a layer and its tensors do not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Hints:
    """Beside a layer's tensors: what an adapter_config.json, a file's metadata or the caller says of it. None everywhere: nobody says anything."""

    alpha: float | None = None
    """Scale times rank, where the tensors have neither alpha nor scale."""
    scale: float | None = None
    """The scale itself, for PEFT's layers whose tensors have no rank to divide alpha by (an undecomposed LoKr): the config's alpha / r."""
    init_rank: int | None = None
    """The rank that an AdaLoRA layer was made with; what is left of it may be less."""
    feedforward: bool | None = None
    """Whether an (IA)³ layer of PEFT's scales the input rather than the output: square shapes don't tell."""
    cayley_neumann: bool | None = None
    """Whether an OFT layer of PEFT's makes its rotation by a sum of five powers (None: it does, PEFT's default) rather than by solving."""
    cayley_terms: int | None = None
    """How many powers that sum has (PEFT's `num_cayley_neumann_terms`); None: five."""
    coft_limit: float | None = None
    """PEFT's `eps` where its config says `coft`: how long a block of OFT may be, times the root of their number; None: any length."""


NONE = Hints()
