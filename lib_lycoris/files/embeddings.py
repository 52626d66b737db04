"""Textual inversions ↔ vectors by text encoder, in every form that tools have written them.

Source: AUTOMATIC1111/stable-diffusion-webui v1.10.1, modules/textual_inversion/textual_inversion.py; huggingface/diffusers 0.42, loaders/textual_inversion.py;
kohya-ss/sd-scripts 48d368fa, train_textual_inversion.py and sdxl_train_textual_inversion.py; Nerogar/OneTrainer 23df3832, modules/modelSaver (formats).
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, NetworkFileError, shown
from lib_lycoris.files.atomic import write_whole
from lib_lycoris.files.embedding_pictures import draw_embedding, is_picture, open_picture
from lib_lycoris.files.embedding_vectors import WIDTHS, base_of, check_vectors, choose_keys, is_title, is_vectors, join_vectors, listed, settle_vectors
from lib_lycoris.files.keys import describe_foreign, split_key
from lib_lycoris.files.reader import TensorFile, open_tensor_file
from lib_lycoris.files.regular import open_regular
from lib_lycoris.files.safetensors import write_tensors

BUNDLE = "bundle_emb."

_SAID = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")


@dataclass(frozen=True, eq=False)
class EmbeddingFile:
    """A textual inversion as its file has it.

    Attributes:
        name: what the file calls it; the file's own name where it calls it nothing.
        word: what is typed in a prompt for it in the WebUI: the file's name without its ending, for a picture the name within.
        vectors: for each text encoder float32 [n,D], the same n for all.
        metadata: what else the file says, as text.
        step: how many steps it was trained; None where the file does not say.
        base_model: "sd_v1", "sd_v2" or "sdxl_base_v1-0".
    """

    name: str
    word: str
    vectors: dict[str, Tensor]
    metadata: dict[str, str]
    step: int | None
    base_model: str


def read_embedding(path: str | os.PathLike[str], name: str | None = None) -> EmbeddingFile:
    """The textual inversion in the file at `path`; its form is told by its content.

    Read are A1111's .pt, diffusers' .bin and .safetensors, kohya's and OneTrainer's files, pictures that hold an embedding, and what is packed into a network
    file under "bundle_emb.". Nothing that a pickle says is executed.

    Args:
        name: which one, where several are packed into a network file.

    Raises:
        NetworkFileError: the file can't be read, is damaged, holds no embedding or several, vectors that don't belong together, or values that are not finite.
    """
    with open_regular(path) as file:
        start = file.read(16)
    if is_picture(start):
        source = open_picture(path)
        word = str(source.remarks.get("name") or "") or _stem(path)
    else:
        source, word = open_tensor_file(path), _stem(path)
    packed = find_packed(source.names)
    if packed and (name is not None or len(packed) == 1):
        return _read_packed(path, source, packed, name)
    if name is not None:
        raise NetworkFileError(f"{shown(path)}: no embedding {shown(name)!r} is packed with it ({listed(packed) or 'none is'}); leave the name out")
    return _read_only(path, source, word)


def _read_packed(path: str | os.PathLike[str], source: TensorFile, packed: Mapping[str, Mapping[str, str]], name: str | None) -> EmbeddingFile:
    name = name if name is not None else next(iter(packed))
    if name not in packed:
        raise NetworkFileError(f"{shown(path)}: no embedding {shown(name)!r} is packed with it; there are {listed(packed)}")
    keys = packed[name]
    values = source.read(keys.values(), check=True)
    vectors = join_vectors(path, {part: values[key] for part, key in keys.items()}, source.metadata)
    return EmbeddingFile(name, name, vectors, dict(source.metadata), _step(source), base_of(vectors))


def _read_only(path: str | os.PathLike[str], source: TensorFile, word: str) -> EmbeddingFile:
    found = _describe_other(source)
    if found is not None:
        raise NetworkFileError(f"{shown(path)} is no embedding but {found}")
    chosen = choose_keys(path, source.shapes)
    values = source.read({key for keys in chosen.values() for key in keys}, check=True)
    vectors = settle_vectors(path, {encoder: [values[key] for key in keys] for encoder, keys in chosen.items()}, source.metadata)
    said = {key: str(source.remarks[key]) for key in _SAID if source.remarks.get(key) not in (None, "")}
    only = next(iter(chosen.values()))[0] if len(chosen) == 1 else ""
    own = str(source.remarks.get("name") or "") or (only if is_title(only) else "")
    return EmbeddingFile(own or word, word, vectors, {**said, **source.metadata}, _step(source), base_of(vectors))


def find_packed(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """The embeddings packed into a network file with these keys: {name: {the rest of the key: key}}."""
    packed: dict[str, dict[str, str]] = {}
    for key in names:
        if key.startswith(BUNDLE):
            name, _, part = key[len(BUNDLE) :].partition(".")
            packed.setdefault(name, {})[part] = key
    return packed


def is_embedding(file: TensorFile) -> bool:
    """Whether this file is a textual inversion, by its keys or by the width of its only tensors."""
    if _describe_other(file) is not None:
        return False
    try:
        chosen = choose_keys("", file.shapes)
    except NetworkFileError:
        return False
    keys = [key for keys in chosen.values() for key in keys]
    return len(chosen) > 1 or any(map(is_vectors, keys)) or all(file.shapes[key] and file.shapes[key][-1] in WIDTHS.values() for key in keys)


def write_embedding(path: str | os.PathLike[str], vectors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a .safetensors that A1111, diffusers, kohya's programs and ComfyUI load; the file appears whole or not at all.

    SD 1 and SD 2 have one tensor, "emb_params" [n,D]; SDXL has "clip_l" and "clip_g".

    Raises:
        ConfigError: the vectors are no embedding's.
        LycoError: the file can't be written.
    """
    checked = check_vectors(vectors)
    tensors = {"emb_params": next(iter(checked.values()))} if len(checked) == 1 else checked
    write_tensors(path, tensors, {"format": "pt", **(metadata or {})})


