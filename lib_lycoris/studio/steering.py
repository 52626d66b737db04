"""The denoiser of a picture whose networks change while it is made."""
from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from ..control.control import Control
from ..library.embeddings import Embedding
from ..prompt.request import Request
from .checkpoint import StudioModel
from .conditioning import encode_composition, encode_prompt
from .guidance import Guidance
from .schedule import NoiseLevels


@dataclass(frozen=True)
class Texts:
    """A prompt and a negative prompt, without tags."""

    prompt: str
    negative: str


class Networks(Protocol):
    """Puts networks onto the model and takes them off: generation.Generation, where each method is described."""

    late_problems: Sequence[str]
    embeddings: Mapping[str, Embedding]

    def apply_pictures(self, positive: Sequence[Sequence[Request]], negative: Sequence[Sequence[Request]]) -> list[str]:
        """Applies exactly these; gives the problems in words."""

    def begin_step(self, step: float, steps: int, rows: Sequence[tuple[int, bool]]) -> None:
        """Turns strengths to what this step wants."""

    def text_key(self, picture: int, negative: bool, step: float, steps: int) -> Hashable:
        """Equal for the same networks on the text encoder."""

    def use_text(self, picture: int, negative: bool, step: float, steps: int) -> None:
        """Puts them on the text encoder."""

    def text_steps(self, steps: int) -> list[int]:
        """The steps at which texts are to be encoded anew."""

    def restore(self) -> None:
        """Takes everything off."""


class NoNetworks:
    """Stands for what is on the model already and stays as it is."""

    late_problems: Sequence[str] = ()
    embeddings: Mapping[str, Embedding] = MappingProxyType({})

    def begin_step(self, step: float, steps: int, rows: Sequence[tuple[int, bool]]) -> None:
        """Turns nothing."""

    def text_key(self, picture: int, negative: bool, step: float, steps: int) -> Hashable:
        """The same for all texts."""
        return ()

    def use_text(self, picture: int, negative: bool, step: float, steps: int) -> None:
        """Changes nothing."""

    def text_steps(self, steps: int) -> list[int]:
        """No step."""
        return []


class Steering:
    """The denoiser that samplers call: before each call strengths are turned, and at the steps where it makes a difference texts are encoded anew.

    All pictures of a batch have the same texts, so that those of the first stand for all.

    Args:
        networks: as applied.
        steps: of the sampling.
        calls: of this denoiser in each step but perhaps the last.
        control: the adapters that act; None: none.
    """

    def __init__(self, model: StudioModel, levels: NoiseLevels, texts: Texts, cfg: float, clip_skip: int, networks: Networks | NoNetworks, steps: int,
                 calls: int, control: Control | None = None):
        self._model, self._texts, self._clip_skip, self._networks, self._control = model, texts, clip_skip, networks, control
        self._steps, self._calls, self._made = steps, calls, 0
        self._known: dict[bool, tuple[Hashable, list[tuple[Tensor, float]]]] = {}
        self._encode_at = frozenset(networks.text_steps(steps))
        self._encoded_for = 0
        (negative, _), = self._encode(True, 0)
        self._guidance = Guidance(model, levels, self._encode(False, 0), negative, cfg, None if control is None else control.extend)

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The picture's latent without noise; the arguments are Guidance's."""
        step = min(self._made // self._calls, self._steps - 1)
        self._made += 1
        if step in self._encode_at and step != self._encoded_for:
            self._encoded_for = step
            (negative, _), = self._encode(True, step)
            self._guidance.steer(self._encode(False, step), negative)
        rows = self._guidance.rows(len(x))
        self._networks.begin_step(step, self._steps, rows)
        if self._control is not None:
            self._control.begin_step(step, self._steps, [picture for picture, _ in rows])
        return self._guidance(x, sigma)

    def _encode(self, negative: bool, step: int) -> list[tuple[Tensor, float]]:
        """The vectors and strengths of the prompt's parts, or of the one that the negative prompt is; those from before where no network changed."""
        key = self._networks.text_key(0, negative, step, self._steps)
        if negative not in self._known or self._known[negative][0] != key:
            self._networks.use_text(0, negative, step, self._steps)
            self._known[negative] = (key, self._vectors(negative))
        return self._known[negative][1]

    def _vectors(self, negative: bool) -> list[tuple[Tensor, float]]:
        if negative:
            return [(encode_prompt(self._model, self._texts.negative, self._clip_skip), 1.0)]
        return encode_composition(self._model, self._texts.prompt, self._clip_skip)
