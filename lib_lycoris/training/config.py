"""What a training run is asked to do: one frozen record for page, API, command line and `accelerate launch`.

Every field carries its help text and its range in its metadata, so that flags, form fields, the API's schema and the README's table
come from this file alone (`settings()` lists them). Nothing here imports torch: `api` and `ui` read it too.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..setting import Section, Setting, section_settings, setting, show
from .adapter_settings import AdapterSettings
from .embedding_settings import DEFAULT_RATE, EmbeddingSettings
from .names import check_name
from .step_list import parse_step_list

KINDS = ("locon", "lora", "loha", "lokr", "adalora", "full", "norm", "ia3", "embedding", "adapter")
KINDS_WITHOUT_LAYERS = ("embedding", "adapter")
"""They put nothing on the layers of UNet and text encoders."""
OPTIMIZERS = ("adamw", "adamw8bit", "lion", "prodigy", "schedule_free")
SCHEDULES = ("constant", "cosine", "linear", "cosine_restarts", "polynomial")
PRECISIONS = ("fp32", "bf16", "fp16")
TIME_SAMPLINGS = ("uniform", "cubic")
TARGET_GROUPS = ("q", "k", "v", "out", "ff", "proj", "resnet", "sampler", "time", "io")
TEMPLATE_NAMES = ("caption", "concept", "name")
DEFAULT_STEPS = 1000
LAYERS_RATE, ADAPTER_RATE = 1e-4, 1e-5


def split_pattern(key: str, item: str, kind: type) -> tuple[str, Any]:
    """A layer's pattern and the value behind its last "=".

    Raises:
        ConfigError: there is none, or it is no number of that kind, or below zero (of ranks, below one).
    """
    pattern, equals, text = item.rpartition("=")
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not equals or not pattern.strip() or not math.isfinite(value) or value < (1 if kind is int else 0):
        what = "RANK, a whole number of 1 or more" if kind is int else "FACTOR, a number of 0 or more"
        raise ConfigError(f'{key}: {show(item)} is not "PATTERN={what.partition(",")[0]}" with {what.partition(", ")[2]}')
    return pattern.strip(), value


def split_value(item: str) -> tuple[str, str]:
    """A preprocessor's value: its name and the text behind its "=".

    Raises:
        ConfigError: it is no such pair.
    """
    name, equals, text = item.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f'data.preprocessor_values: {show(item)} is not "NAME=VALUE"')
    return name.strip(), text.strip()


def check_template(text: str) -> None:
    """Returns where every name in braces is one that a caption's template may have.

    Raises:
        ConfigError: another name, or none at all, which would give every picture the same caption.
    """
    names = re.findall(r"\{([^{}]*)\}", text)
    for name in names:
        if name not in TEMPLATE_NAMES:
            raise ConfigError(f"data.caption_template = {show(text)}: it has {{{name}}}; known are {', '.join(f'{{{known}}}' for known in TEMPLATE_NAMES)}")
    if not names:
        raise ConfigError(f"data.caption_template = {show(text)}: write {{caption}} where the picture's own caption belongs, or {{concept}} or {{name}}")


def _check_applies(settings: Section, name: str, kinds: tuple[str, ...]) -> None:
    """A setting that another kind than these does not know is an error, not a silence."""
    value = getattr(settings, name)
    if value != type(settings).__dataclass_fields__[name].default and settings.kind not in kinds:
        others = " or ".join(map(show, kinds))
        raise ConfigError(f"network.{name} = {show(value)}: network.kind {show(settings.kind)} knows no {name}; leave it out, or use kind = {others}")


@dataclass(frozen=True)
class ModelSettings(Section):
    """What is trained on."""

    section: typing.ClassVar[str] = "model"

    checkpoint: str | None = setting(None, "Checkpoint file. Left out: the embedded one, or in the WebUI the one that is loaded.")
    vae: str | None = setting(
        None, "File of another autoencoder to encode the pictures with. Left out: the checkpoint's own, or in the WebUI the one that is chosen."
    )
    clip_skip: int = setting(1, "Which of the text encoder's last layers the captions are taken from, 1 is the last.", minimum=1, maximum=12)
    v_prediction: str = setting(
        "auto", 'Whether the model predicts the velocity v instead of the noise; "auto" asks the checkpoint.', choices=("auto", "true", "false")
    )
    zero_terminal_snr: bool = setting(
        False, "Shift the noise schedule so that its last step is pure noise; for models that were made so, with v-prediction."
    )

    def resolve_prediction(self, found: str) -> str:
        """"eps" or "v": what this setting says, or with "auto" what the model itself was `found` to predict."""
        return {"auto": found, "true": "v", "false": "eps"}[self.v_prediction]


@dataclass(frozen=True)
class DataSettings(Section):
    """What is learned from."""

    section: typing.ClassVar[str] = "data"

    folders: tuple[str, ...] = setting(
        (), "Folders of pictures with a .txt or .caption beside each; in a folder named 10_word every picture counts ten times."
    )
    dataset: str | None = setting(None, "A dataset description as kohya's trainers read it (TOML), in place of folders; what it says outranks the keys below.")
    resolution: int = setting(512, "Side in pixels of the square whose area pictures are scaled to.", minimum=64, maximum=4096, multiple=8)
    buckets: bool = setting(
        True, "Keep each picture's shape: pictures are scaled to one of several sizes of about the same area. Off: all are cropped to a square."
    )
    bucket_step: int = setting(64, "The sizes' sides are multiples of this many pixels.", minimum=8, maximum=512, multiple=8)
    bucket_min: int | None = setting(None, "Shortest side of a size, in pixels. Left out: half of resolution.", minimum=64, maximum=4096, multiple=8)
    bucket_max: int | None = setting(None, "Longest side of a size, in pixels. Left out: twice the resolution.", minimum=64, maximum=8192, multiple=8)
    upscale: bool = setting(True, "Scale small pictures up to the full area. Off: they get sizes of their own.")
    batch_size: int = setting(1, "Pictures per step, or per part of a step with gradient accumulation.", minimum=1, maximum=1024)
    repeats: int = setting(1, "How often each picture counts in an epoch, where its folder's name says nothing.", minimum=1, maximum=10000)
    flip: bool = setting(False, "Mirror half of the draws left to right.")
    random_crop: bool = setting(
        False, "Cut what is too much at another place in each draw instead of evenly on both sides: one of four, spread evenly, all encoded beforehand."
    )
    masks: str = setting(
        "none", 'Weights for the loss, per pixel: "alpha", the pictures\' transparency; "files", a grey NAME-masklabel.png or mask/NAME.png.',
        choices=("none", "alpha", "files"),
    )
    mask_floor: float = setting(0.0, "The weight of what is masked out entirely.", minimum=0, maximum=1)
    trigger: str | None = setting(
        None, "A word put in front of all captions, unless some name it already: DreamBooth's way, in which the network learns what a rare word that the "
        "model already has, such as sks, is to mean."
    )
    templates: str | None = setting(
        None, 'Captions made from a list of templates, another one in each draw: "subject" or "style", for the word alone; "subject_filewords" or '
        '"style_filewords", with the picture\'s own caption; or a text file with one on each line, in which {word} is data.trigger or embedding.word, and '
        "{caption}, {concept} and {name} are as in caption_template; [name] and [filewords] of the WebUI's own lists are read too."
    )
    caption_template: str | None = setting(
        None, 'A text with {caption}, {concept} (the word in 10_word) or {name} (the file\'s) in it, as "a photo of {caption}".'
    )
    captions: str = setting(
        "first", 'What to do with a caption file of several lines: "joined", one caption; "first", the first line; "random", another line each time.',
        choices=("first", "joined", "random"),
    )
    caption_from_name: bool = setting(False, "Take the file's name, without leading numbers, as the caption of a picture that has no caption file.")
    shuffle_tags: bool = setting(False, "Shuffle the parts between commas in each draw.")
    keep_tags: int = setting(0, "How many parts at the caption's beginning stay in place and are never dropped.", minimum=0, maximum=1000)
    tag_dropout: float = setting(0.0, "Share of the parts between commas that are left away in each draw.", minimum=0, maximum=1)
    caption_dropout: float = setting(
        0.0, "Share of draws in which the caption is left away, so that the network also learns the picture without words.", minimum=0, maximum=1
    )
    cache: str = setting(
        "memory", 'Where encoded pictures and captions are kept: "memory", or "disk", so that a second run starts at once.', choices=("memory", "disk")
    )
    cache_folder: str | None = setting(None, "Folder of the disk cache. Left out: NAME-cache in the output folder.")
    prior_folder: str | None = setting(
        None, "Folder of class pictures for DreamBooth's prior preservation; missing ones are made by the model from prior_prompt."
    )
    prior_prompt: str | None = setting(
        None, 'What the class pictures show, as "a dog"; also their caption where they have none. With it prior preservation is on.'
    )
    prior_pictures: int = setting(100, "How many class pictures there should be.", minimum=1, maximum=100_000)
    control_folder: str | None = setting(
        None, "Adapters: folder of control pictures with the pictures' names, within each of data.folders or by its own path. Left out: they lie beside the "
        "pictures, or data.preprocessor makes them."
    )
    control_suffix: str = setting(".cond", "Adapters: what a control picture beside its picture has between name and ending: NAME.cond.png.")
    preprocessor: str | None = setting(
        None, "Adapters: make the control pictures of the pictures themselves, by a preprocessor as in Generate: canny, lineart, invert. Left out: they are "
        "files."
    )
    preprocessor_values: tuple[str, ...] = setting(
        (), 'Adapters: the preprocessor\'s values that are to differ from its own, as "NAME=VALUE": ["low=50", "high=150"].'
    )
    preprocessor_resolution: int | None = setting(
        None, "Adapters: shorter side in pixels at which the preprocessor works. Left out: that at which the picture is trained.", minimum=64, maximum=4096
    )
    skip_unreadable: bool = setting(False, "Leave out pictures that can't be read, with a warning, instead of stopping before the first step.")

    def _check_together(self) -> None:
        if self.dataset is not None and self.folders:
            raise ConfigError(f"data.folders = {show(list(self.folders))} and data.dataset = {show(self.dataset)}: give one of the two")
        if self.caption_template is not None:
            check_template(self.caption_template)
            if self.templates is not None:
                raise ConfigError(f"data.caption_template = {show(self.caption_template)} and data.templates = {show(self.templates)}: give one of the two")
        if self.trigger is not None and not self.trigger.strip():
            raise ConfigError(f"data.trigger = {show(self.trigger)}: expected a word, or leave it out")
        if self.preprocessor is not None and self.control_folder is not None:
            raise ConfigError(f"data.preprocessor = {show(self.preprocessor)} and data.control_folder = {show(self.control_folder)}: the control pictures are "
                              "made or lie in a folder; give one of the two")
        if not re.fullmatch(r"[^/\\\s\x00-\x1f]+", self.control_suffix):
            raise ConfigError(f"data.control_suffix = {show(self.control_suffix)}: expected a part of a file's name, as .cond")
        for item in self.preprocessor_values:
            split_value(item)
        if self.preprocessor_values and self.preprocessor is None:
            raise ConfigError(f"data.preprocessor_values = {show(list(self.preprocessor_values))}: name the data.preprocessor that they are for")
        low, high = self.bucket_sides
        if not low <= self.resolution <= high:
            raise ConfigError(f"data.resolution = {self.resolution}: not between data.bucket_min = {low} and data.bucket_max = {high}")

    @property
    def bucket_sides(self) -> tuple[int, int]:
        """Shortest and longest side of a bucket, in pixels."""
        low = max(64, self.resolution // 2) if self.bucket_min is None else self.bucket_min
        return low, self.resolution * 2 if self.bucket_max is None else self.bucket_max

    @property
    def has_prior(self) -> bool:
        """Whether DreamBooth's prior preservation is on."""
        return self.prior_prompt is not None or self.prior_folder is not None


