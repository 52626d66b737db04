"""The hash by which a network file is known, without reading it where anybody has read it before."""

from __future__ import annotations

from pathlib import Path

from modules import hashes

from lib_lycoris.library.shelf import Shelved

DIGITS = 12


def known_hash(network: Shelved) -> str:
    """The first 12 digits where the file's header or the host's cache has them; else nothing."""
    if network.facts.hash:
        return network.facts.hash[:DIGITS]
    return _cached(network.path)


def _cached(path: Path) -> str:
    try:
        return (hashes.sha256_from_cache(str(path), f"lora/{path.stem}", path.suffix.lower() == ".safetensors") or "")[:DIGITS]
    except OSError:
        return ""
