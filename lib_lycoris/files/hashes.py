"""Fingerprints of network files as other tools compute them, so that their look-ups find our files.

Source: kohya-ss/sd-scripts library/train_util.py (model and legacy hash), AUTOMATIC1111 modules/hashes.py (the "addnet" hash of its infotexts).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from itertools import islice

from torch import Tensor

from lib_lycoris.files.regular import open_regular, unreadable
from lib_lycoris.files.safetensors import serialise

_PIECE = 1 << 20
_LEGACY = slice(0x100000, 0x110000)


def file_hash(path: str | os.PathLike[str]) -> str:
    """sha256 of the whole file, 64 hexadecimal digits.

    Raises:
        NetworkFileError: the file can't be read.
    """
    return _digest(path, 0)


def model_hash(path: str | os.PathLike[str]) -> str:
    """sshs_model_hash: sha256 of a safetensors file's tensors without its header, so that edited metadata keeps it; of any other file sha256 of the whole.

    Raises:
        NetworkFileError: the file can't be read.
    """
    if not os.fspath(path).endswith(".safetensors"):
        return file_hash(path)
    with open_regular(path) as file:
        return _digest(path, 8 + int.from_bytes(file.read(8), "little"))


def short_hash(model_hash: str) -> str:
    """The first 12 digits, as infotexts have them under "Lora hashes"."""
    return model_hash[:12]


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """The sshs_model_hash that the file of these tensors will have, whatever its metadata."""
    digest = hashlib.sha256()
    for piece in islice(serialise(tensors), 1, None):
        digest.update(piece)
    return digest.hexdigest()


def legacy_hash(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """sshs_legacy_hash: 8 digits of sha256 over 64 KiB from 1 MiB on, of a file with these tensors and only the `ss_…` part of the metadata."""
    digest, place = hashlib.sha256(), 0
    for piece in serialise(tensors, {key: value for key, value in metadata.items() if key.startswith("ss_")}):
        digest.update(piece[max(_LEGACY.start - place, 0) : max(_LEGACY.stop - place, 0)])
        place += len(piece)
    return digest.hexdigest()[:8]


def _digest(path: str | os.PathLike[str], start: int) -> str:
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            if start <= os.fstat(file.fileno()).st_size:  # a header that lies about its length leaves nothing to read
                file.seek(start)
                while piece := file.read(_PIECE):
                    digest.update(piece)
    except OSError as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()
