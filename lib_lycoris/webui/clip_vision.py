"""CLIP's picture encoder for style adapters, where the user has it; nothing is ever downloaded."""

from __future__ import annotations


def describe(width: int) -> str:
    """What a user must know of a style adapter's picture encoder."""
    return "style adapters are not applied in this version"
