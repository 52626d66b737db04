"""What a textual inversion's file is: its vectors, their lengths, its base model, and what it says of itself."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.embedding_pictures import is_picture
from lib_lycoris.files.embeddings import is_embedding
from lib_lycoris.files.reader import open_tensor_file
from lib_lycoris.files.regular import open_regular
from lib_lycoris.library.embeddings import Embedding, open_embedding


@dataclass(frozen=True)
class EmbeddingReport:
    """All of it; `as_json` is what --json prints."""

    path: Path
    embedding: Embedding
    nbytes: int

    def as_json(self) -> dict[str, object]:
        """One object, with the keys that a network's report has too; norms are the vectors' lengths by text encoder."""
        vectors = self.embedding.vectors
        return {
            "kind": "embedding", "algorithms": [], "base_model": self.embedding.base_model, "layers": 0, "ranks": {},
            "parameters": sum(tensor.numel() for tensor in vectors.values()), "bytes": self.nbytes, "metadata": self.embedding.metadata,
            "norms": {encoder: tensor.norm(dim=1).tolist() for encoder, tensor in vectors.items()}, "file": str(self.path),
            "vectors": {encoder: list(tensor.shape) for encoder, tensor in vectors.items()}, "name": self.embedding.name, "word": self.embedding.word,
            "step": self.embedding.step,
        }


def holds_embedding(path: str | os.PathLike[str]) -> bool:
    """Whether the file is a textual inversion's, or a picture, which is nothing else that could be looked into."""
    if os.path.isdir(path):
        return False
    with open_regular(path) as file:
        if is_picture(file.read(16)):
            return True
    try:
        return is_embedding(open_tensor_file(path))
    except NetworkFileError:
        return False


def inspect_embedding(path: str | os.PathLike[str]) -> EmbeddingReport:
    """The report on the textual inversion at `path`.

    Raises:
        NetworkFileError: it can't be used.
    """
    return EmbeddingReport(Path(path), open_embedding(path), os.path.getsize(path))
