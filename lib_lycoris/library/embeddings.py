"""From a file to a textual inversion: the public opener, and those that are packed with a network."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from lib_lycoris.errors import shown
from lib_lycoris.files.embedding_vectors import ENCODERS, base_of, join_vectors
from lib_lycoris.files.embeddings import read_embedding
from lib_lycoris.networks.network import Network


@dataclass(frozen=True, eq=False)
class Embedding:
    """A textual inversion.

    Attributes:
        name: what its file calls it, else the file's own name.
        vectors: for each text encoder ("clip_l", "clip_h", "clip_g") float32 [n,D].
        metadata: what its file says of it, as text.
        path: the file; None for one that comes from nowhere.
        word: what is typed in a prompt for it.
        step: how many steps it was trained; None where nothing says it.
    """

    name: str
    vectors: dict[str, Tensor]
    metadata: dict[str, str] = field(default_factory=dict)
    path: Path | None = None
    word: str = ""
    step: int | None = None

    @property
    def count(self) -> int:
        """How many vectors a prompt gets for the word."""
        return len(next(iter(self.vectors.values())))

    @property
    def base_model(self) -> str:
        """The base model that has its text encoders: "sd_v1", "sd_v2" or "sdxl_base_v1-0"."""
        return base_of(self.vectors)

    def fits(self, base_model: str) -> bool:
        """Whether it can be used with that base model."""
        return set(self.vectors) == set(ENCODERS.get(base_model, ()))


def open_embedding(path: str | os.PathLike[str], name: str | None = None) -> Embedding:
    """The textual inversion in the file at `path`.

    Read are A1111's .pt, diffusers' .bin and .safetensors, kohya's and OneTrainer's files, pictures that hold one, and one that is packed with a network.

    Args:
        name: which one, where several are packed with a network.

    Raises:
        NetworkFileError: the file can't be read, is damaged, something else, several, not finite, or a pickle that would run code.
    """
    file = read_embedding(path, name)
    return Embedding(file.name, file.vectors, file.metadata, Path(path), file.word, file.step)


def packed_embeddings(network: Network) -> dict[str, Embedding]:
    """The textual inversions that are packed with a network, by name, read now.

    Raises:
        NetworkFileError: one of them is no embedding, or the file changed since it was opened.
    """
    where = network.path or Path("a network")
    found = {}
    for name, parts in network.embeddings.items():
        vectors = join_vectors(f"{shown(where)}: packed embedding {shown(name)}", parts, network.metadata)
        found[name] = Embedding(name, vectors, dict(network.metadata), network.path, name)
    return found

