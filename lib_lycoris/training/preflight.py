"""What a training would do, in plain words, before it is started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import shown
from ..patching.targets import Target, find_targets
from .adalora import check_phases
from .adapter import count_adapter
from .backbone import Backbone
from .captions import Drawn, compose, with_word
from .config import KINDS_WITHOUT_LAYERS, TrainConfig
from .dataset import Dataset, Picture, odd_about_classes, read_prior
from .folder import check_folder
from .materials import read_pictures
from .memory import estimate_memory
from .methods import count_parameters
from .new_word import NewWord, make_word
from .optimizers import odd_about_rates
from .prior import count_pictures, missing_pictures, odd_about_prior, prior_folder
from .progress import render_seconds
from .rates import learning_targets
from .selection import Key, odd_about_patterns, select_targets
from .start import check_start
from .trainer import check_settings

_FEW_PICTURES = 5
_MANY_EPOCHS = 500
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_HEADER_BYTES_A_LAYER = 300
_CHUNK = 75
_SHOWN = 5
"""How many of the most cropped pictures are named."""
_LITTLE = 0.01
_MUCH = 0.25
_BLURRED = 2.0


@dataclass(frozen=True)
class Framed:
    """What becomes of one picture: scaled by `scale`, with the share `cropped` of it cut off. Sizes are (width, height) in pixels."""

    path: str
    original: tuple[int, int]
    size: tuple[int, int]
    scale: float
    cropped: float


@dataclass(frozen=True)
class Preflight:
    """What is known of a training before its first step.

    Attributes:
        pictures: files; `draws` counts each as often as it is repeated, without those kept back.
        kept_back: pictures that are not trained on but judged on.
        class_pictures: for prior preservation, those that are there; `class_missing` are made by the model first.
        sizes: (width, height, pictures) of each bucket.
        framed: what becomes of each picture, the most cropped first.
        steps: optimiser steps, going `epochs` times over all draws.
        layers: of UNet and text encoders.
        parameters: numbers that are trained.
        file_bytes: about, of the network file.
        memory: an estimate in bytes, by what needs it: "model", "trained", "step", "total"; None where it was not asked for.
        word: what is said of a new word that is trained, in sentences.
        adapter: what is said of an adapter that is trained, in sentences.
        captions: the first ones, as they are trained.
        long_captions: with more than 75 tokens; None where the model does not count them.
        words: that most captions share, with the count of captions that have them.
        step_seconds: of a step, as measured in an earlier training of this kind on this machine; None where there was none.
        pieces: of those words, the ones that are no token of the model, with the number of tokens they are read as.
        problems: what looks wrong, in words.
    """

    pictures: int
    draws: int
    steps: int
    epochs: float
    unet_layers: int
    text_encoder_layers: int
    parameters: int
    file_bytes: int
    words: tuple[tuple[str, int], ...]
    problems: tuple[str, ...]
    kept_back: int = 0
    class_pictures: int = 0
    class_missing: int = 0
    sizes: tuple[tuple[int, int, int], ...] = ()
    framed: tuple[Framed, ...] = ()
    memory: dict[str, int] | None = None
    word: tuple[str, ...] = ()
    adapter: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()
    long_captions: int | None = None
    step_seconds: float | None = None
    pieces: tuple[tuple[str, int], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON can hold."""
        return asdict(self)

    def lines(self) -> list[str]:
        """All of it in sentences, one a line."""
        words = ", ".join(f"{word} ({count})" for word, count in self.words)
        return [
            *self._picture_lines(),
            f"{_counted(self.steps, 'step')}: {self._seen()}.",
            *self._layer_lines(),
            *self.word,
            *self.adapter,
            *([f"The network file will have about {self.file_bytes / 1e6:.1f} MB."] if self.parameters else []),
            self._time_line(),
            *self._memory_lines(),
            *(f"A caption as it is trained: {shown(caption, 300)}" for caption in self.captions),
            *([f"{_counted(self.long_captions, 'caption')} of more than 75 tokens, encoded in parts of 75."] if self.long_captions else []),
            *([f"Words that captions share: {words}."] if words else []),
            *(f"Look at this: {problem}" for problem in self.problems),
        ]

    def _seen(self) -> str:
        seen = _times_seen(self.epochs, self.draws, self.pictures - self.kept_back)
        if round(seen, 6) == round(self.epochs, 6):
            return f"every picture is seen about {_figure(seen)} times"
        return f"{_figure(self.epochs)} epochs, in which a picture is seen about {_figure(seen)} times, on average"

    def _layer_lines(self) -> list[str]:
        trained, kept = f": {self.parameters:,} numbers are trained.", "is left as it is"
        if not self.unet_layers:
            return [f"{self.text_encoder_layers} layers of the text encoder, the UNet {kept}{trained}"] if self.text_encoder_layers else []
        texts = f" and {self.text_encoder_layers} of the text encoder" if self.text_encoder_layers else f", the text encoder {kept}"
        return [f"{self.unet_layers} layers of the UNet{texts}{trained}"]

    def _picture_lines(self) -> list[str]:
        held = f", {self.kept_back} of them kept back to judge by" if self.kept_back else ""
        repeated = f", {self.draws} with repeats" if self.draws != self.pictures - self.kept_back else ""
        lines = [f"{_counted(self.pictures, 'picture')}{held}{repeated}."]
        lines += [f"Trained at {', '.join(f'{width}×{height} ({count})' for width, height, count in self.sizes)} pixels."] if self.sizes else []
        lines += [f"Cropped: {_framed_words(one)}." for one in self.framed[:_SHOWN] if one.cropped >= _LITTLE]
        enlarged = sorted((one for one in self.framed if one.scale > 1 + _LITTLE), key=lambda one: -one.scale)
        lines += [f"Scaled up: {len(enlarged)} of {self.pictures}, the most {_framed_words(enlarged[0])}."] if enlarged else []
        if self.class_pictures or self.class_missing:
            made = f", {self.class_missing} more are made by the model first" if self.class_missing else ""
            lines.append(f"{_counted(self.class_pictures, 'class picture')} for prior preservation{made}.")
        return lines

    def _time_line(self) -> str:
        if self.step_seconds is None:
            return "How long it takes is not known: no training of this kind and size was measured on this machine yet."
        return (f"About {render_seconds(self.step_seconds * self.steps)} (minutes:seconds), as {self.step_seconds:.3g} s a step were measured in an earlier "
                "training of this kind on this machine; encoding the pictures comes first.")

    def _memory_lines(self) -> list[str]:
        if self.memory is None:
            return []
        parts = {name: f"{count / 2**30:.2f}" for name, count in self.memory.items()}
        return [f"About {parts['total']} GiB of memory, an estimate: {parts['model']} the model, {parts['trained']} what is trained with its optimiser, "
                f"{parts['step']} a step."]


