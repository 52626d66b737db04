"""What a picture is said to show: the text beside it, and what each draw makes of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import DatasetError
from .config import TEMPLATE_NAMES
from .draws import make_generator
from .templates import fill_template

CAPTIONS = (".txt", ".caption")
_NUMBERED = re.compile(r"^[\d\s._-]+")
_NAMED = re.compile("|".join(rf"\{{{name}\}}" for name in TEMPLATE_NAMES))
_WILDCARD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")


@dataclass(frozen=True)
class Words:
    """How captions are made of the texts beside the pictures; the keys of [data], and those that kohya's dataset files have besides.

    Attributes:
        template: with {caption}, {concept}, {name} in it.
        lines: of several: "first", "joined" or "random".
        prefix: put before each caption and, with `suffix` behind it, a blank between.
        wildcards: whether "{red|blue}" is one of the two, another in each draw; "{{" and "}}" are braces.
        separator: between tags.
        shuffle: whether the tags are shuffled in each draw.
        keep: how many tags at the beginning stay in place and are never dropped.
        keep_separator: where it stands in a caption, tags before its first and after its second one stay in place, in place of `keep`.
        second_separator: within a tag; becomes the separator at the end.
        tag_dropout: share of the other tags that are left away in each draw.
        dropout: share of draws that have no caption.
        dropout_every: every so many epochs, none has a caption; 0 never.
        trigger: a word that every caption has; put in front where it lacks it. None: none.
        templates: lines of which one is drawn for each caption, with {word} for the trigger, and {caption}, {concept} and {name}.
    """

    template: str | None = None
    lines: str = "first"
    prefix: str = ""
    suffix: str = ""
    wildcards: bool = False
    separator: str = ","
    shuffle: bool = False
    keep: int = 0
    keep_separator: str | None = None
    second_separator: str | None = None
    tag_dropout: float = 0.0
    dropout: float = 0.0
    dropout_every: int = 0
    trigger: str | None = None
    templates: tuple[str, ...] = ()

    @property
    def drops(self) -> bool:
        """Whether whole captions are left away in some draws."""
        return self.dropout > 0 or self.dropout_every > 0

    def may_vary(self, texts: Sequence[str]) -> bool:
        """Whether a picture with these texts may get another caption in another draw, apart from having none."""
        several = self.lines == "random" and len(texts) > 1
        written = " ".join([*texts, self.prefix, self.suffix, self.template or ""])
        wild = self.wildcards and any(match[1] and "|" in match[1] for match in _WILDCARD.finditer(written))
        return several or wild or self.shuffle or self.tag_dropout > 0 or len(self.templates) > 1


@dataclass(frozen=True)
class Drawn:
    """One draw of one sample: all that is random about its caption follows from it."""

    seed: int
    epoch: int
    sample: int

    def number(self, purpose: str, most: int) -> int:
        """A whole number below `most`."""
        return int(torch.randint(most, (), generator=self._generator(purpose)))

    def shares(self, purpose: str, count: int) -> list[float]:
        """So many numbers in 0..1."""
        return torch.rand(count, generator=self._generator(purpose)).tolist()

    def order(self, count: int) -> list[int]:
        """The numbers below `count`, shuffled."""
        return torch.randperm(count, generator=self._generator("tags")).tolist()

    def _generator(self, purpose: str) -> torch.Generator:
        return make_generator(self.seed, "caption", purpose, self.epoch, self.sample)


def compose(texts: Sequence[str], words: Words, drawn: Drawn, concept: str | None = None, name: str = "") -> str:
    """The caption of one draw.

    Args:
        texts: the lines of the text beside the picture.
        concept: the word of a folder named 10_word.
        name: of the file, without its ending.
    """
    if words.dropout_every and (drawn.epoch + 1) % words.dropout_every == 0:
        return ""
    if words.dropout and drawn.shares("dropout", 1)[0] < words.dropout:
        return ""
    text = _line(texts, words, drawn)
    if words.template is not None:
        values = {"caption": text, "concept": concept or "", "name": name}
        text = _NAMED.sub(lambda match: values[match[0][1:-1]], words.template)
    text = " ".join(part for part in (words.prefix, text, words.suffix) if part)
    if words.wildcards:
        text = _fill_wildcards(text, drawn)
    if words.shuffle or words.tag_dropout:
        text = _mix_tags(text, words, drawn)
    if words.second_separator:
        text = text.replace(words.second_separator, words.separator)
    if words.templates:
        text = fill_template(words.templates[drawn.number("template", len(words.templates))], words.trigger or "", text.strip(), concept, name)
    return with_word(text.strip(), words.trigger, words.separator)


def with_word(text: str, word: str | None, separator: str = ",") -> str:
    """The caption, with the word put in front of it where it lacks it."""
    if word is None or re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE):
        return text
    return f"{word}{separator} {text}" if text else word


def plain(texts: Sequence[str], words: Words, concept: str | None = None, name: str = "") -> str:
    """The caption as it would be with nothing shuffled, dropped or chosen but the first."""
    lines = "joined" if words.lines == "joined" else "first"
    quiet = Words(words.template, lines, words.prefix, words.suffix, separator=words.separator, second_separator=words.second_separator,
                  trigger=words.trigger, templates=words.templates[:1])
    text = compose(texts, quiet, Drawn(0, 0, 0), concept, name)
    if words.keep_separator:
        text = words.separator.join(part.strip().strip(words.separator) for part in text.split(words.keep_separator))
    return _WILDCARD.sub(lambda match: match[1].split("|")[0] if match[1] else match[0][0], text) if words.wildcards else text


def read_text(picture: Path, endings: Sequence[str] = CAPTIONS) -> tuple[str, ...] | None:
    """The lines of the text beside a picture, without empty ones; None where there is no such file.

    Raises:
        DatasetError: it can't be read, or is no UTF-8.
    """
    for ending in endings:
        path = picture.with_suffix(ending)
        try:
            return split_lines(path.read_bytes().decode("utf-8-sig"))
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise DatasetError(f"caption {path} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error
        except OSError as error:
            raise DatasetError(f"caption {path} can't be read ({error.strerror or error}): check the file") from error
    return None


def split_lines(text: str) -> tuple[str, ...]:
    """The lines that say something, with single blanks."""
    return tuple(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


def name_as_text(picture: Path) -> tuple[str, ...]:
    """The file's name as a caption: without its ending and leading numbers, with blanks for underscores; none where nothing is left."""
    return split_lines(_NUMBERED.sub("", picture.stem).replace("_", " "))


