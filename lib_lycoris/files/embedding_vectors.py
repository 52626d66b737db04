"""Which of a file's tensors are an embedding's vectors, and for which text encoder; pure shapes and values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.files.metadata import read_base_model

WIDTHS = {"clip_l": 768, "clip_h": 1024, "clip_g": 1280}
"""What each text encoder's vectors are wide, in the models that people have; a model made for tests may be narrower."""
ENCODERS = {"sd_v1": ("clip_l",), "sd_v2": ("clip_h",), "sdxl_base_v1-0": ("clip_l", "clip_g")}
"""The text encoders of each base model, in the order in which it has them."""
MOST = 75
"""Vectors that fit into a chunk of a prompt; no program can use more."""

_PARAM = "string_to_param."
_NAMED = re.compile(r"(clip_[lgh])(?:\..+)?")
_NUMBERED = re.compile(r"(?:text_encoders?|te)_?(\d?)(?:\..+)?")
_OTHER_BASES = re.compile(r"(t5|t5xxl|llama|gemma|qwen\w*|mistral)(?:\..+)?")
_OUTPUT = re.compile(r"(clip_[lgh]|t5|llama|gemma|em[bp]_params)_out")  # OneTrainer's, which are added behind the text encoder and which it alone applies
_GENERIC = frozenset({"emb_params", "*", "tensor", "embedding", "embeddings", "emb", "weight", "vec", "vector", "vectors", "param", "parameter"})