def _times_seen(epochs: float, draws: int, pictures: int) -> float:
    """How often a picture is seen, on average over those that are learned from: with repeats an epoch has more draws than pictures."""
    return epochs * draws / max(pictures, 1)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def check_training(
    config: TrainConfig, backbone: Backbone, side: int | None = None, measure: bool = False, step_seconds: float | None = None
) -> Preflight:
    """What that training would do; nothing is trained, written or changed.

    Args:
        config: what is to be trained.
        backbone: the model.
        side: in pixels, of the pictures that the model was made for; None where nobody knows.
        measure: whether memory is estimated, for which the model takes two small forward passes as a training has it; nobody else may use it meanwhile.
        step_seconds: as measured earlier (pace.py).

    Raises:
        ConfigError: the settings don't fit the model.
        DatasetError: pictures or captions can't be used.
    """
    check_settings(config, backbone)
    check_folder(config.output)
    found = read_pictures(config)
    config, dataset = found.config, found.learned
    every = find_targets(backbone.unet, backbone.text_encoders)
    targets = learning_targets(select_targets(every, config.network), config)
    draws, batch = len(found.draws), config.data.batch_size
    steps = config.training.total_steps(draws, batch)
    if config.network.kind == "adalora":
        check_phases(config.network, steps)
    if config.network.start_from is not None and config.network.kind != "adapter":
        check_start(config, targets, steps)
    adapter = count_adapter(config, backbone) if config.network.kind == "adapter" else 0
    parameters = adapter + sum(count_parameters(target, config.network) for target in targets.values())
    word = make_word(config, backbone)
    unet = sum(component == "unet" for component, _ in targets)
    epochs = steps * batch * config.training.gradient_accumulation / draws
    seen = _times_seen(epochs, draws, len(dataset.pictures) - len(found.kept_back))
    framed = _framed(dataset.pictures)
    word_numbers = 0 if word is None else sum(value.numel() for value in word.vectors.values())
    memory = estimate_memory(config, backbone, targets, parameters + word_numbers, max((one.size for one in framed), key=math.prod)) if measure else None
    missing, class_pictures, odd_classes = _class_pictures(config, dataset)
    words = tuple(_shared_words(picture.caption for picture in dataset.pictures))
    pieces = tuple(_pieces(backbone, [pair for pair in words if pair[0] != str(config.word).lower()]))
    return Preflight(
        pictures=len(dataset.pictures), draws=draws, steps=steps, epochs=epochs, unet_layers=unet, text_encoder_layers=len(targets) - unet,
        parameters=parameters, file_bytes=parameters * _BYTES[config.output.dtype] + _HEADER_BYTES_A_LAYER * len(targets),
        words=words,
        problems=(*dataset.problems, *odd_classes, *odd_about_rates(config.training), *odd_about_patterns(every, config), *_doubts_of_word(config, backbone),
                  *_doubts(config, dataset, targets, seen), *_doubts_of_batch(config, draws), *_doubts_of_size(config, side),
                  *_doubts_of_buckets(config, framed), *_doubts_of_pieces(pieces), *_doubts_of_output(config)),
        kept_back=len(found.kept_back), class_pictures=len(dataset.prior) + class_pictures,
        class_missing=missing, sizes=tuple((*size, count) for size, count in sorted(Counter(one.size for one in framed).items())), framed=framed,
        word=() if word is None else tuple(_word_lines(config, word)),
        memory=None if memory is None else {**asdict(memory), "total": memory.total},
        adapter=_adapter_lines(config, adapter) if adapter else (), captions=_first_captions(config, dataset), long_captions=_count_long(backbone, dataset),
        step_seconds=step_seconds, pieces=pieces,
    )


