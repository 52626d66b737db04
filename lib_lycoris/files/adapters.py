"""T2I-Adapter files: what they hold, told from names and shapes alone, and TencentARC's and diffusers' spellings of the same parameters. Pure text and shapes.

Source: TencentARC/T2I-Adapter, branch SD (c408b05's ldm/modules/encoders/adapter.py) and main (Adapter/models/adapters.py); huggingface/diffusers,
src/diffusers/models/adapter.py (58eb52c).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.adapter_shapes import expected_shapes, read_shape
from lib_lycoris.files.keys import describe_foreign, split_key
from lib_lycoris.files.metadata import read_base_model
from lib_lycoris.files.reader import TensorFile, open_tensor_file
from lib_lycoris.files.regular import open_regular

LAYOUT, BASE_MODEL, PREPROCESSOR, TASK = "lyco_adapter_layout", "ss_base_model_version", "lyco_adapter_preprocessor", "lyco_adapter_task"
"""What our own files say in their metadata; the second is kohya's key."""
RESOLUTION, DOWNSCALE, VALUES = "lyco_adapter_resolution", "lyco_adapter_downscale", "lyco_adapter_preprocessor_values"
TASKS = ("sketch", "keypose", "seg", "depth", "canny", "style", "color", "openpose")
"""What the CoAdapter fuser knows, in the order of its table's rows. Source: TencentARC's ExtraCondition."""

_MARK = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?:style_embedding|spatial_ch_projs\.0\.weight|body\.0\.(?:block1|resnets\.0\.block1|body\.0\.block1|in_conv)\.weight)"
)
_FULL = re.compile(r"body\.(\d+)\.resnets\.(\d+)\.(block[12]\.(?:weight|bias))")
_ENTRY = re.compile(r"body\.(\d+)\.(in_conv\.(?:weight|bias))")
_TYPES = {"full_adapter": "sd", "full_adapter_xl": "sdxl", "light_adapter": "sd"}
_LONGEST_CONFIG = 1_000_000  # bytes
_GUESSES = {task: (task,) for task in TASKS} | {"depth": ("depth", "midas", "zoe"), "color": ("color", "colour"), "seg": ("seg",)}
_GUESSES |= {"sketch": ("sketch", "scribble", "softedge", "soft_edge", "pidi"), "lineart": ("lineart", "line_art")}


@dataclass(frozen=True)
class AdapterFacts:
    """What an adapter file says without its tensors being read.

    Attributes:
        kind: "full", "light", "style" or "fuser".
        layout: which UNet's sizes its maps have: "sd" (SD 1 and 2) or "sdxl"; None for style and fuser.
        base_model: "sd_v1", "sd_v2" or "sdxl_base_v1-0"; None where the file does not say: SD 1 and SD 2 have adapters of the same shapes.
        channels: of each map.
        in_channels: of the picture it takes: 1 (gray) or 3 (RGB).
        downscale: pixels of the picture on a side for each cell of the first map.
        blocks: residual blocks for each map.
        ksize, sk, use_conv: TencentARC's switches: the small kernel, residuals without a convolution of their own, downsampling by convolution.
        width, context, tokens, layers: a style adapter's (or fuser's) own width, the width of what it gives, its count of tokens, its count of layers.
        preprocessor: what its metadata says that pictures are to be prepared with.
        preprocessor_values: that preprocessor's values where they were not its own, as the metadata has them: "low=50, high=150"; None: nothing is said.
        resolution: pixels for which that preprocessor was used, if the metadata says so.
        task: what it goes by, from metadata or the file's name: one of TASKS, "lineart", …; None where neither tells.
        spelling: "tencent" or "diffusers".
    """

    kind: str
    layout: str | None = None
    base_model: str | None = None
    channels: tuple[int, ...] = ()
    in_channels: int = 0
    downscale: int = 0
    blocks: int = 0
    ksize: int = 1
    sk: bool = True
    use_conv: bool = False
    width: int = 0
    context: int = 0
    tokens: int = 0
    layers: int = 0
    preprocessor: str | None = None
    preprocessor_values: str | None = None
    resolution: int | None = None
    task: str | None = None
    spelling: str = "tencent"

    def fits(self, base_model: str | None, channels: Iterable[int] | None = None) -> bool:
        """Whether it is for that base model and (patching.features.feature_channels) for a UNet with these channels; None: not known, does not matter."""
        if base_model is not None:
            if self.base_model is not None and self.base_model != base_model:
                return False
            if self.layout is not None and (self.layout == "sdxl") != base_model.startswith("sdxl"):
                return False
        return channels is None or not self.channels or tuple(channels) == self.channels

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, from which `AdapterFacts(**values)` makes it again."""
        return {**asdict(self), "channels": list(self.channels)}


@dataclass(frozen=True)
class AdapterFile:
    """An adapter file whose structure was read: its facts, and where in the file each parameter of TencentARC's spelling is."""

    path: Path
    facts: AdapterFacts
    keys: dict[str, str]
    file: TensorFile


