"""What a WebUI answers, the real one and its stand-in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """Pictures as bytes of RGB (B, H, W, 3), what stands under them, and what the API's info says."""

    pictures: list[bytes]
    comments: list[str]
    parameters: dict[str, Any]
    infotext: str
    files: list[bytes] = field(default_factory=list)

    @property
    def problems(self) -> str:
        """What an API client reads of the problems."""
        return self.parameters.get("Lyco problems", "")


def distance(one: Reply, other: Reply) -> float:
    """The largest difference of two replies' pictures in steps of 256."""
    assert len(one.pictures) == len(other.pictures)
    return max(abs(a - b) for first, second in zip(one.pictures, other.pictures, strict=True) for a, b in zip(first, second, strict=True))