def _class_pictures(config: TrainConfig, dataset: Dataset) -> tuple[int, int, list[str]]:
    """(class pictures that are made first, those of data.prior_folder, what is odd about class pictures)."""
    if not config.data.has_prior:
        return 0, 0, odd_about_classes(dataset.prior, dataset.pictures)
    missing, folder = missing_pictures(config), prior_folder(config)
    if missing and not count_pictures(folder):
        return missing, 0, odd_about_classes(dataset.prior, dataset.pictures)
    pictures, odd = read_prior(folder, config.data)
    return missing, len(pictures), [*odd_about_prior(config), *odd, *odd_about_classes((*dataset.prior, *pictures), dataset.pictures)]


def _doubts_of_batch(config: TrainConfig, draws: int) -> list[str]:
    size = config.data.batch_size * config.training.gradient_accumulation
    if size <= draws:
        return []
    parts = f" × training.gradient_accumulation = {config.training.gradient_accumulation}" if config.training.gradient_accumulation > 1 else ""
    return [f"data.batch_size = {config.data.batch_size}{parts}: more than the {draws} pictures of an epoch, so that a step sees some of them several times, "
            "each with another noise."]


def _doubts_of_output(config: TrainConfig) -> list[str]:
    if config.network.kind in KINDS_WITHOUT_LAYERS:
        return []
    path = Path(config.output.folder).expanduser() / f"{config.output.name}{'.safetensors' if config.output.form == 'kohya' else ''}"
    return [f"{path} is there already and will be replaced; another output.name keeps it."] if path.exists() else []