def read_adapter_facts(path: str | os.PathLike[str]) -> AdapterFacts:
    """What kind of adapter is at `path`; of a safetensors file the header alone is read, of a pickle its structure.

    Raises:
        NetworkFileError: as `open_adapter_file`.
    """
    return open_adapter_file(path).facts


def open_adapter_file(path: str | os.PathLike[str]) -> AdapterFile:
    """The adapter at `path` (a file, or a folder as diffusers saves it), its tensors not yet read.

    Raises:
        NetworkFileError: it can't be read, is damaged, holds something else (which is named), or its parameters do not fit together.
    """
    path = _file_of(Path(path))
    file = open_tensor_file(path)
    try:
        return _arrange(path, file)
    except NetworkFileError as error:
        raise error if str(error).startswith(shown(path)) else NetworkFileError(f"{shown(path)}: {error}") from error


def describe_other(names: Iterable[str]) -> str | None:
    """What a file with these keys is when it is no adapter, and what to do with it; None when nothing known."""
    names = [name for name in names if not name.startswith("__")]
    known = describe_foreign(names)
    if known is not None and "T2I-Adapter" not in known:
        return known
    if any(split_key(name) is not None for name in names):
        return "a LoRA-like network; apply it by its tag in the prompt, <lyco:NAME:1>"
    return None


def guess_task(name: str) -> str | None:
    """What an adapter goes by, guessed from its file's name; None where it tells nothing."""
    lowered = name.lower()
    return next((task for task, words in _GUESSES.items() if any(word in lowered for word in words)), None)


def to_diffusers(names: Iterable[str], facts: AdapterFacts) -> dict[str, str]:
    """diffusers' names of a full or light adapter's parameters, by TencentARC's.

    Raises:
        NetworkFileError: diffusers knows no such adapter.
    """
    plain = facts.sk and not facts.use_conv and facts.ksize == 1
    if facts.kind not in ("full", "light") or (facts.kind == "full" and not plain):
        raise NetworkFileError(f"diffusers has no {facts.kind} adapter{'' if facts.kind != 'full' else ' with such blocks'}; keep TencentARC's spelling")
    renamed = {}
    for name in names:
        parts = name.split(".")
        if parts[0] == "body" and facts.kind == "full":
            level, block = divmod(int(parts[1]), facts.blocks)
            parts = ["body", str(level), *(parts[2:] if parts[2] == "in_conv" else ["resnets", str(block), *parts[2:]])]
        elif parts[0] == "body" and parts[2] == "body":
            parts[2] = "resnets"
        renamed[name] = f"adapter.{'.'.join(parts)}"
    return renamed


def diffusers_config(facts: AdapterFacts) -> dict[str, Any]:
    """The config.json that diffusers wants beside its spelling."""
    kind = "light_adapter" if facts.kind == "light" else "full_adapter_xl" if facts.layout == "sdxl" else "full_adapter"
    channels = list(facts.channels[:-1] if facts.kind == "light" else facts.channels)  # its light one appends the last level itself
    return {"_class_name": "T2IAdapter", "adapter_type": kind, "channels": channels, "downscale_factor": facts.downscale, "in_channels": facts.in_channels,
            "num_res_blocks": facts.blocks}


def make_adapter_metadata(facts: AdapterFacts) -> dict[str, str]:
    """What our own files say of an adapter: all that its tensors leave open."""
    values = {LAYOUT: facts.layout, BASE_MODEL: facts.base_model, PREPROCESSOR: facts.preprocessor, VALUES: facts.preprocessor_values, TASK: facts.task,
              RESOLUTION: facts.resolution, DOWNSCALE: facts.downscale or None}
    return {key: str(value) for key, value in values.items() if value is not None}


def _arrange(path: Path, file: TensorFile) -> AdapterFile:
    prefix = _find_prefix(path, file)
    held = {name[len(prefix):]: name for name in file.names if name.startswith(prefix)}
    spelling = "diffusers" if any(_FULL.fullmatch(name) for name in held) else "tencent"
    names = _tencent_names(held) if spelling == "diffusers" else dict(zip(held, held, strict=True))
    keys = {ours: held[theirs] for ours, theirs in names.items()}
    shapes = {ours: file.shapes[key] for ours, key in keys.items()}
    config = _read_config(path) if spelling == "diffusers" else {}
    facts = AdapterFacts(**read_shape(shapes), spelling=spelling)
    facts = _told(facts, config, file.metadata, shapes)
    facts = replace(facts, base_model=_base_model(facts, file.metadata), task=file.metadata.get(TASK) or guess_task(_telling_name(path)))
    wanted = expected_shapes(facts)
    _check(shapes, wanted)
    return AdapterFile(path, facts, {name: keys[name] for name in wanted}, file)