def write_legacy_embedding(path: str | os.PathLike[str], name: str, vectors: Mapping[str, Tensor], step: int | None = None, checkpoint: str | None = None,
                           checkpoint_name: str | None = None) -> None:
    """Writes A1111's own .pt, in torch's format from before the zip archives: A1111 refuses archives that torch 2.13 and later write.

    Args:
        name: the embedding's; SDXL's form has room for the vectors alone.
        step: how many steps it was trained.
        checkpoint, checkpoint_name: short hash and name of the model that it was trained on.

    Raises:
        ConfigError: the vectors are no embedding's.
        LycoError: the file can't be written.
    """
    checked = check_vectors(vectors)
    # of SDXL's A1111 wants tensors and nothing else
    content = _content(name, next(iter(checked.values())), step, checkpoint, checkpoint_name) if len(checked) == 1 else checked
    pickled = io.BytesIO()
    torch.save(content, pickled, _use_new_zipfile_serialization=False)
    write_whole(path, [pickled.getbuffer()])


def write_embedding_picture(path: str | os.PathLike[str], picture: np.ndarray, name: str, vectors: Mapping[str, Tensor], step: int | None = None,
                            checkpoint: str | None = None, checkpoint_name: str | None = None) -> None:
    """Writes a PNG that A1111 loads as an embedding: in its text, and again in pixels beside the picture.

    Args:
        picture: uint8 [H,W,3], at least 64 pixels high.
        name: what will be typed in a prompt.
        step, checkpoint, checkpoint_name: as for `write_legacy_embedding`.

    Raises:
        ConfigError: the vectors are SDXL's, for which this form has no place, or no embedding's; the picture is another array.
        LycoError: the file can't be written.
    """
    checked = check_vectors(vectors)
    if len(checked) != 1:
        raise ConfigError(f"embedding {shown(name)!r}: a picture has room for the vectors of one text encoder, SDXL has two; share it as .safetensors")
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or picture.shape[0] < 64:
        raise ConfigError(f"picture {picture.dtype} {list(picture.shape)}: uint8 [H,W,3], at least 64 pixels high, is needed to hold an embedding")
    content = _content(name, next(iter(checked.values())), step, checkpoint, checkpoint_name)
    write_whole(path, [draw_embedding(picture, content)])


def _content(name: str, vectors: Tensor, step: int | None, checkpoint: str | None, checkpoint_name: str | None) -> dict[str, Any]:
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": name, "step": step, "sd_checkpoint": checkpoint,
            "sd_checkpoint_name": checkpoint_name}


def pack_embeddings(embeddings: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """{key: tensor} for a network file that is to carry these embeddings, as A1111's own Lora extension, ComfyUI and OneTrainer read them.

    Args:
        embeddings: {name: {text encoder: [n,D]}}.

    Raises:
        ConfigError: a name that no key can hold, or vectors that are no embedding's.
    """
    packed = {}
    for name, vectors in embeddings.items():
        if not name or "." in name:
            raise ConfigError(f"embedding {shown(name)!r}: a name without a dot is needed to pack it with a network (the dot ends it there); rename it")
        checked = check_vectors(vectors)
        parts = {"string_to_param.*": next(iter(checked.values()))} if len(checked) == 1 else checked
        packed.update({f"{BUNDLE}{name}.{part}": tensor for part, tensor in parts.items()})
    return packed


def _describe_other(source: TensorFile) -> str | None:
    """What the file is when it is no embedding, and what to do with it."""
    names = source.names
    packed = find_packed(names)
    if any(split_key(name) is not None for name in names):
        what = f"a network with several embeddings packed with it ({listed(packed)}): name the one you mean" if packed else "a network (LoRA or the like)"
        return f"{what}; open_network reads it, and <lyco:NAME:1> in a prompt applies it"
    if packed:
        return f"several ({listed(packed)}): name the one you mean"
    if {"layer_structure", "activation_func"} & set(source.remarks):
        return "a hypernetwork; put it into models/hypernetworks"
    return None if any(is_vectors(name) for name in names) else describe_foreign(names)


def _step(source: TensorFile) -> int | None:
    values: Iterator[Any] = iter((source.remarks.get("step"), source.metadata.get("ss_steps"), source.metadata.get("step")))
    return next((int(value) for value in values if isinstance(value, int) or (isinstance(value, str) and re.fullmatch(r"\d{1,12}", value))), None)


def _stem(path: str | os.PathLike[str]) -> str:
    return Path(path).stem
