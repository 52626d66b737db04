"""What a training learns from and what it is judged on, made from the config's pictures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ConfigError, TrainingError
from .backbone import Backbone
from .cache import DiskCache
from .conditioning import CachedCaptions
from .config import TrainConfig
from .control_maps import ControlMaps
from .controls import with_controls
from .dataset import Dataset, Picture, learned_too, odd_about_classes, read_dataset, read_prior
from .latents import Latents
from .material import Material, Part
from .new_word import NewWord
from .prior import make_pictures, missing_seeds, odd_about_prior, prior_folder
from .processes import Alone, Processes, together
from .samples import Samples
from .validation import keep_back
from .watch import Watch
from .word_captions import WordCaptions

_PRIOR_SEED = 1
"""Added to the training's seed for what is drawn of class pictures, as the trainer does for their noise."""

_ASK_EVERY = 2.0
"""Seconds between two questions whether to stop, while pictures are encoded."""


class StoppedEarly(TrainingError):
    """The training was asked to end while it was being prepared; nothing was trained."""


@dataclass(frozen=True)
class Pictures:
    """The pictures of a training, read and found good, not yet encoded.

    Attributes:
        config: the training's, with what a dataset file says in place of [data].
        learned: what is learned from, and class pictures of folders named reg.
        judged: those of validation.folder; None where none is named.
        draws: of `learned`, those that are learned from.
        kept_back: of `learned`, those that are judged on: one for each picture that is kept back.
        cache: on the disk; None where all is kept in memory.
    """

    config: TrainConfig
    learned: Dataset
    judged: Dataset | None
    draws: Sequence[int]
    kept_back: Sequence[int]
    cache: DiskCache | None = None


@dataclass(frozen=True)
class Materials:
    """What the trainer takes: encoded by the model.

    Attributes:
        judged: None where nothing is.
        prior: the class pictures; None without prior preservation.
        captions: what encodes captions, with those that are known beforehand encoded; None where a text encoder is trained.
        problems: what was odd, in words.
    """

    learned: Material
    judged: Material | None
    prior: Material | None
    captions: CachedCaptions | WordCaptions | None
    problems: tuple[str, ...] = ()


def read_pictures(config: TrainConfig, watch: Watch | None = None) -> Pictures:
    """The pictures that the config names.

    Raises:
        DatasetError: pictures or captions can't be used.
        ConfigError: there is too little to keep some back.
    """
    (watch or Watch()).phase("reading pictures")
    if config.word is not None:
        config = replace(config, data=replace(config.data, trigger=config.word))
    cache = DiskCache(cache_folder(config)) if config.data.cache == "disk" else None
    known = (lambda content: False) if cache is None else cache.knows
    learned, folder = read_dataset(config.data, known), config.validation.folder
    config = replace(config, data=learned.settings)
    judged = None if folder is None else read_dataset(replace(config.data, folders=(folder,), dataset=None), known, "validation.folder")
    if config.network.kind == "adapter":
        learned = with_controls(learned, config.data)
        judged = None if judged is None else with_controls(judged, config.data)
    elif any(picture.subset.control_folder is not None for picture in learned.pictures):
        odd = 'conditioning_data_dir is ignored: control pictures are for network.kind = "adapter"'
        learned = replace(learned, problems=(*learned.problems, odd))
    if judged is not None and (both := learned_too(judged.pictures, learned.pictures)):
        odd = (f"{len(both)} of {len(judged.pictures)} pictures in validation.folder are trained on, too, byte for byte, as {both[0].path}: the validation's "
               "loss falls with them whatever is learned")
        learned = replace(learned, problems=(*learned.problems, odd))
    return Pictures(config, learned, judged, *_split(config, learned), cache)


def cache_folder(config: TrainConfig) -> Path:
    """Where the disk cache is: data.cache_folder, or NAME-cache in the output folder."""
    if config.data.cache_folder is not None:
        return Path(config.data.cache_folder).expanduser()
    return Path(config.output.folder).expanduser() / f"{config.output.name}-cache"


