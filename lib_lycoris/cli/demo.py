"""`demo`: the main job without a page."""

from __future__ import annotations

import argparse

from .arguments import add_checkpoint, whole_number

NAME = "demo"
SUMMARY = "train a small network, save it, and draw before and after"
DESCRIPTION = """\
Trains a LoCon on eight pictures of a shape that the embedded checkpoint has never seen, saves it, and draws before and after.
The last line names the figures and the files."""
EXAMPLES = """\
examples:
  python -m lib_lycoris demo
  python -m lib_lycoris demo --steps 50 --out /tmp/try
  python -m lib_lycoris demo --checkpoint v1-5.safetensors --images my-pictures --steps 800
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_checkpoint(parser)
    parser.add_argument("--images", metavar="DIR", help="your own pictures, with a .txt caption beside each")
    parser.add_argument("--steps", metavar="N", type=whole_number(1, 10_000_000), help="training steps")
    parser.add_argument("--out", metavar="DIR", help="folder for the network and the picture grid (left out: outputs)")


def run(arguments: argparse.Namespace) -> None:
    """Does the demo."""
    from ..studio.demo import run_demo
    from .progress import training_bar

    with training_bar() as shown:
        run_demo(arguments.checkpoint, arguments.images, arguments.steps, arguments.out, say=_say, on_step=shown.on_step)


def _say(line: str) -> None:
    print(line, flush=True)
