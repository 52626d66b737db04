"""Lyco Studio's library: trains and applies small fine-tunings of Stable Diffusion. Names are resolved when first used; importing does nothing else."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib_lycoris.errors import NetworkFileError
    from lib_lycoris.library.adapters import open_adapter
    from lib_lycoris.library.embeddings import open_embedding
    from lib_lycoris.library.load import open_network
    from lib_lycoris.patching.session import patch
    from lib_lycoris.training.allocator import RankAllocator

__all__ = ["NetworkFileError", "RankAllocator", "open_adapter", "open_embedding", "open_network", "patch"]

_HOMES = {
    "NetworkFileError": "lib_lycoris.errors",
    "RankAllocator": "lib_lycoris.training.allocator",
    "open_adapter": "lib_lycoris.library.adapters",
    "open_embedding": "lib_lycoris.library.embeddings",
    "open_network": "lib_lycoris.library.load",
    "patch": "lib_lycoris.patching.session",
}


def __getattr__(name: str) -> Any:
    """The public object called `name`, imported on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
