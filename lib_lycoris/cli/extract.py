"""`extract`: the difference of two checkpoints as a network."""

from __future__ import annotations

import argparse
import sys

NAME = "extract"
SUMMARY = "the difference of two checkpoints as a LoCon"
DESCRIPTION = """\
Writes what TUNED learned over BASE as a LoCon: on BASE at strength 1 it gives TUNED as nearly as its ranks allow.
Layers that don't differ are left out. Text encoders are included; biases and norms only with --full."""
EXAMPLES = """\
examples:
  python -m lib_lycoris extract v1-5-pruned-emaonly.safetensors my-model.safetensors my-model-locon.safetensors --rank 64
  python -m lib_lycoris extract v1-5-pruned-emaonly.safetensors my-model.safetensors my-model-locon.safetensors --energy 0.9
"""
DEFAULT_RANK = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    from .amounts import add_amount, add_dtype

    parser.add_argument("base", metavar="BASE", help="the checkpoint that the other one was made from")
    parser.add_argument("tuned", metavar="TUNED", help="the fine-tuned checkpoint")
    parser.add_argument("out", metavar="OUT", help="the .safetensors file to write; one that is there is replaced")
    add_amount(parser, f"{DEFAULT_RANK}, where neither is given")
    parser.add_argument("--full", action="store_true", help="keep the differences of biases and norms too, whole (they have no rank)")
    add_dtype(parser, "fp16 or bf16 where both checkpoints are, else fp32")


def run(arguments: argparse.Namespace) -> None:
    """Extracts and writes."""
    from .amounts import read_amount, read_dtype

    amount = read_amount(arguments, rank=DEFAULT_RANK)
    from ..tools.extract import extract
    from .bar import layer_bar

    with layer_bar("extracting") as on_step:
        done = extract(arguments.base, arguments.tuned, arguments.out, **amount, full=arguments.full, dtype=read_dtype(arguments), on_step=on_step)
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{done.path}: {done.kept.line()}, {done.nbytes / 1e6:.1f} MB", flush=True)
