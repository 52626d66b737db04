"""A dataset as kohya's trainers describe it (TOML or JSON), read as folders with what is said of their pictures.

Every key acts, or a line says that it is ignored and why. A key stands for its subset, its dataset or for all, the nearest counts; what it does not say
comes from [data], as it comes there from the command line. Relative folders are seen from the working folder.

Source: kohya-ss/sd-scripts, docs/config_README-en.md and library/config_util.py (names, places and meaning of the keys), commit 48d368fa.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DatasetError, shown
from ..setting import show
from .buckets import Sizes
from .captions import CAPTIONS, Words, split_lines
from .config import DataSettings, toml_reader
from .pictures import PICTURES
from .subsets import Subset, make_words

_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "whole": (int, "a whole number"), "number": ((int, float), "a number"), "switch": (bool, "true or false"), "text": (str, "a text"),
    "size": ((int, list), "a number or [width, height]"), "any": (object, ""),
}
_DATASET_KEYS = {
    "batch_size": "whole", "bucket_no_upscale": "switch", "bucket_reso_steps": "whole", "enable_bucket": "switch", "max_bucket_reso": "whole",
    "min_bucket_reso": "whole", "resolution": "size", "validation_seed": "any", "validation_split": "any", "network_multiplier": "any",
}
_SUBSET_KEYS = {
    "num_repeats": "whole", "flip_aug": "switch", "random_crop": "switch", "shuffle_caption": "switch", "keep_tokens": "whole",
    "keep_tokens_separator": "text", "secondary_separator": "text", "caption_separator": "text", "enable_wildcard": "switch", "caption_prefix": "text",
    "caption_suffix": "text", "caption_dropout_rate": "number", "caption_dropout_every_n_epochs": "whole", "caption_tag_dropout_rate": "number",
    "caption_extension": "text", "class_tokens": "text", "alpha_mask": "switch", "color_aug": "any", "face_crop_aug_range": "any", "token_warmup_min": "any",
    "token_warmup_step": "any", "custom_attributes": "any", "resize_interpolation": "any", "cache_info": "any",
}
_OWN_KEYS = {"image_dir": "text", "is_reg": "switch", "metadata_file": "text", "conditioning_data_dir": "text"}
_IGNORED = {
    "color_aug": "colours are trained as they are", "face_crop_aug_range": "faces are not looked for", "custom_attributes": "nothing here reads them",
    "token_warmup_min": "all tags are there from the first step", "token_warmup_step": "all tags are there from the first step",
    "resize_interpolation": "pictures are scaled with Lanczos's filter", "cache_info": "sizes are read from the pictures, every time",
    "validation_seed": "what is kept back follows from training.seed", "validation_split": "set validation.share",
    "network_multiplier": "a network is trained at strength 1",
}
_NEUTRAL = {"network_multiplier": 1, "token_warmup_min": 1}
_MOST_SIDE = 65536


def read_kohya(path: Path, settings: DataSettings) -> tuple[list[Subset], DataSettings, list[str]]:
    """(subsets, [data] with the batch size and resolution said there, what is ignored in words).

    Raises:
        DatasetError: the file can't be read, or has a key or value that can't be meant; a key is named with the nearest known one.
    """
    try:
        return _Reader(path, settings).read()
    except ConfigError as error:
        raise DatasetError(f"dataset file {path}: {error}") from error


class _Reader:
    """One reading of one file."""

    def __init__(self, path: Path, settings: DataSettings):
        self._path, self._settings = path, settings
        self._problems: list[str] = []

    def read(self) -> tuple[list[Subset], DataSettings, list[str]]:
        content = _load(self._path)
        _check_keys(content, {"general": "any", "datasets": "any"}, "")
        general = _table(content.get("general", {}), "general")
        _check_keys(general, {**_DATASET_KEYS, **_SUBSET_KEYS}, "general.")
        datasets = _tables(content.get("datasets"), "datasets")
        found = [subset for number, dataset in enumerate(datasets) for subset in self._dataset(dataset, general, f"datasets[{number}]")]
        if not found:
            raise DatasetError(f"dataset file {self._path}: no subset has pictures that count; name one with image_dir")
        return found, self._settled(datasets, general), list(dict.fromkeys(self._problems))

    def _dataset(self, dataset: Mapping[str, Any], general: Mapping[str, Any], where: str) -> list[Subset]:
        _check_keys(dataset, {**_DATASET_KEYS, **_SUBSET_KEYS, "subsets": "any"}, f"{where}.")
        subsets = _tables(dataset.get("subsets"), f"{where}.subsets")
        found: dict[tuple[Any, Any], Subset] = {}
        for number, subset in enumerate(subsets):
            place = f"{where}.subsets[{number}]"
            for key in subset:
                if key in _DATASET_KEYS:
                    raise DatasetError(f"dataset file {self._path}: {place}.{key} counts for a whole dataset: put it under [[datasets]]")
            _check_keys(subset, {**_SUBSET_KEYS, **_OWN_KEYS}, f"{place}.")
            said = {**general, **dataset, **subset}
            self._note_ignored(said, place)
            mark = (subset.get("metadata_file"), None if subset.get("metadata_file") else subset.get("image_dir"))
            if said.get("num_repeats", 1) < 1:
                self._problems.append(f"{place} is ignored: num_repeats = {said['num_repeats']}")
            elif mark in found:
                self._problems.append(f"{place} is ignored: the same pictures are in an earlier subset of {where}")
            else:
                found[mark] = self._subset(said, place)
        return list(found.values())

    def _subset(self, said: Mapping[str, Any], where: str) -> Subset:
        settings, listed = self._settings, None
        if "metadata_file" in said:
            listed = _read_listed(Path(said["metadata_file"]).expanduser(), said, where)
        elif "image_dir" not in said:
            raise DatasetError(f"dataset file {self._path}: {where} has no image_dir: name the folder of its pictures")
        folder = Path(said.get("image_dir") or said["metadata_file"]).expanduser()
        if listed is None and not folder.is_dir():
            raise DatasetError(f"dataset file {self._path}: {where}.image_dir = {folder} is no folder, seen from {Path.cwd()}: check it")
        masks = settings.masks
        if "alpha_mask" in said:
            masks = "alpha" if said["alpha_mask"] else "none" if masks == "alpha" else masks
        extension = said.get("caption_extension")
        return Subset(
            folder, self._words(said), self._sizes(said, where), said.get("num_repeats", settings.repeats), said.get("class_tokens"), said.get("is_reg", False),
            CAPTIONS if extension is None else (extension if extension.startswith(".") else f".{extension}",), settings.caption_from_name,
            said.get("flip_aug", settings.flip), said.get("random_crop", settings.random_crop), masks, listed,
            settings.control_suffix, said.get("conditioning_data_dir", settings.control_folder),
        )

    def _words(self, said: Mapping[str, Any]) -> Words:
        settings = self._settings
        wild = said.get("enable_wildcard", False)
        lines = {True: "random", False: "first"}[wild] if "enable_wildcard" in said else settings.captions
        return replace(
            make_words(settings), lines=lines, prefix=said.get("caption_prefix", ""), suffix=said.get("caption_suffix", ""), wildcards=wild,
            separator=said.get("caption_separator") or ",", shuffle=said.get("shuffle_caption", settings.shuffle_tags),
            keep=said.get("keep_tokens", settings.keep_tags), keep_separator=said.get("keep_tokens_separator") or None,
            second_separator=said.get("secondary_separator") or None, tag_dropout=float(said.get("caption_tag_dropout_rate", settings.tag_dropout)),
            dropout=float(said.get("caption_dropout_rate", settings.caption_dropout)), dropout_every=said.get("caption_dropout_every_n_epochs", 0),
        )

    def _sizes(self, said: Mapping[str, Any], where: str) -> Sizes:
        settings = self._settings
        width, height = _resolution(said.get("resolution", settings.resolution))
        side = round(math.sqrt(width * height))
        low = said.get("min_bucket_reso", settings.bucket_min or max(64, side // 2))
        high = said.get("max_bucket_reso", settings.bucket_max or side * 2)
        try:
            return Sizes(width, height, said.get("enable_bucket", settings.buckets), said.get("bucket_reso_steps", settings.bucket_step), low, high,
                         not said["bucket_no_upscale"] if "bucket_no_upscale" in said else settings.upscale)
        except DatasetError as error:
            raise DatasetError(f"dataset file {self._path}: {where}: {error}") from error

    def _note_ignored(self, said: Mapping[str, Any], where: str) -> None:
        for key, why in _IGNORED.items():
            if said.get(key) and said[key] != _NEUTRAL.get(key):
                self._problems.append(f"{key} of {where} is ignored: {why}")

    def _settled(self, datasets: list[Mapping[str, Any]], general: Mapping[str, Any]) -> DataSettings:
        """[data] with what is one for the whole training: batch size, and the largest resolution; dropped captions are then the subsets' own."""
        sizes = [{**general, **dataset}.get("batch_size", self._settings.batch_size) for dataset in datasets]
        for number, size in enumerate(sizes):
            if size != sizes[0]:
                self._problems.append(f"batch_size of datasets[{number}] is ignored: all are trained with {sizes[0]}, the first one's")
        areas = [math.prod(_resolution({**general, **dataset}.get("resolution", self._settings.resolution))) for dataset in datasets]
        side = max(64, round(math.sqrt(max(areas)) / 8) * 8)
        return replace(self._settings, batch_size=sizes[0], resolution=side, bucket_min=None, bucket_max=None, caption_dropout=0.0)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        return _table(json.loads(text) if path.suffix.lower() == ".json" else toml_reader()(text), "the file")
    except OSError as error:
        raise DatasetError(f"dataset file {path}: {error.strerror or error}; give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"dataset file {path}: byte {error.start} is no UTF-8; save it as UTF-8") from error
    except ConfigError:
        raise
    except ValueError as error:
        advice = "; a path with \\ wants single quotes around it" if "\\" in text else ""
        raise DatasetError(f"dataset file {path}: {shown(' '.join(str(error).split()))}{advice}") from error


def _check_keys(table: Mapping[str, Any], known: Mapping[str, str], where: str) -> None:
    """Returns where every key is known and has a value of its kind."""
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            elsewhere = "; it belongs into [[datasets.subsets]]" if key in _OWN_KEYS else ""
            raise ConfigError(f"unknown key {where}{key}" + (elsewhere or (f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}")))
        kind, words = _KINDS[known[key]]
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and known[key] in ("whole", "number", "size"))
        if wrong or (known[key] in ("whole", "number") and not 0 <= value <= _most(key)):
            raise ConfigError(f"{where}{key} = {show(value)}: expected {words}" + ("" if wrong else f" from 0 to {_most(key)}"))


def _most(key: str) -> int:
    return 1 if key.endswith("_rate") else _MOST_SIDE


def _resolution(value: Any) -> tuple[int, int]:
    """(width, height) of a number or a pair.

    Raises:
        ConfigError: it is neither.
    """
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and 64 <= side <= _MOST_SIDE for side in pair):
        raise ConfigError(f"resolution = {show(value)}: expected a number of pixels or [width, height], each 64 or more")
    return pair[0], pair[1]


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {show(value)}: expected a table with keys")
    return value


def _tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"{where} is missing: write at least one [[{where.replace('[0]', '')}]]")
    return [_table(item, f"{where}[{number}]") for number, item in enumerate(value)]


