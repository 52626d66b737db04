"""A new word in training: the vectors that stand for it in a caption, beside a model that stays as it is (textual inversion).

Source: Gal et al. 2022, "An Image is Worth One Word: Personalizing Text-to-Image Generation using Textual Inversion".
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from ..errors import ConfigError, LycoError, shown
from ..files.embedding_vectors import ENCODERS
from ..library.embeddings import open_embedding
from .backbone import Backbone
from .config import TrainConfig
from .draws import make_generator

_PULL = 0.1
"""What of the way to the median length, in its logarithm, a vector goes in each step."""
COMPONENT = "embedding"
Statistics = Mapping[str, tuple[Tensor, Tensor, float]]
"""By text encoder the mean [D], deviation [D] and median length of its words' vectors."""


class NewWord:
    """A word and its vectors, float32, one set for each text encoder; all else of the model's words stays.

    Args:
        text: the word.
        vectors: by text encoder ("clip_l", …), [N,D] each: what they start from.
        norm: "off", "keep" or "median": what becomes of their lengths.
        medians: by text encoder the median length of the model's own words; for "median".
    """

    def __init__(self, text: str, vectors: Mapping[str, Tensor], norm: str = "off", medians: Mapping[str, float] | None = None):
        self.text, self._norm, self._medians = text, norm, dict(medians or {})
        self.vectors = {encoder: nn.Parameter(value.detach().to(torch.float32, copy=True)) for encoder, value in vectors.items()}
        self._lengths = {encoder: value.detach().norm(dim=1, keepdim=True) for encoder, value in self.vectors.items()}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by "component.layer.part"."""
        return {f"{COMPONENT}.word.{encoder}": value for encoder, value in self.vectors.items()}

    @property
    def count(self) -> int:
        """How many vectors the word has."""
        return len(next(iter(self.vectors.values())))

    def put_on(self, backbone: Backbone) -> AbstractContextManager[None]:
        """Within it captions and prompts that name the word get its vectors, as they are then."""
        return backbone.words({self.text: self.vectors})  # type: ignore[attr-defined]

    @torch.no_grad()
    def after_step(self) -> None:
        """Brings the vectors to the lengths that are wanted; directions stay, and so does a vector of length zero."""
        for encoder, value in self.vectors.items():
            length = value.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            if self._norm == "keep":
                value.mul_(self._lengths[encoder] / length)
            elif self._norm == "median":
                value.mul_((self._medians[encoder] / length) ** _PULL)

    def exported(self) -> dict[str, Tensor]:
        """The vectors as they are now, on the CPU."""
        return {encoder: value.detach().cpu().clone() for encoder, value in self.vectors.items()}


def make_word(config: TrainConfig, backbone: Backbone) -> NewWord | None:
    """The new word that the settings train, with the vectors that it starts from; None where they train none.

    Raises:
        ConfigError: the word is one of the model's own, or what it starts from can't be used on this model.
    """
    word, settings = config.word, config.embedding
    if word is None:
        return None
    statistics = check_word(word, backbone)
    if settings.picture and len(statistics) > 1:
        raise ConfigError("embedding.picture = true: the WebUI's shareable picture has room for the vectors of one text encoder, this model has "
                          f"{len(statistics)}; leave it out and share WORD.safetensors")
    if settings.start_from is not None:
        vectors = _read(settings.start_from, {encoder: len(mean) for encoder, (mean, _, _) in statistics.items()}, backbone.base_model)
    elif settings.init_text is not None:
        vectors = _from_text(settings.init_text, settings.vectors, backbone)
    else:
        vectors = {encoder: _drawn(mean, deviation, settings.vectors, make_generator(config.training.seed, "word", word, encoder))
                   for encoder, (mean, deviation, _) in statistics.items()}
    on_device = {encoder: value.to(backbone.device) for encoder, value in vectors.items()}
    return NewWord(word, on_device, settings.norm, {encoder: float(median) for encoder, (_, _, median) in statistics.items()})


def check_word(word: str, backbone: Backbone) -> Statistics:
    """The statistics of the model's own words, where it can take this one as a new word.

    Raises:
        ConfigError: the model takes no words, or already has this one.
    """
    if not all(hasattr(backbone, name) for name in ("words", "word_rows", "word_statistics")):
        raise ConfigError(f"the new word {shown(word)}: this model takes no embeddings; train a network without one")
    statistics: Statistics = backbone.word_statistics()  # type: ignore[attr-defined]
    encoders, wanted = set(statistics), set(ENCODERS.get(backbone.base_model, ()))
    if wanted and encoders != wanted:
        raise ConfigError(f"the new word {shown(word)}: this model has the text encoder {', '.join(sorted(encoders))} and not {' and '.join(sorted(wanted))}, "
                          "as a refiner has; no program could use the word, train it on the base model")
    tokens = min(len(rows) for rows in backbone.word_rows(word).values())  # type: ignore[attr-defined]
    if tokens == 0:
        raise ConfigError(f"the new word {shown(word)}: nothing of it can be written in a prompt; choose another embedding.word (or output.name)")
    if tokens == 1:
        raise ConfigError(f"the new word {shown(word)}: it is one of the model's own words already, and captions with it would lose that; choose another "
                          f"embedding.word (or output.name), as {shown(word)}-x, or give it to a network as data.trigger")
    return statistics


def _drawn(mean: Tensor, deviation: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random vectors [N,D] with that mean [D] and deviation [D]."""
    return mean.cpu() + deviation.cpu() * torch.randn(count, len(mean), generator=generator)


def _from_text(text: str, count: int, backbone: Backbone) -> dict[str, Tensor]:
    """The rows of the text's tokens, spread over so many vectors.

    Raises:
        ConfigError: the text has no token.

    Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, create_embedding (behaviour).
    """
    rows = backbone.word_rows(text)  # type: ignore[attr-defined]
    if any(len(own) == 0 for own in rows.values()):
        raise ConfigError(f"embedding.init_text = {shown(text)}: it has no token; write a word that the model knows, or leave it out")
    return {encoder: own[[place * len(own) // count for place in range(count)]] for encoder, own in rows.items()}


def _read(path: str, widths: Mapping[str, int], base_model: str) -> dict[str, Tensor]:
    """The vectors of an embedding's file.

    Raises:
        ConfigError: it can't be read, or is for another model.
    """
    where = f"embedding.start_from = {shown(path)}"
    try:
        vectors = open_embedding(path).vectors
    except (LycoError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from error
    held = {encoder: value.shape[1] for encoder, value in vectors.items()}
    if held != dict(widths):
        raise ConfigError(f"{where}: it is for another base model: its vectors are {_widths(held)} wide, those of this one ({base_model}) {_widths(widths)}")
    return {encoder: value.float() for encoder, value in vectors.items()}


def _widths(widths: Mapping[str, int]) -> str:
    return " and ".join(f"{width} ({encoder})" for encoder, width in widths.items())