@dataclass(frozen=True)
class NetworkSettings(Section):
    """What is trained: which kind of network, how large, on which layers."""

    section: typing.ClassVar[str] = "network"

    kind: str = setting(
        "locon", "lora: linear and 1×1 layers of the attention blocks; locon: the convolutions too; loha, lokr: the same layers by Hadamard "
        "or Kronecker products; adalora: a rank for each layer by its importance; full: whole differences; norm: the norms alone; ia3: one factor for "
        "each channel; embedding: no layer at all, but the vectors of a new word (textual inversion, see [embedding]); adapter: a T2I-Adapter, which follows "
        "control pictures ([adapter]).",
        choices=KINDS,
    )
    rank: int = setting(16, "Rank of linear and 1×1 layers.", minimum=1, maximum=1024)
    alpha: float | None = setting(None, "The network's scale is alpha / rank. Left out: alpha = rank.", minimum=0, above_minimum=True)
    conv_rank: int | None = setting(None, "Rank of the larger convolutions (locon only). Left out: the same as rank.", minimum=1, maximum=1024)
    conv_alpha: float | None = setting(
        None, "Alpha of the larger convolutions (locon only). Left out: the scale of the linear layers.", minimum=0, above_minimum=True
    )
    targets: tuple[str, ...] | None = setting(
        None,
        "Groups of the UNet's layers to train: attention's q, k, v, out; ff (feed-forward); proj (in and out of an attention block); resnet; "
        "sampler (up and down); time (time embedding); io (first and last convolution). Left out: q to proj for lora; q, k, v and ff for adalora; k, v "
        "and ff for ia3; q to sampler for the others.",
        choices=TARGET_GROUPS,
    )
    text_encoder: bool = setting(True, "Train the text encoder too.")
    only: tuple[str, ...] = setting(
        (), 'Train only layers whose name has one of these patterns, with * for anything: ["up_blocks_1*attn2*"]; ["text_model"] is the text encoder alone.'
    )
    exclude: tuple[str, ...] = setting((), "Leave out layers whose name has one of these patterns.")
    block_ranks: tuple[str, ...] = setting(
        (), 'Ranks of single blocks or layers, as "PATTERN=RANK"; the last that fits counts: ["down_blocks_*=4", "mid_block*=32"].'
    )
    start_from: str | None = setting(None, "A network file whose numbers the training starts from; its layers must have the same kind and rank.")
    tucker: bool = setting(False, "Give convolutions larger than 1×1 a Tucker core, which needs fewer numbers (locon, loha, lokr).")
    dora: bool = setting(False, "Train each output's magnitude apart from its direction (DoRA) on lora, locon, loha and lokr.")
    dora_on_output: bool = setting(
        True, "DoRA: magnitudes of outputs, as its paper, PEFT and LyCORIS since 3.2 have them. false: of inputs, the only ones that the WebUI's built-in "
        "extension reads right.",
    )
    rs_lora: bool = setting(False, "Scale by alpha / √rank instead of alpha / rank.")
    factor: int | None = setting(
        None, "LoKr: largest size of the first Kronecker factor. Left out: as near the square root as it divides.", minimum=1, maximum=65536
    )
    decompose_both: bool = setting(False, "LoKr: low rank for the first Kronecker factor too.")
    full_matrix: bool = setting(False, "LoKr: no low rank at all.")
    init_rank: int | None = setting(None, "AdaLoRA: rank of every layer at the start. Left out: half more than target_rank.", minimum=1, maximum=1024)
    target_rank: int | None = setting(None, "AdaLoRA: rank per layer at the end, on average. Left out: rank.", minimum=1, maximum=1024)
    warmup: int | None = setting(None, "AdaLoRA: steps before the first rank is taken away. Left out: a tenth of all.", minimum=0, maximum=10_000_000)
    final: int | None = setting(None, "AdaLoRA: steps at the end in which ranks no longer change. Left out: four tenths of all.", minimum=0, maximum=10_000_000)
    interval: int | None = setting(None, "AdaLoRA: steps between two choices of ranks. Left out: a hundredth of all.", minimum=1, maximum=1_000_000)
    beta1: float = setting(0.85, "AdaLoRA: how much of the average importance is kept from step to step.", minimum=0, maximum=0.9999, above_minimum=True)
    beta2: float = setting(0.85, "AdaLoRA: how much of the average uncertainty is kept.", minimum=0, maximum=0.9999, above_minimum=True)
    orthogonality: float = setting(0.1, "AdaLoRA: weight of the penalty that keeps P and Q orthogonal.", minimum=0, maximum=1000)
    dropout: float = setting(0.0, "Share of each layer's inputs that are left away in every step, others in each picture.", minimum=0, maximum=0.99)
    rank_dropout: float = setting(0.0, "Share of each layer's ranks that are left away in every step.", minimum=0, maximum=0.99)
    module_dropout: float = setting(0.0, "Share of layers that are left away in every step.", minimum=0, maximum=0.99)
    max_norm: float | None = setting(
        None, "After every step, scale a layer down whose ΔW's Frobenius norm is larger than this. Left out: never.", minimum=0, above_minimum=True
    )

    def _check_together(self) -> None:
        for name in ("conv_rank", "conv_alpha"):
            if self.kind == "lora" and getattr(self, name) is not None:
                value = f"{getattr(self, name):g}"
                raise ConfigError(f'network.{name} = {value}: network.kind "lora" has no convolutions; leave it out or use kind = "locon"')
        if self.kind in KINDS_WITHOUT_LAYERS:
            self._check_no_layers()
        if self.targets == ():
            raise ConfigError("network.targets = []: nothing would be trained; name a group or leave it out")
        _check_applies(self, "tucker", ("locon", "loha", "lokr"))
        _check_applies(self, "dora", ("lora", "locon", "loha", "lokr"))
        if not self.dora_on_output and not self.dora:
            raise ConfigError("network.dora_on_output = false: only DoRA has magnitudes; set network.dora = true, or leave it out")
        _check_applies(self, "rs_lora", ("lora", "locon", "loha", "lokr"))
        for name in ("factor", "decompose_both", "full_matrix"):
            _check_applies(self, name, ("lokr",))
        for name in ("init_rank", "target_rank", "warmup", "final", "interval"):
            _check_applies(self, name, ("adalora",))
        ranked = ("lora", "locon", "loha", "lokr", "adalora")
        _check_applies(self, "rank_dropout", ranked)
        _check_applies(self, "dropout", (*ranked, "full", "ia3"))
        if self.rank_dropout and self.full_matrix:
            raise ConfigError(f"network.rank_dropout = {self.rank_dropout:g} and network.full_matrix = true: a whole matrix has no ranks; give one of the two")
        if self.max_norm is not None and self.dora:
            raise ConfigError(f"network.max_norm = {self.max_norm:g} and network.dora = true: DoRA's magnitudes can't be scaled down so; give one of the two")
        if self.kind == "adalora" and self.initial_rank < self.final_rank:
            raise ConfigError(f"network.init_rank = {self.initial_rank}: less than target_rank = {self.final_rank}; AdaLoRA starts with more")
        for item in self.block_ranks:
            split_pattern("network.block_ranks", item, int)

    def _check_no_layers(self) -> None:
        """Raises where a setting is about layers, which that kind has none of."""
        for name in ("targets", "only", "exclude", "block_ranks", "start_from", "max_norm", "module_dropout"):
            value = getattr(self, name)
            if value and (name, self.kind) != ("start_from", "adapter"):
                advice = "use embedding.start_from" if (name, self.kind) == ("start_from", "embedding") else "leave it out"
                raise ConfigError(f"network.{name} = {show(value)}: network.kind {show(self.kind)} trains no layers; {advice}")

    @property
    def final_rank(self) -> int:
        """AdaLoRA's rank per layer at the end, on average."""
        return self.rank if self.target_rank is None else self.target_rank

    @property
    def initial_rank(self) -> int:
        """AdaLoRA's rank of every layer at the start."""
        return math.ceil(self.final_rank * 1.5) if self.init_rank is None else self.init_rank

    @property
    def linear_alpha(self) -> float:
        """Alpha of linear and 1×1 layers."""
        return float(self.rank) if self.alpha is None else self.alpha

    @property
    def convolution_rank(self) -> int:
        """Rank of convolutions larger than 1×1."""
        return self.rank if self.conv_rank is None else self.conv_rank

    @property
    def convolution_alpha(self) -> float:
        """Alpha of convolutions larger than 1×1."""
        return self.convolution_rank * self.linear_alpha / self.rank if self.conv_alpha is None else self.conv_alpha

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups of the UNet's layers that are trained."""
        if self.targets is not None:
            return self.targets
        if self.kind == "adalora":
            return ("q", "k", "v", "ff")  # with f1 and f2, as the paper found best
        if self.kind == "ia3":
            return ("k", "v", "ff")
        last = "proj" if self.kind == "lora" else "sampler"
        return TARGET_GROUPS[: TARGET_GROUPS.index(last) + 1]


