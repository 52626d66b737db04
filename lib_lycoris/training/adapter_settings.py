"""The section [adapter] of a training config: which T2I-Adapter is trained."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from ..errors import ConfigError
from ..setting import Section, section_settings, setting

ADAPTER_KINDS = ("full", "light")


@dataclass(frozen=True)
class AdapterSettings(Section):
    """The T2I-Adapter that network.kind = "adapter" trains; network.start_from may name one to go on from."""

    section: typing.ClassVar[str] = "adapter"

    kind: str = setting(
        "full", "full: the authors' network for edges, depth, poses (77 million numbers for SD 1.x); light: theirs for colours, a quarter of that.",
        choices=ADAPTER_KINDS,
    )
    in_channels: int | None = setting(
        None, "Channels of the control picture that are read: 3, its colours, or 1, the first of them, for grey maps. Left out: 3.", minimum=1, maximum=3
    )
    downscale: int | None = setting(
        None, "How many pixels of each side become one cell before the first layer. Left out: 8, for SDXL 16.", minimum=8, maximum=16, multiple=8
    )
    blocks: int | None = setting(
        None, "Residual blocks a level. Left out: 2 for full, 4 for light, which are all that other programs know; fewer make a smaller adapter.",
        minimum=1, maximum=8,
    )

    def _check_together(self) -> None:
        if self.in_channels == 2:
            raise ConfigError("adapter.in_channels = 2: expected 1 (grey) or 3 (colours)")

    def changed(self) -> list[str]:
        """The names of the settings that are not as they are by default."""
        return [item.name for item in section_settings(type(self)) if getattr(self, item.name) != item.default]
