"""Arguments that several verbs take."""

from __future__ import annotations

import argparse
from collections.abc import Callable

NETWORK_FOLDERS = ("outputs", "networks")
"""Where networks are looked for: what was trained here, and what was brought from elsewhere."""

EMBEDDING_FOLDERS = ("outputs", "embeddings")
"""Where embeddings are looked for."""


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """Adds --checkpoint."""
    parser.add_argument("--checkpoint", metavar="FILE", help="a Stable Diffusion 1.x checkpoint (.safetensors); left out: the small embedded one")


def add_networks(parser: argparse.ArgumentParser) -> None:
    """Adds --networks."""
    parser.add_argument("--networks", metavar="DIR", action="append",
                        help=f"a folder in which <lyco:NAME:1> is looked for; may be given again (left out: {' and '.join(NETWORK_FOLDERS)})")


def network_folders(given: list[str] | None) -> list[str]:
    """The folders that --networks means."""
    return list(given or NETWORK_FOLDERS)


def add_embeddings(parser: argparse.ArgumentParser) -> None:
    """Adds --embeddings."""
    parser.add_argument("--embeddings", metavar="DIR", action="append",
                        help="a folder of embeddings, each used by its file's name in a prompt; may be given again "
                             f"(left out: {' and '.join(EMBEDDING_FOLDERS)})")


def embedding_folders(given: list[str] | None) -> list[str]:
    """The folders that --embeddings means."""
    return list(given or EMBEDDING_FOLDERS)


def whole_number(least: int, most: int) -> Callable[[str], int]:
    """An argparse type for a whole number in a range."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not from {least} to {most}")
        return value

    return read