def _word_lines(config: TrainConfig, word: NewWord) -> list[str]:
    settings, wide = config.embedding, " and ".join(f"{value.shape[1]}" for value in word.vectors.values())
    start = "random numbers as the model's own words have them"
    if settings.start_from is not None:
        start = f"those of {shown(settings.start_from)}"
    elif settings.init_text is not None:
        start = f"those of the tokens of {shown(settings.init_text)}, spread over them"
    rate = config.embedding_rate if settings.rates is None else settings.rates
    lengths = {"off": "", "keep": "; their lengths stay as they are", "median": "; their lengths are drawn towards the median of the model's words"}
    numbers = sum(value.numel() for value in word.vectors.values())
    alone = config.network.kind == "embedding"
    left = "; the model's own words, its text encoders and its UNet stay as they are" if alone else ", together with the network"
    lines = [f"A new word {shown(word.text)} with {word.count} vector{'s' if word.count > 1 else ''} of {wide} numbers ({numbers:,}) is trained{left}.",
             f"The vectors start from {start}; their learning rate is {rate}{lengths[settings.norm]}."]
    apart = alone or settings.file == "two"
    saved = f"It is saved as {shown(word.text)}.safetensors, and typed so in a prompt." if apart else "It is packed into the network's file."
    return [*lines, saved]


def _doubts_of_word(config: TrainConfig, backbone: Backbone) -> list[str]:
    """In words, what of a new word or its captions may not be meant."""
    doubts = []
    if config.word is not None and config.embedding.init_text is not None and config.embedding.start_from is None:
        tokens = min(len(rows) for rows in backbone.word_rows(config.embedding.init_text).values())  # type: ignore[attr-defined]
        if tokens > config.embedding.vectors:
            doubts.append(f"embedding.init_text = {shown(config.embedding.init_text)} has {tokens} tokens, the word {config.embedding.vectors} vectors: some "
                          "tokens are left out; embedding.vectors may be larger.")
    prior = config.data.prior_prompt
    if config.data.trigger is not None and prior is not None and with_word(prior, config.data.trigger) == prior:
        doubts.append(f"data.prior_prompt = {shown(prior)} has the word {shown(config.data.trigger)} in it: class pictures should show what is known already.")
    return doubts


def _adapter_lines(config: TrainConfig, parameters: int) -> tuple[str, ...]:
    settings, data = config.adapter, config.data
    start = "fresh" if config.network.start_from is None else f"going on from {shown(config.network.start_from)}"
    colours = "the first channel" if settings.in_channels == 1 else "the colours"
    where = "beside them" if data.control_folder is None else f"in {shown(data.control_folder)}"
    made = f"are files {where}" if data.preprocessor is None else f"are made of them by {data.preprocessor}"
    return (f"A {settings.kind} adapter, {start}: {parameters:,} numbers are trained on {colours} of control pictures; the model stays as it is.",
            f"The pictures' control pictures {made}; time steps are drawn {'mostly noisy (cubic)' if config.time_sampling == 'cubic' else 'uniformly'}.")


def _framed(pictures: Iterable[Picture]) -> tuple[Framed, ...]:
    every = [Framed(str(one.path), one.size, one.frame.size, one.frame.scale, one.frame.cropped) for one in pictures]
    return tuple(sorted(every, key=lambda one: (-one.cropped, one.path)))


def _framed_words(one: Framed) -> str:
    cut = f", {one.cropped:.0%} cut off" if one.cropped >= _LITTLE else ""
    return f"{one.path} from {one.original[0]}×{one.original[1]} to {one.size[0]}×{one.size[1]}, scaled by {one.scale:.2f}{cut}"