def _line(texts: Sequence[str], words: Words, drawn: Drawn) -> str:
    if not texts:
        return ""
    if words.lines == "joined":
        return " ".join(texts)
    return texts[drawn.number("line", len(texts)) if words.lines == "random" and len(texts) > 1 else 0]


def _fill_wildcards(text: str, drawn: Drawn) -> str:
    # a purpose of its own for each place, so that two of the same text are chosen independently
    count = iter(range(len(text)))

    def one(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0][0]
        options = match[1].split("|")
        return options[drawn.number(f"wildcard {next(count)}", len(options))]

    return _WILDCARD.sub(one, text)


def _mix_tags(text: str, words: Words, drawn: Drawn) -> str:
    """The caption with its tags shuffled and some left away."""
    first, tags, last = _split_tags(text, words)
    if words.shuffle:
        tags = [tags[index] for index in drawn.order(len(tags))]
    if words.tag_dropout:
        tags = [tag for tag, share in zip(tags, drawn.shares("dropped tags", len(tags)), strict=True) if share >= words.tag_dropout]
    return ", ".join([*first, *tags, *last])


def _split_tags(text: str, words: Words) -> tuple[list[str], list[str], list[str]]:
    """The tags that stay at the beginning, those that may move, those that stay at the end."""
    if words.keep_separator and words.keep_separator in text:
        first, _, rest = text.partition(words.keep_separator)
        tags, _, last = rest.partition(words.keep_separator)
        return tuple([tag.strip() for tag in part.split(words.separator) if tag.strip()] for part in (first, tags, last))
    tags = [tag.strip() for tag in text.split(words.separator) if tag.strip()]
    return tags[: words.keep], tags[words.keep :], []
