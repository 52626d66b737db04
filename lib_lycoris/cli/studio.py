"""`studio`: the page in the browser, with its HTTP routes."""

from __future__ import annotations

import argparse

from .arguments import add_checkpoint, add_embeddings, add_networks, embedding_folders, network_folders, whole_number
from .units import adapter_folders, add_adapters, add_clip_vision

NAME = "studio"
SUMMARY = "open the studio's page for the browser"
DESCRIPTION = """\
Serves the studio on this machine alone (127.0.0.1): train a network, and generate with it. Prints its address when it is ready; Ctrl-C ends it.
Pictures are written to outputs/pictures, networks to outputs."""
EXAMPLES = """\
examples:
  python -m lib_lycoris studio
  python -m lib_lycoris studio --checkpoint v1-5.safetensors --port 7900 --networks D:/loras
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_checkpoint(parser)
    add_networks(parser)
    add_adapters(parser)
    add_clip_vision(parser)
    add_embeddings(parser)
    parser.add_argument("--port", metavar="N", type=whole_number(1, 65535), help="the port to listen on (left out: 7865, or the next one that is free)")


def run(arguments: argparse.Namespace) -> None:
    """Serves until Ctrl-C."""
    from .server import serve
    from .workbench import Workbench

    bench = Workbench(arguments.checkpoint, network_folders(arguments.networks), embeddings=embedding_folders(arguments.embeddings),
                      adapters=adapter_folders(arguments.adapters), clip_vision=arguments.clip_vision)
    serve(bench, arguments.port)
