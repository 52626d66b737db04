"""The section [embedding] of a training's config: a new word with vectors of its own (textual inversion)."""

from __future__ import annotations

import typing
from dataclasses import dataclass

from ..errors import ConfigError
from ..setting import Section, section_settings, setting, show
from .names import check_name
from .step_list import parse_step_list

DEFAULT_RATE = 0.005
NORMS = ("off", "keep", "median")


@dataclass(frozen=True)
class EmbeddingSettings(Section):
    """A new word and its vectors, trained alone (network.kind = "embedding") or beside a network (pivotal tuning)."""

    section: typing.ClassVar[str] = "embedding"

    word: str | None = setting(
        None, "The new word, whose vectors are learned: textual inversion's way, in which a word that means nothing yet is given a meaning of its own. It is "
        'put in front of all captions, unless some name it already. With network.kind "embedding" it may be left out, and is output.name then; beside another '
        "kind it is learned together with the network (pivotal tuning)."
    )
    vectors: int = setting(4, "How many tokens' worth of vectors the word has; more hold more and leave less room in a prompt.", minimum=1, maximum=75)
    init_text: str | None = setting(
        None, "Text whose tokens the vectors start from, spread over them: vector i of n starts as token i·k/n of k, so that a short text is stretched, and of "
        "a longer one some tokens are left out. Left out: random numbers with the mean and deviation of the model's own words."
    )
    start_from: str | None = setting(None, "An embedding's file whose vectors the training starts from, as many as it has, in place of init_text.")
    norm: str = setting(
        "off", 'The length of the vectors: "off", as the training makes it; "keep", as it was at the start; "median", drawn towards the median of the '
        "model's own words, a tenth of the way in each step.", choices=NORMS
    )
    learning_rate: float | None = setting(
        None, f"Learning rate of the vectors. Left out: {DEFAULT_RATE}; with network.kind \"embedding\" and a training.learning_rate that was set, that one; "
        "with prodigy training.learning_rate too.", minimum=0, maximum=10, above_minimum=True
    )
    rates: str | None = setting(
        None, 'Learning rates by steps in place of learning_rate and of the schedule, as in the WebUI: "0.005:100, 1e-3:1000, 1e-5" is 0.005 up to step 100; '
        "0 ends the word's training there, while a network beside it goes on."
    )
    file: str = setting(
        "one", 'Beside a network: "one", the word is packed into the network\'s file (bundle_emb), which brings it along wherever it is used; "two", it has a '
        "file WORD.safetensors of its own.", choices=("one", "two")
    )
    picture: bool = setting(
        False, "Also write the vectors as the WebUI's shareable picture, WORD.png, which shows the word and loads like its file (SD 1.x and 2.x)."
    )

    def _check_together(self) -> None:
        if self.word is not None:
            check_name("embedding.word", self.word)
        if self.init_text is not None and self.start_from is not None:
            raise ConfigError(f"embedding.init_text = {show(self.init_text)} and embedding.start_from = {show(self.start_from)}: give one of the two")
        if self.rates is not None:
            parse_step_list("embedding.rates", self.rates)
            if self.learning_rate is not None:
                raise ConfigError(f"embedding.rates = {show(self.rates)} and embedding.learning_rate = {self.learning_rate:g}: give one of the two")

    def changed(self) -> list[str]:
        """The names of the settings that are not at their defaults."""
        return [item.name for item in section_settings(type(self)) if getattr(self, item.name) != item.default]
