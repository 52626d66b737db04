"""`resize`: a network of smaller ranks."""

from __future__ import annotations

import argparse
import sys

NAME = "resize"
SUMMARY = "a network with smaller ranks"
DESCRIPTION = """\
Writes a network with smaller ranks: of every layer the best approximation by SVD, and how much of it that keeps.
LoHa, LoKr, AdaLoRA and full differences become LoCon. Every layer's alpha is its rank, so that each program gives it the same strength."""
EXAMPLES = """\
examples:
  python -m lib_lycoris resize my-cat.safetensors my-cat-8.safetensors --rank 8
  python -m lib_lycoris resize my-cat.safetensors my-cat-small.safetensors --energy 0.95
"""
DEFAULT_ENERGY = 0.99


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    from .amounts import add_amount, add_dtype

    parser.add_argument("file", metavar="FILE", help="a network: .safetensors, .pt, .ckpt, .bin, or a PEFT folder")
    parser.add_argument("out", metavar="OUT", help="the .safetensors file to write; one that is there is replaced")
    add_amount(parser, f"left out: --energy {DEFAULT_ENERGY}")
    add_dtype(parser, "what FILE has")


def run(arguments: argparse.Namespace) -> None:
    """Resizes and writes."""
    from .amounts import read_amount, read_dtype

    amount = read_amount(arguments, energy=DEFAULT_ENERGY)
    from ..tools.resize import resize
    from .bar import layer_bar

    with layer_bar("resizing") as on_step:
        done = resize(arguments.file, arguments.out, **amount, dtype=read_dtype(arguments), on_step=on_step)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{done.path}: {done.kept.line()}, {done.nbytes / 1e6:.1f} MB of {done.bytes_before / 1e6:.1f} MB", flush=True)
