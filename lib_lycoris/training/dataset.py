"""All pictures of a training with their captions: read and looked through before the first step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ..errors import DatasetError
from .buckets import Frame
from .captions import plain, read_text, with_word
from .config import DataSettings
from .kohya import read_kohya
from .masks import find_mask
from .pictures import content_hash, may_be_transparent, measure, open_image, read_bytes
from .subsets import Subset, make_subset, other_files, passed_folders, scan_folder

_WEIGHTED = re.compile(r"\([^()]{1,60}:\d*\.?\d+\)|\\[()]")
"""A prompt's (word:1.2), or a bracket that is escaped there."""


@dataclass(frozen=True)
class Picture:
    """A picture file with its caption.

    Attributes:
        texts: the lines of its caption, before anything is made of them; `source` says where they are from (Subset.texts).
        subset: the folder it is from, with all that is said there of its pictures.
        size: (width, height) in pixels, after EXIF's turn.
        content: the hash of its bytes.
        mask: the file of its mask, where masks are files.
        control: the file of its control picture, where an adapter is trained and control pictures are files.
    """

    path: Path
    texts: tuple[str, ...]
    source: str
    subset: Subset
    size: tuple[int, int]
    content: str
    mask: Path | None = None
    control: Path | None = None

    @property
    def repeats(self) -> int:
        """How often it counts in an epoch."""
        return self.subset.repeats

    @property
    def concept(self) -> str | None:
        """The word of a folder named 10_word."""
        return self.subset.concept

    @cached_property
    def caption(self) -> str:
        """Its caption with nothing shuffled or left away."""
        return plain(self.texts, self.subset.words, self.concept, self.path.stem)

    @cached_property
    def frame(self) -> Frame:
        """How it comes to the size at which it is trained."""
        return self.subset.sizes.frame(*self.size)


@dataclass(frozen=True)
class Dataset:
    """All pictures, in an order that depends on the folders and names alone, and what was odd about them, in words.

    Attributes:
        prior: the class pictures among them, of folders named reg, or said to be such by a dataset file.
        settings: [data] with what a dataset file put in its place.
    """

    pictures: tuple[Picture, ...]
    problems: tuple[str, ...] = ()
    prior: tuple[Picture, ...] = ()
    settings: DataSettings = field(default_factory=DataSettings)

    @property
    def draws(self) -> tuple[int, ...]:
        """For each draw of an epoch the index of its picture: every picture as often as it counts."""
        return draws_of(self.pictures)


def draws_of(pictures: Iterable[Picture]) -> tuple[int, ...]:
    """For each draw of an epoch the index of its picture."""
    return tuple(index for index, picture in enumerate(pictures) for _ in range(picture.repeats))


def read_dataset(settings: DataSettings, known: Callable[[str], bool] = lambda content: False, key: str = "data.folders") -> Dataset:
    """The dataset that the settings name; every picture was decoded once, so that a bad one is known before the first step.

    Args:
        known: says of a picture's content that it was decoded before, so that it need not be now.
        key: the setting that names the folders, for messages.

    Raises:
        DatasetError: no folder is named, one is missing or without pictures, no picture has a caption, a picture or caption can't be read.
    """
    subsets, settings, problems = find_subsets(settings, key)
    pictures, left_out = _read_pictures(subsets, settings.skip_unreadable, known)
    learned = [picture for picture in pictures if not picture.subset.prior]
    if not learned:
        raise DatasetError(f"all {len(pictures)} pictures in {_names(subsets)} are class pictures: name a folder with the pictures to learn from, too")
    learned = _with_meant_words(learned)
    _check_captions(learned, subsets)
    problems = [*problems, *left_out, *_other_kinds(subsets), *_other_folders(subsets, settings)]
    problems += [*_odd_captions(pictures), *_odd_masks(pictures), *_twice(learned)]
    return Dataset(tuple(learned), tuple(problems), tuple(picture for picture in pictures if picture.subset.prior), settings)


def read_prior(folder: Path, settings: DataSettings, known: Callable[[str], bool] = lambda content: False) -> tuple[tuple[Picture, ...], list[str]]:
    """The class pictures in a folder, and what was odd about them; those without a caption have data.prior_prompt.

    Raises:
        DatasetError: it has none, or one can't be read.
    """
    subset = replace(make_subset(folder, settings), prior=True, repeats=1, masks="none", from_name=False)
    found = [replace(part, prior=True) for part in scan_folder(folder, replace(settings, masks="none", repeats=1, caption_from_name=False),
                                                                     "data.prior_folder")]
    if settings.prior_prompt is not None:
        found = [replace(part, concept=settings.prior_prompt) for part in found]
    pictures, problems = _read_pictures(found or [subset], settings.skip_unreadable, known)
    return tuple(pictures), [*problems, *_odd_captions(pictures)]


