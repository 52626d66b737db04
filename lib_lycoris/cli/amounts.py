"""Arguments of the verbs that write networks."""

from __future__ import annotations

import argparse

from ..errors import ConfigError


def add_amount(parser: argparse.ArgumentParser, left_out: str) -> None:
    """Adds --rank and --energy, of which one may be given."""
    amount = parser.add_mutually_exclusive_group()
    amount.add_argument("--rank", metavar="N", type=int, help=f"the most ranks of a layer ({left_out})")
    amount.add_argument("--energy", metavar="X", type=float, help="as many ranks of each layer as hold this share (0 to 1) of its squared singular values")


def add_dtype(parser: argparse.ArgumentParser, left_out: str) -> None:
    """Adds --dtype."""
    parser.add_argument("--dtype", choices=("fp16", "bf16", "fp32"), help=f"what to store numbers as (left out: {left_out})")


def read_amount(arguments: argparse.Namespace, **left_out: float) -> dict[str, float]:
    """{"rank": …} or {"energy": …}: what was given, or `left_out`.

    Raises:
        ConfigError: a value is out of range.
    """
    if arguments.rank is not None:
        if arguments.rank < 1:
            raise ConfigError(f"--rank {arguments.rank}: expected a whole number of at least 1")
        return {"rank": arguments.rank}
    if arguments.energy is None:
        return left_out
    if not 0 < arguments.energy <= 1:
        raise ConfigError(f"--energy {arguments.energy}: expected a number above 0 and up to 1; 0.95 keeps 95% of each layer's squared singular values")
    return {"energy": arguments.energy}


def read_dtype(arguments: argparse.Namespace):
    """The torch dtype that --dtype means; None where it is left out."""
    import torch

    return {None: None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[arguments.dtype]
