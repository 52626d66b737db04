"""`merge`: several networks as one, or into a checkpoint."""

from __future__ import annotations

import argparse
import sys

from ..errors import ConfigError

NAME = "merge"
SUMMARY = "several networks as one, or into a checkpoint"
DESCRIPTION = """\
Writes one network that does what several do at their strengths. Without --rank the result is exact: the ranks of a
layer add up. With --checkpoint the networks go into that checkpoint instead, which any kind of network can.
A strength may be negative, and differ for text encoders and UNet: FILE:te=0.5,unet=1."""
EXAMPLES = """\
examples:
  python -m lib_lycoris merge both.safetensors cat.safetensors:0.8 style.safetensors:0.5
  python -m lib_lycoris merge both.safetensors cat.safetensors:0.8 style.safetensors:-0.5 --rank 32
  python -m lib_lycoris merge cat-model.safetensors cat.safetensors:te=0.5,unet=1 --checkpoint v1-5-pruned-emaonly.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    from .amounts import add_dtype

    parser.add_argument("out", metavar="OUT", help="the .safetensors file to write; one that is there is replaced")
    parser.add_argument("parts", metavar="FILE:STRENGTH", nargs="+", help="a network and its strength; without one it is 1")
    parser.add_argument("--rank", metavar="N", type=int, help="the most ranks of a layer, by SVD of the sum (left out: all of them, exact)")
    parser.add_argument("--checkpoint", metavar="FILE", help="merge into this checkpoint and write a checkpoint")
    add_dtype(parser, "what the networks have, or fp32 where that would round")


def run(arguments: argparse.Namespace) -> None:
    """Merges and writes.

    Raises:
        ConfigError: a bad value, or --checkpoint together with --rank or --dtype.
    """
    from ..tools.bake import bake
    from ..tools.merge import merge, read_part
    from .amounts import read_dtype
    from .bar import layer_bar

    parts = [read_part(text) for text in arguments.parts]
    if arguments.checkpoint is not None and (arguments.rank is not None or arguments.dtype is not None):
        raise ConfigError("--rank and --dtype are for a network; a checkpoint keeps its own shapes and numbers: leave them out")
    if arguments.rank is not None and arguments.rank < 1:
        raise ConfigError(f"--rank {arguments.rank}: expected a whole number of at least 1")
    if arguments.checkpoint is not None:
        with layer_bar("merging", "tensor") as on_step:
            done = bake(parts, arguments.checkpoint, arguments.out, on_step)
    else:
        with layer_bar("merging") as on_step:
            done = merge(parts, arguments.out, arguments.rank, read_dtype(arguments), on_step)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{done.path}: {done.layers} layers, {done.nbytes / 1e6:.1f} MB", flush=True)