@dataclass(frozen=True)
class TrainingSettings(Section):
    """How it is trained."""

    section: typing.ClassVar[str] = "training"

    steps: int | None = setting(None, f"Optimiser steps. Left out, with epochs left out too: {DEFAULT_STEPS}.", minimum=1, maximum=10_000_000)
    epochs: int | None = setting(None, "Passes over all pictures, in place of steps.", minimum=1, maximum=1_000_000)
    learning_rate: float | None = setting(
        None, f"Learning rate of the UNet's layers, or of an adapter. Left out: {LAYERS_RATE}; for an adapter {ADAPTER_RATE}, as its authors trained theirs.",
        minimum=0, maximum=10, above_minimum=True
    )
    text_encoder_learning_rate: float | None = setting(
        None, "Learning rate of the text encoder's layers. Left out: the same as learning_rate.", minimum=0, maximum=10, above_minimum=True
    )
    text_encoder_2_learning_rate: float | None = setting(
        None, "Learning rate of SDXL's second text encoder. Left out: the same as text_encoder_learning_rate.", minimum=0, maximum=10, above_minimum=True
    )
    block_learning_rates: tuple[str, ...] = setting(
        (), 'Factors on the rate of single blocks or layers, as "PATTERN=FACTOR"; the last that fits counts, 0 leaves them out of the training and of the '
        'file (with network.start_from: as they are): ["down_blocks_0*=0.5"].'
    )
    optimizer: str = setting(
        "adamw", "The optimiser; all but adamw need a package of their own: bitsandbytes, lion-pytorch, prodigyopt, schedulefree. lion wants a rate three to "
        "ten times lower; prodigy finds the rate itself and multiplies it with learning_rate, which should be 1.", choices=OPTIMIZERS
    )
    weight_decay: float = setting(0.01, "Decoupled weight decay: what of each number is taken away in a step, times the learning rate.", minimum=0, maximum=10)
    schedule: str = setting("constant", "What the learning rate does after the warm-up; all but constant end at zero.", choices=SCHEDULES)
    schedule_steps: str | None = setting(
        None, 'Factors on all rates by steps, in place of a schedule: "1:500, 0.2:800, 0.05" is the full rate up to step 500 and a fifth of it up to 800.'
    )
    restarts: int = setting(1, "How often cosine_restarts falls from the full rate.", minimum=1, maximum=1000)
    warmup_steps: int = setting(0, "Steps in which the learning rate rises from zero.", minimum=0, maximum=10_000_000)
    precision: str = setting("fp32", "What forward and backward pass compute in; what is trained stays fp32. fp16 needs a GPU.", choices=PRECISIONS)
    seed: int = setting(0, "The same seed and data give the same network, bit for bit on a CPU.", minimum=0, maximum=2**63 - 1)
    time_sampling: str | None = setting(
        None, "How noisy the pictures are that are learned from: uniform, all time steps alike; cubic, mostly noisy ones, where the layout is decided. Left "
        "out: cubic for adapters, uniform for all else.", choices=TIME_SAMPLINGS
    )
    min_snr_gamma: float = setting(0.0, "Weigh the time steps by min-SNR with this gamma (5 is usual); 0 weighs all alike.", minimum=0, maximum=1000)
    debiased: bool = setting(
        False, "Weigh the noisy time steps, where shapes and layout are decided, higher (1/√SNR); learns a form in fewer steps. Not together with min-SNR."
    )
    noise_offset: float = setting(
        0.0, "Strength of a noise that is the same over the whole picture, for very dark and bright ones; 0.05 is usual.", minimum=0, maximum=1
    )
    loss: str = setting("mse", 'How errors count: "mse", squared; "huber" and "smooth_l1", large ones less.', choices=("mse", "huber", "smooth_l1"))
    huber_c: float = setting(0.1, "From which error on huber and smooth_l1 count less.", minimum=0, maximum=100, above_minimum=True)
    prior_weight: float = setting(1.0, "Weight of DreamBooth's prior loss beside the pictures' own.", minimum=0, maximum=1000)
    gradient_accumulation: int = setting(1, "Parts of a step: batches whose gradients are averaged before the optimiser moves.", minimum=1, maximum=10000)
    gradient_checkpointing: bool = setting(False, "Compute parts of the forward pass twice: much less memory, about a third slower.")
    ema: float = setting(
        0.0, "Average the network over the steps with this decay (0.999 is usual) and save the average; 0 saves the last step's.", minimum=0, maximum=0.999999
    )
    max_grad_norm: float = setting(1.0, "The gradient is scaled down to this norm; 0 leaves it as it is.", minimum=0, maximum=1e6)

    def _check_together(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError(f"training.steps = {self.steps} and training.epochs = {self.epochs}: give one of the two")
        if self.debiased and self.min_snr_gamma:
            raise ConfigError(f"training.debiased = true and training.min_snr_gamma = {self.min_snr_gamma:g}: both weigh the time steps; give one of the two")
        if self.optimizer == "schedule_free" and self.ema:
            raise ConfigError(f"training.ema = {self.ema:g}: schedule_free averages the steps itself; leave it out")
        for item in self.block_learning_rates:
            split_pattern("training.block_learning_rates", item, float)
        if self.schedule_steps is not None:
            parse_step_list("training.schedule_steps", self.schedule_steps)
            if self.schedule != "constant":
                raise ConfigError(f"training.schedule = {show(self.schedule)} and training.schedule_steps = {show(self.schedule_steps)}: give one of the two")
        if self.steps is not None and self.warmup_steps > self.steps:
            raise ConfigError(f"training.warmup_steps = {self.warmup_steps}: more than training.steps = {self.steps}; use fewer")

    @property
    def unet_learning_rate(self) -> float:
        """Learning rate of the UNet's layers."""
        return LAYERS_RATE if self.learning_rate is None else self.learning_rate

    @property
    def te_learning_rate(self) -> float:
        """Learning rate of the text encoder's layers."""
        return self.unet_learning_rate if self.text_encoder_learning_rate is None else self.text_encoder_learning_rate

    @property
    def te2_learning_rate(self) -> float:
        """Learning rate of a second text encoder's layers."""
        return self.te_learning_rate if self.text_encoder_2_learning_rate is None else self.text_encoder_2_learning_rate

    def total_steps(self, draws: int, batch_size: int) -> int:
        """Number of optimiser steps, given the draws (pictures × repeats) in an epoch."""
        if self.epochs is None:
            return DEFAULT_STEPS if self.steps is None else self.steps
        return math.ceil(self.epochs * draws / (batch_size * self.gradient_accumulation))


@dataclass(frozen=True)
class ValidationSettings(Section):
    """A loss that tells learning from luck: always the same pictures, noise and time steps."""

    section: typing.ClassVar[str] = "validation"

    folder: str | None = setting(None, "Folder of captioned pictures that are not trained on.")
    share: float = setting(0.0, "Share of the training's own pictures that is kept back for validation, where no folder is named.", minimum=0, maximum=0.5)
    every: int = setting(100, "Steps between two validations.", minimum=1, maximum=10_000_000)
    time_steps: int = setting(4, "How many time steps each picture is judged at, spread evenly.", minimum=1, maximum=100)

    @property
    def on(self) -> bool:
        """Whether there is a validation."""
        return self.folder is not None or self.share > 0


@dataclass(frozen=True)
class OutputSettings(Section):
    """Where the result goes."""

    section: typing.ClassVar[str] = "output"

    name: str = setting("my-network", "Name of the network: NAME.safetensors, and what is typed in <lyco:NAME:1>.")
    folder: str = setting("outputs", "Folder for the network and for the states from which a training can be resumed.")
    save_every: int = setting(200, "Steps between resumable states; 0 saves one only at the end or when stopped.", minimum=0, maximum=10_000_000)
    save_minutes: float = setting(0.0, "Minutes between resumable states, beside save_every; 0 goes by steps alone.", minimum=0, maximum=100_000)
    keep: int = setting(2, "How many resumable states are kept, the newest.", minimum=1, maximum=1000)
    dtype: str = setting("fp16", "What the network's numbers are saved as.", choices=PRECISIONS)
    metadata: str = setting(
        "full", "full: captions' tags, settings and the checkpoint's name too; minimal: only what a program needs to use the file.",
        choices=("full", "minimal"),
    )
    form: str = setting(
        "kohya", 'Names in the file: "kohya", which everything loads, or "peft", a folder NAME with adapter_config.json.', choices=("kohya", "peft")
    )
    network_every: int = setting(
        0, "Steps between networks of their own, NAME-step00000100.safetensors, to choose the best of; 0 saves the last alone.", minimum=0, maximum=10_000_000
    )
    network_epochs: int = setting(0, "The same in epochs, beside network_every.", minimum=0, maximum=1_000_000)
    preview_prompts: tuple[str, ...] = setting(
        (), "Prompts of pictures that are made before and during the training, with the network as it stands, and put into one grid "
        "(NAME-previews/grid.png). Left out: two of the captions."
    )
    preview_every: int = setting(0, "Steps between preview pictures; 0 makes them with each saved network only.", minimum=0, maximum=10_000_000)
    preview_seed: int = setting(0, "Seed of the previews.", minimum=0, maximum=2**32 - 1)

    def _check_together(self) -> None:
        check_name("output.name", self.name)
        if not self.folder.strip():
            raise ConfigError(f"output.folder = {show(self.folder)}: expected a folder")


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run, checked: whatever is wrong with it was said when it was made."""

    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    validation: ValidationSettings = ValidationSettings()
    output: OutputSettings = OutputSettings()
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)

    def __post_init__(self) -> None:
        self._check_embedding()
        self._check_adapter()
        kinds = ("lora", "locon", "adalora", "loha")
        if self.output.form == "peft" and not self.network.dora_on_output:
            raise ConfigError('output.form = "peft": PEFT\'s DoRA has magnitudes of outputs alone; leave network.dora_on_output out, or use form = "kohya"')
        if self.output.form == "peft" and (self.network.kind not in kinds or (self.network.dora and self.network.kind == "loha")):
            kind = f"{self.network.kind} with dora" if self.network.dora else self.network.kind
            raise ConfigError(f'output.form = "peft": PEFT has no form for network.kind = {show(kind)} as it is trained here; use form = "kohya", '
                              f"or kind = {' or '.join(map(show, kinds))}")

    def _check_adapter(self) -> None:
        if self.network.kind != "adapter":
            if self.adapter.changed():
                raise ConfigError(f'adapter.{self.adapter.changed()[0]} is set, and network.kind = {show(self.network.kind)} trains no adapter: leave it out, '
                                  'or set network.kind = "adapter"')
            for name in ("preprocessor", "control_folder"):
                if getattr(self.data, name) is not None:
                    raise ConfigError(f"data.{name} = {show(getattr(self.data, name))}: control pictures are for adapters; leave it out, or set network.kind = "
                                      '"adapter"')
            return
        if self.embedding.word is not None:
            raise ConfigError(f"embedding.word = {show(self.embedding.word)}: an adapter's file has no place for a word; train the word by itself first")
        if self.data.has_prior:
            raise ConfigError('data.prior_prompt and data.prior_folder: class pictures have no control pictures; leave them out for network.kind = "adapter"')
        if self.training.block_learning_rates:
            raise ConfigError("training.block_learning_rates: an adapter has no layers in the UNet's blocks; leave them out")

    @property
    def learning_rate(self) -> float:
        """Learning rate of the UNet's layers, or of the adapter, before the schedule.

        Source: an adapter's is that of C. Mou et al., "T2I-Adapter", 2023, section 4.1, and of the README of TencentARC/T2I-Adapter.
        """
        return ADAPTER_RATE if self.network.kind == "adapter" and self.training.learning_rate is None else self.training.unet_learning_rate

    @property
    def time_sampling(self) -> str:
        """"uniform" or "cubic"."""
        return self.training.time_sampling or ("cubic" if self.network.kind == "adapter" else "uniform")

    @property
    def word(self) -> str | None:
        """The new word whose vectors are trained; None where there is none."""
        return self.output.name if self.network.kind == "embedding" and self.embedding.word is None else self.embedding.word

    @property
    def embedding_rate(self) -> float:
        """Learning rate of the new word's vectors, before the schedule."""
        if self.embedding.learning_rate is not None:
            return self.embedding.learning_rate
        alone = self.network.kind == "embedding" and self.training.learning_rate is not None
        return self.learning_rate if alone or self.training.optimizer == "prodigy" else DEFAULT_RATE

    def _check_embedding(self) -> None:
        word, network, settings = self.word, self.network, self.embedding
        if word is None:
            if settings.changed():
                name = settings.changed()[0]
                raise ConfigError(f"embedding.{name} = {show(getattr(settings, name))}: no new word is trained; give embedding.word, or "
                                  'network.kind = "embedding"')
            if self.data.templates is not None and self.data.trigger is None:
                raise ConfigError(f"data.templates = {show(self.data.templates)}: they need a word; give data.trigger or embedding.word")
            return
        if self.data.trigger not in (None, word):
            raise ConfigError(f"data.trigger = {show(self.data.trigger)} and the new word {show(word)}: a rare word's meaning is learned by a network, a new "
                              "word's by its own vectors; give one of the two")
        if settings.norm != "off" and self.training.optimizer == "schedule_free":
            raise ConfigError(f"embedding.norm = {show(settings.norm)}: schedule_free keeps an average whose lengths can't be set; leave it out, or use "
                              "another optimiser")
        if network.kind == "embedding":
            return
        if settings.file == "one" and self.output.form == "peft":
            raise ConfigError('embedding.file = "one": PEFT\'s form has no place for a word; use file = "two", or output.form = "kohya"')
        if settings.file == "two" and word == self.output.name:
            raise ConfigError(f"embedding.word = {show(word)}: the network's file has that name too; choose another output.name, or file = \"one\"")

    @classmethod
    def from_dict(cls, sections: Mapping[str, Any]) -> TrainConfig:
        """The config that {"section": {"key": value}} means; what is missing keeps its default.

        Raises:
            ConfigError: a section, key or value is unknown or out of range.
        """
        if not isinstance(sections, Mapping):
            raise ConfigError(f"the config is {show(sections)}: expected sections {', '.join(_SECTIONS)}")
        parts: dict[str, Any] = {}
        for name, values in sections.items():
            kind = _SECTIONS.get(name)
            if kind is None:
                raise ConfigError(_unknown(f"section [{name}]", str(name), list(_SECTIONS)))
            if not isinstance(values, Mapping):
                raise ConfigError(f"{name} = {show(values)}: expected a section with keys, as in [{name}]")
            for key in values:
                _find_setting(name, key)
            parts[name] = kind(**values)
        return cls(**parts)

    @classmethod
    def from_toml(cls, path: str | Path) -> TrainConfig:
        """The config in a TOML file; relative folders in it are seen from the working folder.

        Raises:
            ConfigError: the file can't be read, is no TOML, or holds something unknown or out of range.
        """
        try:
            text = Path(path).read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise ConfigError(f"config file {path}: {error.strerror or error}; give the path of a TOML file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"config file {path}: byte {error.start} is no UTF-8; save it as UTF-8") from error
        loads = toml_reader()
        try:
            sections = loads(text)
        except ValueError as error:
            raise ConfigError(f"config file {path}: no valid TOML: {' '.join(str(error).split())}") from error
        if "datasets" in sections:
            raise ConfigError(f'config file {path}: is a dataset description of kohya\'s trainers; give it as data.dataset = "{path}" in a config or by --set')
        if "pretrained_model_name_or_path" in _names(sections):
            raise ConfigError(f'config file {path}: holds settings of kohya\'s trainers; the page\'s "Save, load and share settings" makes a config of them')
        try:
            return cls.from_dict(sections)
        except ConfigError as error:
            raise ConfigError(f"config file {path}: {error}") from error

    def set(self, key: str, value: Any) -> TrainConfig:
        """A copy with one value changed: `config.set("training.learning_rate", "1e-4")`; a text is read as a command line's.

        Raises:
            ConfigError: the key is unknown, or the value is of the wrong type or out of range.
        """
        return self.change({key: value})

    def change(self, values: Mapping[str, Any]) -> TrainConfig:
        """A copy with several values changed at once, each as in `set`; what they are together is checked when all are in.

        Raises:
            ConfigError: a key is unknown, a value of the wrong type or out of range, or they contradict each other.
        """
        parts: dict[str, dict[str, Any]] = {}
        for key, value in values.items():
            section, dot, name = key.partition(".")
            if not dot or section not in _SECTIONS:
                raise ConfigError(_unknown_setting(key))
            found = _find_setting(section, name)
            parts.setdefault(section, {})[name] = found.parse(value) if isinstance(value, str) else found.check(value)
        return replace(self, **{section: replace(getattr(self, section), **part) for section, part in parts.items()})

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The whole config as plain values that JSON and TOML can hold; what is left out is None."""
        plain: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
        for item in settings():
            value = getattr(getattr(self, item.section), item.name)
            plain[item.section][item.name] = list(value) if isinstance(value, tuple) else value
        return plain

    def to_toml(self) -> str:
        """The whole config as TOML text; `from_toml` of it is equal to this."""
        lines = []
        for section, values in self.to_dict().items():
            lines += [f"[{section}]"] + [f"{name} = {_toml_value(value)}" for name, value in values.items() if value is not None] + [""]
        return "\n".join(lines)


_SECTIONS: dict[str, type[Section]] = {
    kind.section: kind for kind in (
        ModelSettings, DataSettings, NetworkSettings, EmbeddingSettings, AdapterSettings, TrainingSettings, ValidationSettings, OutputSettings
    )
}


def settings() -> list[Setting]:
    """Every setting of every section, in the order in which a config file lists them."""
    return [item for kind in _SECTIONS.values() for item in section_settings(kind)]


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a config as `from_dict` takes it, for the API's own description."""
    sections = {
        name: {
            "type": "object", "additionalProperties": False, "description": " ".join((kind.__doc__ or "").split()),
            "properties": {item.name: item.json_schema() for item in section_settings(kind)},
        }
        for name, kind in _SECTIONS.items()
    }
    return {"type": "object", "additionalProperties": False, "properties": sections}


def _find_setting(section: str, name: Any) -> Setting:
    """The setting of that name; the error for an unknown one names the nearest."""
    known = {item.name: item for item in section_settings(_SECTIONS[section])}
    if name in known:
        return known[name]
    elsewhere = [item.key for item in settings() if item.name == name]
    if elsewhere and not difflib.get_close_matches(str(name), known, n=1, cutoff=0.8):
        raise ConfigError(f"unknown key {section}.{name}; did you mean {elsewhere[0]}?")
    raise ConfigError(_unknown(f"key {section}.{name}", str(name), list(known), prefix=f"{section}."))


def _names(values: Mapping[str, Any]) -> set[str]:
    """The keys, and those of the tables in it."""
    return {*values, *(key for value in values.values() if isinstance(value, Mapping) for key in value)}


def _unknown_setting(key: str) -> str:
    """The words for a setting whose section is missing or unknown: the key of that name, a near one, or how one is written."""
    near = [item.key for item in settings() if item.name == key.rpartition(".")[2]] or difflib.get_close_matches(key, [item.key for item in settings()], n=1)
    advice = f"did you mean {' or '.join(near)}?" if near else f"expected section.key, as training.steps; sections are {', '.join(_SECTIONS)}"
    return f"unknown setting {show(key)}; {advice}"


def _unknown(what: str, name: str, known: list[str], prefix: str = "") -> str:
    """The words for an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown {what}; " + (f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}")


def _toml_value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, str):
        # JSON's escapes are TOML's too, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value)


def toml_reader() -> Callable[[str], dict[str, Any]]:
    """A TOML parser: Python's own from 3.11 on; the WebUI's Python 3.10 has at least the one inside its pip."""
    for name in ("tomllib", "tomli", "pip._vendor.tomli", "toml"):
        try:
            return importlib.import_module(name).loads
        except ImportError:
            continue
    raise ConfigError("reading a .toml config needs Python 3.11 or the package tomli; install tomli or give the config as JSON through the API")
