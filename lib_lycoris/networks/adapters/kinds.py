"""Every kind of adapter, and how one is built from a file's tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, NetworkFileError

from .full import FullAdapter
from .fuser import CoAdapterFuser
from .light import LightAdapter
from .parts import Adapter
from .style import StyleAdapter

_PICTURE = ("channels", "in_channels", "layout", "downscale", "blocks")
KINDS: dict[str, tuple[type[Adapter], tuple[str, ...]]] = {
    "full": (FullAdapter, (*_PICTURE, "ksize", "sk", "use_conv")),
    "light": (LightAdapter, _PICTURE),
    "style": (StyleAdapter, ("width", "context", "layers", "tokens")),
    "fuser": (CoAdapterFuser, ("channels", "width", "layers")),
}
"""Class, and which of the file's facts are its arguments."""


def build_adapter(facts: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Adapter:
    """The adapter, in float32 on the CPU, not to be trained.

    Args:
        facts: files.adapters.AdapterFacts, checked against the shapes of `tensors`.
        tensors: as TencentARC's files spell them.
        metadata: of the file.

    Raises:
        NetworkFileError: no adapter can be like that.
    """
    kind, arguments = KINDS[facts.kind]
    try:
        with torch.device("meta"):  # no time for numbers that are thrown away
            adapter = kind(**{name: getattr(facts, name) for name in arguments})
    except ConfigError as error:
        raise NetworkFileError(f"{error}; get the file again") from error
    adapter.fill(tensors)
    adapter.facts, adapter.metadata = facts, dict(metadata)
    return adapter