def _read_listed(path: Path, said: Mapping[str, Any], where: str) -> tuple[tuple[Path, tuple[str, ...]], ...]:
    """The pictures and captions that a fine-tuning JSON (or JSON lines) lists.

    Raises:
        DatasetError: it can't be read, or names a picture that is not there.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
            entries = {row["image_path"]: row for row in rows}
        else:
            entries = json.loads(text)
        folder = Path(said["image_dir"]).expanduser() if said.get("image_dir") else None
        separator = said.get("caption_separator") or ","
        return tuple((_find_listed(str(key), folder, path), _listed_texts(entry, separator)) for key, entry in sorted(entries.items()))
    except OSError as error:
        raise DatasetError(f"{where}.metadata_file = {path}: {error.strerror or error}; check it") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(f"{where}.metadata_file = {path} is no list of pictures with caption and tags ({type(error).__name__}): check it") from error


def _listed_texts(entry: Mapping[str, Any], separator: str) -> tuple[str, ...]:
    lines, tags = split_lines(entry.get("caption") or ""), " ".join((entry.get("tags") or "").split())
    if not tags:
        return lines
    return tuple(f"{line}{separator} {tags}" for line in lines) or (tags,)


def _find_listed(key: str, folder: Path | None, listed: Path) -> Path:
    """The picture that a key names, with or without its folder and ending."""
    path = Path(key)
    if not path.is_absolute() and folder is not None:
        path = folder / key
    for candidate in (path, *(path.with_name(path.name + ending) for ending in PICTURES)):
        if candidate.is_file():
            return candidate
    raise DatasetError(f"{listed} lists {shown(key)}, and there is no picture {path}: check image_dir, or write the list anew")