def make_materials(
    pictures: Pictures, backbone: Backbone, watch: Watch | None = None, processes: Processes | None = None, text_encoder: bool = True,
    word: NewWord | None = None,
) -> Materials:
    """All that is learned from, encoded by the model; class pictures that are missing are made by it first. No network may be attached yet.

    Args:
        processes: each makes and encodes its share of the pictures; captions, which are little work, all encode.
        text_encoder: whether one is trained, so that captions can't be encoded beforehand.
        word: a new word that is trained, put on the backbone: captions that name it can't be encoded beforehand either.

    Raises:
        DatasetError: a picture can't be read.
        TrainingError: the autoencoder gives no numbers for a picture, or a class picture can't be written.
        StoppedEarly: the training was asked to end.
    """
    watch, processes, config = watch or Watch(), processes or Alone(), pictures.config
    prior, problems = _prior_pictures(pictures, backbone, watch, processes)
    judged = () if pictures.judged is None else pictures.judged.pictures
    latents = Latents(backbone, config.data.mask_floor, pictures.cache)
    _encode(latents, [*pictures.learned.pictures, *judged, *prior], pictures.cache is not None, watch, processes)

    controls = _controls(config, [*pictures.learned.pictures, *judged], watch)

    seed, device = config.training.seed, backbone.device
    learned, class_samples = Samples(pictures.learned.pictures, latents, seed, device, controls), Samples(prior, latents, seed + _PRIOR_SEED, device)
    held: Samples | Part = Part(learned, pictures.kept_back) if pictures.judged is None else Samples(judged, latents, seed, device, controls)
    fixed = [*learned.fixed_captions(), *([] if pictures.judged is None else held.fixed_captions()), *class_samples.fixed_captions()]
    if config.data.caption_dropout or any(picture.subset.words.drops for picture in pictures.learned.pictures):
        fixed.append("")
    captions = None if text_encoder else _captions(pictures, backbone, fixed, watch, word)
    odd = [] if pictures.cache is None else pictures.cache.problems
    return Materials(Part(learned, pictures.draws), held if held.samples else None, class_samples if prior else None, captions, (*problems, *odd))


def _prior_pictures(pictures: Pictures, backbone: Backbone, watch: Watch, processes: Processes) -> tuple[tuple[Picture, ...], list[str]]:
    """(all class pictures, what is odd about them)."""
    config = pictures.config
    if not config.data.has_prior:
        return pictures.learned.prior, odd_about_classes(pictures.learned.prior, pictures.learned.pictures)
    problems, seeds = odd_about_prior(config), missing_seeds(config)
    processes.agree(len(seeds), "number of class pictures that are missing", f"put {prior_folder(config)} on a disk that all of them see")
    with together(processes):
        make_pictures(config, backbone, seeds[processes.rank :: processes.count], lambda done, total: watch.phase("making class pictures", done, total),
                      watch.stops)
    _check_stop(watch, processes)
    known = (lambda content: False) if pictures.cache is None else pictures.cache.knows
    found, odd = read_prior(prior_folder(config), config.data, known)
    every = (*pictures.learned.prior, *found)
    return every, [*problems, *odd, *odd_about_classes(every, pictures.learned.pictures)]


def _encode(latents: Latents, pictures: Sequence[Picture], shared: bool, watch: Watch, processes: Processes) -> None:
    asked = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal asked
        watch.phase("encoding pictures", done, total)
        if processes.count == 1 and time.monotonic() - asked > _ASK_EVERY:
            asked = time.monotonic()
            _check_stop(watch, processes)

    with together(processes):
        latents.encode(pictures[processes.rank :: processes.count], tell)
    if processes.count == 1:
        return
    if not shared:
        latents.share(pictures, processes)
    with together(processes):
        latents.encode(pictures)  # reads what others have left on the disk, and makes what they could not leave there


def _controls(config: TrainConfig, pictures: Sequence[Picture], watch: Watch) -> ControlMaps | None:
    if config.network.kind != "adapter":
        return None
    controls = ControlMaps(config.data)
    controls.prepare(pictures, lambda done, total: watch.phase("preparing control pictures", done, total))
    return controls


def _captions(pictures: Pictures, backbone: Backbone, fixed: Sequence[str], watch: Watch, word: NewWord | None) -> CachedCaptions | WordCaptions:
    about = f"{backbone.checkpoint_hash or backbone.checkpoint_name}, clip skip {pictures.config.model.clip_skip}"
    captions: CachedCaptions | WordCaptions = CachedCaptions(backbone, pictures.cache, about)
    if word is not None:
        captions = WordCaptions(backbone, word.text, captions)
    captions.prepare(list(dict.fromkeys(fixed)), lambda done, total: watch.phase("encoding captions", done, total))
    return captions


def _check_stop(watch: Watch, processes: Processes) -> None:
    if processes.any(watch.stops()):
        raise StoppedEarly("the training was stopped before its first step: nothing was trained")


def _split(config: TrainConfig, dataset: Dataset) -> tuple[list[int], list[int]]:
    """(draws that are learned from, draws that are judged on)."""
    draws, settings = dataset.draws, config.validation
    if not settings.share or settings.folder is not None:
        return list(range(len(draws))), []
    if len(dataset.pictures) < 2:
        raise ConfigError(f"validation.share = {settings.share:g}: of one picture none can be kept back; add pictures, or name a validation.folder")
    kept = set(keep_back(len(dataset.pictures), settings.share, config.training.seed))
    return [draw for draw, picture in enumerate(draws) if picture not in kept], [draws.index(picture) for picture in sorted(kept)]