def learned_too(pictures: Iterable[Picture], learned: Iterable[Picture]) -> list[Picture]:
    """Those of the pictures that are among the learned ones, byte for byte."""
    known = {picture.content for picture in learned}
    return [picture for picture in pictures if picture.content in known]


def odd_about_classes(prior: Iterable[Picture], learned: Iterable[Picture]) -> list[str]:
    """In words, which class pictures are learned as the new thing, too."""
    both = learned_too(prior, learned)
    if not both:
        return []
    return [f"{len(both)} class picture{'s are' if len(both) > 1 else ' is'} among those to learn, too, byte for byte, as {both[0].path}: class pictures "
            "should show what the model knows already"]


def find_subsets(settings: DataSettings, key: str = "data.folders") -> tuple[list[Subset], DataSettings, list[str]]:
    """(the folders that the settings name, [data] with what a dataset file says, what of that file is ignored in words).

    Raises:
        DatasetError: no folder is named, one is missing or without pictures.
    """
    if settings.dataset is not None:
        return read_kohya(Path(settings.dataset).expanduser(), settings)
    if not settings.folders:
        raise DatasetError('data.folders is empty: name a folder of pictures, for example folders = ["my-pictures"]')
    return [subset for folder in settings.folders for subset in scan_folder(Path(folder).expanduser(), settings, key)], settings, []


def check_folders(settings: DataSettings) -> None:
    """Returns where the folders that the settings name are there and hold pictures; none of these is opened.

    Raises:
        DatasetError: no folder is named, one is missing or without pictures; begins with the key of the setting that is wrong.
    """
    key = "data.folders" if settings.dataset is None else "data.dataset"
    try:
        find_subsets(settings)
    except DatasetError as error:
        raise DatasetError(str(error) if str(error).startswith(key) else f"{key}: {error}".replace(f": check {key},", ":")) from error


def _read_pictures(subsets: Iterable[Subset], skip: bool, known: Callable[[str], bool]) -> tuple[list[Picture], list[str]]:
    """(pictures, what was left out in words)."""
    good, problems, first, count = [], [], None, 0
    for subset in subsets:
        for path in subset.pictures():
            first, count = first or path, count + 1
            try:
                good.append(_read_picture(path, subset, known))
            except DatasetError as error:
                if not skip or f"picture {path} can't" not in str(error):
                    raise
                problems.append(f"{str(error).rpartition('): ')[0]}); it is left out")
    if not good:
        raise DatasetError(f"none of the {count} pictures can be read, the first is {first}: replace them")
    return good, problems


def _read_picture(path: Path, subset: Subset, known: Callable[[str], bool]) -> Picture:
    data = read_bytes(path)
    content = content_hash(data)
    size = measure(path, data)
    if not known(content):
        open_image(path, data)  # the whole file: a truncated one opens well
    texts, source = subset.texts(path)
    return Picture(path, texts, source, subset, size, content, find_mask(path) if subset.masks == "files" else None)


def _with_meant_words(pictures: list[Picture]) -> list[Picture]:
    """The pictures, where some captions name the trigger word, without it for those whose caption does not: they show something else, and were told so."""
    bare = [plain(one.texts, replace(one.subset.words, trigger=None), one.concept, one.path.stem) for one in pictures]
    named = [text == with_word(text, one.subset.words.trigger) for text, one in zip(bare, pictures, strict=True)]
    if not any(named) or any(one.subset.words.templates for one in pictures):
        return pictures
    return [one if name else replace(one, subset=replace(one.subset, words=replace(one.subset.words, trigger=None)))
            for one, name in zip(pictures, named, strict=True)]


def _check_captions(pictures: list[Picture], subsets: list[Subset]) -> None:
    if any(picture.caption for picture in pictures):
        return
    raise DatasetError(
        f"no picture in {_names(subsets)} has a caption: put a text file of the same name beside each, for example "
        f"{pictures[0].path.with_suffix('.txt').name} for {pictures[0].path.name}, or set data.caption_from_name = true"
    )