def join_vectors(path: object, parts: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """Vectors by text encoder, float32 [n,D], of tensors named as files name them: "emb_params", "string_to_param.*", "clip_l", …

    Args:
        path: for error messages.
        metadata: of the file, which may say for which base model it is.

    Raises:
        NetworkFileError: as `read_embedding`.
    """
    chosen = choose_keys(path, {name: tensor.shape for name, tensor in parts.items()})
    return settle_vectors(path, {encoder: [parts[key] for key in keys] for encoder, keys in chosen.items()}, metadata or {})


def check_vectors(vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The vectors as files hold them: detached, on the CPU, contiguous, float32 [n,D].

    Raises:
        ConfigError: no known set of text encoders, no vectors, more than a prompt's chunk takes, different numbers of them, or values that are not finite.
    """
    if tuple(sorted(vectors)) not in {tuple(sorted(encoders)) for encoders in ENCODERS.values()}:
        raise ConfigError(f"vectors for {', '.join(map(shown, vectors)) or 'nothing'}: known are clip_l (SD 1), clip_h (SD 2), clip_l and clip_g (SDXL)")
    problem = _problem(vectors)
    if problem is not None:
        raise ConfigError(f"embedding: {problem}")
    return {encoder: vectors[encoder].detach().to("cpu", torch.float32).contiguous() for encoder in sorted(vectors, reverse=True)}


def base_of(vectors: Mapping[str, object]) -> str:
    """The base model that has these text encoders."""
    return next((base for base, encoders in ENCODERS.items() if set(encoders) == set(vectors)), "sdxl_base_v1-0")


def is_vectors(name: str) -> bool:
    """Whether a key says that its tensor is an embedding's vectors."""
    return name.startswith(_PARAM) or name == "emb_params" or _NAMED.fullmatch(name) is not None


def is_title(key: str) -> bool:
    """Whether a file's only key is the embedding's own name, as diffusers has it."""
    return bool(key) and not key.startswith(_PARAM) and key.rpartition(".")[2] not in _GENERIC and not _NAMED.fullmatch(key)


def choose_keys(path: object, shapes: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """For each text encoder the keys whose tensors, one below the other, are its vectors; "" stands for the only one, which its width will tell.

    Args:
        path: for error messages.
        shapes: of the file's tensors, by key.

    Raises:
        NetworkFileError: there are none, or those of several embeddings, or of a base model that is unknown here.
    """
    names = [name for name in shapes if not _OUTPUT.fullmatch(name)]
    if not names:
        _refuse(path, "no vectors: choose a textual inversion's .pt, .bin, .safetensors or picture")
    params = [name for name in names if name.startswith(_PARAM)]
    if params:
        if len(params) > 1:
            _refuse(path, f"{len(params)} embeddings ({listed(params)}): save each as a file of its own")
        return {"": params}
    others = [name for name in names if _OTHER_BASES.fullmatch(name)]
    if others:
        _refuse(path, f"an embedding for another base model (it has vectors for {listed(others)}): SD 1, SD 2 and SDXL are known here")
    named = {match[1]: [name] for name in names if (match := _NAMED.fullmatch(name))}
    if named:
        if set(named) not in map(set, ENCODERS.values()):
            _refuse(path, f"vectors for {' and '.join(named)} alone: SD 1 has clip_l, SD 2 clip_h, SDXL clip_l and clip_g; get the whole embedding")
        return named
    if "emb_params" in names:
        return {"": ["emb_params"]}
    if len(names) == 1:
        return {"": names}
    pair = _pair(names, shapes)
    if pair is not None:
        return pair
    joined = _numbered_tokens(names)
    if joined is not None:
        return {"": joined}
    _refuse(path, f"{len(names)} tensors ({listed(names)}), of which none is known as an embedding's: save each embedding as a file of its own")


def _pair(names: Sequence[str], shapes: Mapping[str, Sequence[int]]) -> dict[str, list[str]] | None:
    """SDXL's two text encoders, told by their widths or by their numbers: "text_encoders_0" and "_1", "text_encoder" and "text_encoder_2", "te1" and "te2"."""
    if len(names) != 2:
        return None
    by_width = {shapes[name][-1]: name for name in names if shapes[name]}
    if set(by_width) == {WIDTHS["clip_l"], WIDTHS["clip_g"]}:
        return {encoder: [by_width[WIDTHS[encoder]]] for encoder in ("clip_l", "clip_g")}
    numbered = sorted((match[1], name) for name in names if (match := _NUMBERED.fullmatch(name)))
    return {"clip_l": [numbered[0][1]], "clip_g": [numbered[1][1]]} if len(numbered) == 2 else None


def _refuse(path: object, what: str) -> NoReturn:
    raise NetworkFileError(f"{shown(path)} holds {what}")


def _numbered_tokens(names: Sequence[str]) -> list[str] | None:
    """The keys in order where they are one token's vectors as diffusers spells them: "<a>", "<a>_1", "<a>_2", …"""
    first = min(names, key=len)
    wanted = [first, *(f"{first}_{place}" for place in range(1, len(names)))]
    return wanted if sorted(wanted) == sorted(names) else None


def settle_vectors(path: object, found: Mapping[str, Sequence[Tensor]], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """The chosen tensors as float32 [n,D] by text encoder.

    Raises:
        NetworkFileError: their shapes, widths, numbers or values are no embedding's.
    """
    vectors = {}
    for encoder, tensors in found.items():
        rows = [_rows(path, tensor) for tensor in tensors]
        if len({row.shape[1] for row in rows}) > 1:
            _refuse(path, f"vectors of different widths ({', '.join(str(row.shape[1]) for row in rows)}) in one embedding; get it again")
        stacked = torch.cat(rows)
        vectors[encoder or _encoder_of(stacked.shape[1], metadata)] = stacked
    problem = _problem(vectors)
    if problem is not None:
        raise NetworkFileError(f"{shown(path)}: {problem}")
    return vectors


def _rows(path: object, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        _refuse(path, f"whole numbers ({tensor.dtype}) where an embedding has vectors; get it again")
    shape = plain_shape(tensor.shape)
    if len(shape) != 2:
        _refuse(path, f"a tensor of shape {list(tensor.shape)}, an embedding's is [vectors, width]: choose a textual inversion's file")
    return tensor.reshape(shape).to(torch.float32).contiguous()


def plain_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """[n,D] for [D], [n,D] and [1,n,D]."""
    shape = tuple(shape)
    return (1, *shape) if len(shape) == 1 else shape[1:] if len(shape) == 3 and shape[0] == 1 else shape


def _encoder_of(width: int, metadata: Mapping[str, str]) -> str:
    """The text encoder of the only vectors of a file: told by their width, or of a width that no known model has by the metadata."""
    known = {wide: encoder for encoder, wide in WIDTHS.items()}
    return known.get(width) or ("clip_h" if read_base_model(metadata) == "sd_v2" else "clip_l")


def _problem(vectors: Mapping[str, Tensor]) -> str | None:
    """Why these can't be an embedding's vectors, in words."""
    known = {wide: encoder for encoder, wide in WIDTHS.items()}
    for encoder, tensor in vectors.items():
        if tensor.ndim != 2 or not tensor.shape[1]:
            return f"the vectors for {encoder} have shape {list(tensor.shape)}, [vectors, width] is needed; get it again"
        if not tensor.shape[0]:
            return f"it holds zero vectors for {encoder}: its training saved nothing; get it again or train it anew"
        if tensor.shape[0] > MOST:
            return f"it holds {tensor.shape[0]} vectors, and a chunk of a prompt has room for {MOST}; use one with fewer"
        if known.get(tensor.shape[1], encoder) != encoder:
            return (f"its vectors for {encoder} are {tensor.shape[1]} wide, as those for {known[tensor.shape[1]]} are ({encoder}: {WIDTHS[encoder]}); "
                    "sd-scripts' last file of a run can be spoilt so, then take the one of its last epoch or step")
        if not torch.isfinite(tensor).all():
            return f"its vectors for {encoder} hold values that are not finite (NaN or infinite): its training failed; take an earlier step's file"
    if set(vectors) == {"clip_g"}:
        return "it has vectors 1280 wide alone, SDXL's second text encoder's: SDXL needs clip_l beside clip_g; get the whole embedding"
    counts = {encoder: len(tensor) for encoder, tensor in vectors.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} for {encoder}" for encoder, count in counts.items())
        return f"it holds different numbers of vectors ({listed}), a word has the same for both text encoders; get it again"
    return None


def listed(names: Iterable[object]) -> str:
    """The first five names for a one-line message, and how many more there are."""
    held = [shown(name, 60) for name in names]
    return ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