def _find_prefix(path: Path, file: TensorFile) -> str:
    """What stands before the adapter's own names."""
    other = describe_other(file.names)
    prefixes = {match["prefix"] for name in file.names if (match := _MARK.fullmatch(name))}
    # the blocks within a light adapter's levels look like a full adapter's own
    prefixes = {prefix for prefix in prefixes if not any(prefix.startswith(outer) and re.fullmatch(r"body\.\d+\.", prefix[len(outer):]) for outer in prefixes)}
    if len(prefixes) == 1 and (other is None or "whole checkpoint" in other):
        return prefixes.pop()
    if len(prefixes) > 1:
        listed = ", ".join(shown(prefix or "without a prefix", 60) for prefix in sorted(prefixes))
        raise NetworkFileError(f"{shown(path)} holds {len(prefixes)} adapters ({listed}); save each into a file of its own")
    if other is not None:
        raise NetworkFileError(f"{shown(path)} is no T2I-Adapter but {other}")
    examples = ", ".join(shown(name, 60) for name in file.names[:3]) or "nothing"
    raise NetworkFileError(f"{shown(path)} is no T2I-Adapter that is known here (it holds {examples}); choose a full, light or style adapter, or the fuser")


def _tencent_names(held: Iterable[str]) -> dict[str, str]:
    """diffusers' names by TencentARC's."""
    held = list(held)
    light = "body.0.out_conv.weight" in held
    blocks = 1 + max((int(match[2]) for name in held if (match := _FULL.fullmatch(name)) and match[1] == "0"), default=0)
    names = {}
    for name in held:
        if match := _FULL.fullmatch(name):
            level, block = int(match[1]), int(match[2])
            names[f"body.{level}.body.{block}.{match[3]}" if light else f"body.{level * blocks + block}.{match[3]}"] = name
        elif (match := _ENTRY.fullmatch(name)) and not light:
            names[f"body.{int(match[1]) * blocks}.{match[2]}"] = name
        else:
            names[name] = name
    return names


def _told(facts: AdapterFacts, config: Mapping[str, Any], metadata: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> AdapterFacts:
    """The facts with what config and metadata say on top of what the shapes say; neither is believed where the shapes contradict it."""
    resolution = metadata.get(RESOLUTION, "")
    facts = replace(facts, preprocessor=metadata.get(PREPROCESSOR) or None, preprocessor_values=metadata.get(VALUES) or None,
                    resolution=int(resolution) if resolution.isascii() and resolution.isdigit() and len(resolution) < 6 else None)
    if facts.kind not in ("full", "light"):
        return facts
    taken = shapes["conv_in.weight" if facts.kind == "full" else "body.0.in_conv.weight"][1]
    downscale = metadata.get(DOWNSCALE, config.get("downscale_factor"))
    downscale = int(downscale) if str(downscale).isascii() and str(downscale).isdigit() and len(str(downscale)) < 4 else 0
    if downscale and taken % downscale ** 2 == 0 and config.get("in_channels", taken // downscale ** 2) == taken // downscale ** 2:
        facts = replace(facts, downscale=downscale, in_channels=taken // downscale ** 2)
        layout = metadata.get(LAYOUT, _TYPES.get(str(config.get("adapter_type"))))
        if layout in ("sd", "sdxl") and not facts.use_conv:  # convolutions stand where they stand
            facts = replace(facts, layout=layout)
    elif facts.kind == "light" and facts.spelling == "diffusers":
        facts = replace(facts, layout="sd")  # its light adapter has but this one
    return facts


def _base_model(facts: AdapterFacts, metadata: Mapping[str, str]) -> str | None:
    told = read_base_model(metadata)
    if told is not None and (facts.layout is None or (facts.layout == "sdxl") == told.startswith("sdxl")):
        return told
    if facts.layout == "sdxl":
        return "sdxl_base_v1-0"
    if facts.kind == "style":
        return {768: "sd_v1", 1024: "sd_v2", 2048: "sdxl_base_v1-0"}.get(facts.context)
    return None


def _check(shapes: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    missing = [name for name in wanted if name not in shapes]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise NetworkFileError(f"the adapter's {missing[0]}{more} is missing: the file is a part of one or was made by an unknown program; get it again")
    for name, shape in wanted.items():
        if tuple(shapes[name]) != shape:
            raise NetworkFileError(f"the adapter's {name} has shape {shown(list(shapes[name]))}, {list(shape)} would go with the rest; get the file again")


def _file_of(path: Path) -> Path:
    """The file itself, or the one with the weights in a folder as diffusers saves it."""
    if not path.is_dir():
        return path
    for pattern in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model*.safetensors", "diffusion_pytorch_model*.bin"):
        found = sorted(path.glob(pattern))
        if found:
            return found[0]
    return path  # the error about folders is the reader's


def _telling_name(path: Path) -> str:
    """The name that people gave it: the folder's where the file has diffusers' own."""
    return path.parent.name if path.stem.startswith("diffusion_pytorch_model") else path.stem


def _read_config(path: Path) -> dict[str, Any]:
    """diffusers' config.json beside the file, or nothing where there is none for an adapter."""
    beside = path.with_name("config.json")
    if not beside.is_file():
        return {}
    try:
        with open_regular(beside) as file:
            content = json.loads(file.read(_LONGEST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return {}  # another program's; the weights tell enough
    return content if isinstance(content, dict) and content.get("adapter_type") in _TYPES else {}