def _odd_captions(pictures: list[Picture]) -> list[str]:
    problems = []
    without = [picture for picture in pictures if not picture.caption]
    if without:
        problems.append(f"{_of(without, pictures)} no caption, the first is {without[0].path}; they are learned without words")
    by_word = [picture for picture in pictures if picture.source == "concept"]
    if by_word and len(by_word) < len(pictures):
        problems.append(f"{_of(by_word, pictures)} no caption file and get their folder's word, the first is {by_word[0].path}: {by_word[0].caption!r}")
    long = [picture for picture in pictures if len(picture.texts) > 1 and picture.subset.words.lines == "first"]
    if long:
        problems.append(f"{_of(long, pictures)} a caption of several lines, of which the first counts (data.captions), as {long[0].path}")
    weighted = [(picture, match) for picture in pictures for line in picture.texts if (match := _WEIGHTED.search(line))]
    if weighted:
        count = len({picture.path for picture, _ in weighted})
        problems.append(f"{count} of {len(pictures)} pictures have a caption with weights or escaped brackets as prompts have them, as {weighted[0][1][0]!r} "
                        f"in {weighted[0][0].path}; a training knows neither and learns the signs as text: take them out")
    double = [picture for picture in pictures if picture.source == "file" and picture.subset.listed is None and _has_another_text(picture)]
    if double:
        endings = double[0].subset.endings
        problems.append(f"{_of(double, pictures)} two caption files that differ, of which {' before '.join(endings)} counts, as {double[0].path}")
    return problems


def _has_another_text(picture: Picture) -> bool:
    """Whether a caption file of a later ending says something else than the one that counts."""
    first, *others = [text for ending in picture.subset.endings if (text := read_text(picture.path, (ending,))) is not None]
    return any(other != first for other in others)


def _odd_masks(pictures: list[Picture]) -> list[str]:
    problems = []
    masked = [picture for picture in pictures if picture.subset.masks == "files"]
    without = [picture for picture in masked if picture.mask is None]
    if without:
        problems.append(f"{_of(without, masked)} no mask and are learned whole, the first is {without[0].path}: no NAME-masklabel.png or mask/NAME.png")
    clear = [picture for picture in pictures if picture.subset.masks == "alpha"]
    opaque = [picture for picture in clear if not may_be_transparent(picture.path, read_bytes(picture.path))]
    if opaque:
        problems.append(f"{_of(opaque, clear)} no transparency and are learned whole, the first is {opaque[0].path}")
    return problems


def _other_kinds(subsets: Iterable[Subset]) -> list[str]:
    others = [path for folder in dict.fromkeys(subset.folder for subset in subsets if subset.listed is None) for path in other_files(folder)]
    if not others:
        return []
    return [f"{len(others)} picture{'s are' if len(others) > 1 else ' is'} of a kind that is not read, the first is {others[0]}: save as PNG or JPEG"]


def _other_folders(subsets: list[Subset], settings: DataSettings) -> list[str]:
    """Folders with pictures within those that are read, which nobody looks into."""
    read = {subset.folder.resolve() for subset in subsets}
    roots = {subset.folder for subset in subsets if subset.listed is None} | {Path(folder).expanduser() for folder in settings.folders}
    besides = {"mask", *([settings.control_folder] if settings.control_folder else [])}
    inner = [path for folder in sorted(roots) for path in passed_folders(folder) if path.name not in besides and path.resolve() not in read]
    if not inner:
        return []
    count = f"{len(inner)} folder{'s' if len(inner) > 1 else ''} with pictures"
    return [f"{count} within these {'are' if len(inner) > 1 else 'is'} not looked into, the first is {inner[0]}: name {'them' if len(inner) > 1 else 'it'} "
            "in data.folders too"]


def _twice(pictures: list[Picture]) -> list[str]:
    """Pictures that are the same, byte for byte, at the same size."""
    first: dict[tuple[str, object], Picture] = {}
    again = [picture for picture in pictures if first.setdefault((picture.content, picture.subset.sizes), picture) is not picture]
    if not again:
        return []
    before = first[(again[0].content, again[0].subset.sizes)].path
    return [f"{len(again)} of {len(pictures)} pictures are there before, byte for byte: {again[0].path} is {before}; they count twice"]


def _of(some: list[Picture], all_: list[Picture]) -> str:
    return f"{len(some)} of {len(all_)} pictures have"


def _names(subsets: Iterable[Subset]) -> str:
    return ", ".join(dict.fromkeys(str(subset.folder) for subset in subsets))