def _first_captions(config: TrainConfig, dataset: Dataset, most: int = 3) -> tuple[str, ...]:
    """The first samples' captions of the first epoch, whatever is shuffled and left away in it."""
    seed = config.training.seed
    return tuple(
        compose(picture.texts, picture.subset.words, Drawn(seed, 0, dataset.draws.index(index)), picture.concept, picture.path.stem)
        for index, picture in enumerate(dataset.pictures[:most])
    )


def _count_long(backbone: Backbone, dataset: Dataset) -> int | None:
    count = getattr(backbone, "count_tokens", None)
    return None if count is None else sum(count(picture.caption) > _CHUNK for picture in dataset.pictures)


def _pieces(backbone: Backbone, words: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
    """Of these words, those that the model reads as several tokens, with how many; none where it does not count them."""
    count = getattr(backbone, "count_tokens", None)
    if count is None:
        return []
    return [(word, count(word)) for word, _ in words if word.isalnum() and count(word) > 1]


def _doubts_of_pieces(pieces: Iterable[tuple[str, int]]) -> list[str]:
    return [f"the word {shown(word, 40)!r} is no token of this model: it is read as {count} pieces, each with a meaning of its own. It can be learned "
            "all the same; a new word of vectors of its own (an embedding) or a rarer, shorter word may be cleaner." for word, count in list(pieces)[:2]]


def _doubts_of_buckets(config: TrainConfig, framed: tuple[Framed, ...]) -> list[str]:
    doubts = []
    cut = [one for one in framed if one.cropped > _MUCH]
    if cut:
        advice = "a smaller data.bucket_step or a longer data.bucket_max gives more shapes" if config.data.buckets else "data.buckets = true keeps their shapes"
        count = f"{len(cut)} picture{'s lose' if len(cut) > 1 else ' loses'}"
        doubts.append(f"{count} more than {_MUCH:.0%} to cropping, the most {cut[0].path}: {advice}, or cut them by hand.")
    enlarged = [one for one in framed if one.scale > _BLURRED]
    if enlarged:
        doubts.append(f"{len(enlarged)} picture{'s are' if len(enlarged) > 1 else ' is'} scaled up more than {_BLURRED:g} times, as {enlarged[0].path}: "
                      "the network learns the blur; data.upscale = false keeps their size.")
    return doubts


def _doubts(config: TrainConfig, dataset: Dataset, targets: Mapping[Key, Target], seen: float) -> list[str]:
    doubts = []
    count = len(dataset.pictures)
    if count < _FEW_PICTURES:
        doubts.append(f"only {count} picture{'s' if count > 1 else ''}: with fewer than {_FEW_PICTURES} a network mostly learns them by heart.")
    if seen > _MANY_EPOCHS:
        doubts.append(f"every picture is seen {seen:,.0f} times: fewer training.steps may do.")
    if seen < 1:
        doubts.append("not every picture is seen once: more training.steps, or fewer pictures.")
    narrow = [key for key, target in targets.items() if config.network.rank > min(target.shape[0], target.shape[1])]
    if narrow:
        doubts.append(f"network.rank = {config.network.rank} is more than {len(narrow)} of the layers can use, as {narrow[0][1]}: a smaller one does the same.")
    return doubts


def _doubts_of_size(config: TrainConfig, side: int | None) -> list[str]:
    resolution = config.data.resolution
    if side is None or side / 2 <= resolution <= side * 1.5:
        return []
    return [f"data.resolution = {resolution}: the checkpoint was made for pictures of {side} pixels; use about that."]


def _shared_words(captions: Iterable[str], most: int = 8) -> list[tuple[str, int]]:
    """The words that at least half of the captions have, the most frequent first; two captions at least."""
    texts = [set(caption.lower().replace(",", " ").split()) for caption in captions if caption]
    counts = Counter(word for words in texts for word in words)
    shared = [(word, count) for word, count in counts.items() if count >= 2 and count * 2 >= len(texts)]
    return sorted(shared, key=lambda item: (-item[1], item[0]))[:most]
