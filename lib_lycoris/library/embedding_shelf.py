"""The textual inversions on disk: by the word that names them in a prompt, listed, looked into, remarked on, renamed, deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lib_lycoris.errors import NetworkFileError, UnknownNetworkError, shown
from lib_lycoris.files.embedding_pictures import read_picture
from lib_lycoris.files.embeddings import is_embedding
from lib_lycoris.files.reader import open_tensor_file
from lib_lycoris.library.catalogue import near_names
from lib_lycoris.library.embeddings import Embedding, open_embedding
from lib_lycoris.library.keeping import Keeper, size_of
from lib_lycoris.library.walk import walk_folders

TENSORS = (".safetensors", ".pt", ".bin")
PICTURES = (".png", ".webp", ".jxl", ".avif")


@dataclass(frozen=True)
class _Known:
    """What a file turned out to be when it had this stamp: an embedding, or one that can't be used; neither: something else.

    Attributes:
        told: whether the file tells that it is an embedding; one that can't be read at all may be anything.
    """

    stamp: tuple[int, int]
    embedding: Embedding | None = None
    problem: str | None = None
    told: bool = False


class EmbeddingShelf:
    """The textual inversions in some folders. Files there that are something else, networks or previews, are passed over.

    Args:
        folders: gives the folders of now, those that go before others first; outside of them nothing is written or deleted.
        gone: told of a file that was deleted or renamed.
    """

    def __init__(self, folders: Callable[[], Sequence[Path]], gone: Callable[[Path], None] = lambda path: None) -> None:
        self._keeper, self._gone = Keeper("embeddings", folders, (*TENSORS, ".ckpt")), gone
        self.kind, self.trash, self.folders, self.restore = self._keeper.kind, self._keeper.trash, self._keeper.folders, self._keeper.restore
        self._folders = folders
        self._known: dict[Path, _Known] = {}

    def words(self, but: Collection[str] = ()) -> dict[str, Path]:
        """{word: file} of every embedding on disk now, in alphabetical order; of two with one word the first folder's.

        Args:
            but: words that somebody else knows already: files of such a name are not looked at.
        """
        found: dict[str, Path] = {}
        for path in self._files():
            if path.stem in but:
                continue
            known = self._look_at(path)
            if known.embedding is not None or known.problem is not None:
                found.setdefault(known.embedding.word if known.embedding else path.stem, path)
        return dict(sorted(found.items(), key=lambda item: item[0].lower()))

    def vectors(self) -> Mapping[str, Mapping[str, Tensor]]:
        """{word: vectors} of every embedding on disk now; a file that can't be used raises its NetworkFileError when its word is looked up."""
        return _Vectors(self, self.words())

    def load(self, path: Path) -> Embedding:
        """The embedding in a file of this shelf, read anew only where the file changed.

        Raises:
            NetworkFileError: it can't be used.
        """
        known = self._look_at(path)
        if known.embedding is None:
            raise NetworkFileError(known.problem or f"{shown(path)} is no embedding any more: it changed; look again")
        return known.embedding

    def problems(self) -> dict[str, str]:
        """{word: why it can't be used} of the embeddings that were looked at when `words` was asked last."""
        return {path.stem: known.problem for path, known in self._known.items() if known.problem is not None and path.exists()}

    def find(self, name: str) -> Path:
        """The file that a word means; a path below a folder, with or without its ending, will do too.

        Raises:
            UnknownNetworkError: there is none; the message names near ones.
        """
        words, wanted = self.words(), name.strip().replace("\\", "/")
        if wanted in words:
            return words[wanted]
        for path in words.values():
            if any(wanted in (below, os.path.splitext(below)[0]) for below in self._below(path)):
                return path
        near = near_names(wanted, words)
        places = ", ".join(shown(folder) for folder in self._folders()) or "no folder"
        hint = f"near: {', '.join(shown(word, 60) for word in near)}" if near else f"{len(words)} others are there"
        raise UnknownNetworkError(f"no embedding is called {shown(wanted)!r} in {places} ({hint}); check the name or put the file there")

    def rows(self) -> list[dict[str, Any]]:
        """Every embedding on disk now, in plain values."""
        return [self._row(word, path) for word, path in self.words().items()]

    def look_into(self, name: str) -> dict[str, Any]:
        """A row, the file's metadata, the lengths of its vectors, and the user's remarks.

        Raises:
            UnknownNetworkError: there is no such embedding.
        """
        path = self.find(name)
        found = self._look_at(path).embedding
        seen = {**self._row(found.word if found else path.stem, path), **self._keeper.about(path), "metadata": found.metadata if found else {}}
        if found is not None:
            seen["norms"] = {encoder: [round(float(norm), 6) for norm in vectors.norm(dim=1)] for encoder, vectors in found.vectors.items()}
        return seen

    describe = look_into
    """An embedding is small: to look at it whole takes no longer."""

    def picture(self, name: str) -> Any:
        """The preview (PIL, RGB) of an embedding; None where it has none that can be read."""
        return self._keeper.picture(lambda: self.find(name))

    def remark(self, name: str, changes: dict[str, Any]) -> dict[str, Any]:
        """The remarks on an embedding after these changes.

        Raises:
            LycoError: no such embedding, a key or value that no remark can have, a file that may not be written.
        """
        return {"name": name, "remarks": self._keeper.remark(self.find(name), changes)}

    def set_preview(self, name: str, data: bytes) -> dict[str, Any]:
        """Makes a picture (a file's bytes) the embedding's preview; an older one goes to the trash.

        Raises:
            LycoError: no such embedding, no picture that can be read, or it can't be written.
        """
        return {"name": name, "preview": str(self._keeper.set_preview(self.find(name), name, data))}

    def rename(self, name: str, new: str) -> dict[str, Any]:
        """Gives an embedding's file another name, by which a prompt names it from now on: {"name": the word, "renamed": {old file name: new one}}.

        Raises:
            LycoError: no such embedding, a name that can't be or is taken, or it can't be renamed.
        """
        path = self.find(name)
        now, renamed = self._keeper.rename(path, new)
        self._gone(path)
        found = self._look_at(now).embedding
        return {"name": found.word if found else now.stem, "renamed": renamed}

    def delete(self, name: str) -> dict[str, Any]:
        """Moves the embedding, and what belongs to it alone, to the trash: {"deleted": file names, "entry": what the trash knows it by}.

        Raises:
            LycoError: no such embedding, it lies outside of the folders, or it may not be deleted.
        """
        path = self.find(name)
        deleted = self._keeper.delete(path, name)
        self._gone(path)
        return deleted

    def _row(self, word: str, path: Path) -> dict[str, Any]:
        known = self._look_at(path)
        found = known.embedding
        return {
            "name": word, "tag": word, "file": str(path), **size_of(path), "kind": "embedding" if known.told else None,
            "vectors": found.count if found else None, "base_model": found.base_model if found else None, "step": found.step if found else None,
            "title": found.name if found else None, "problem": known.problem,
        }

    def _below(self, path: Path) -> Iterator[str]:
        """The file's path below each folder that holds it."""
        for folder in self._folders():
            if path.is_relative_to(folder):
                yield path.relative_to(folder).as_posix()

    def _files(self) -> Iterator[Path]:
        for root in self._folders():
            for folder, files in walk_folders(root):
                stems = {os.path.splitext(file)[0] for file in files if file.lower().endswith(TENSORS)}
                for file in sorted(files, key=lambda file: (file.lower().endswith(PICTURES), file)):
                    stem, ending = os.path.splitext(file.lower())
                    preview = ending in PICTURES and (stem.endswith(".preview") or os.path.splitext(file)[0] in stems)
                    if ending in (*TENSORS, *PICTURES) and not preview and os.path.isfile(os.path.join(folder, file)):
                        yield Path(folder, file)

    def _look_at(self, path: Path) -> _Known:
        try:
            status = path.stat()
        except OSError:
            return _Known((0, 0))
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known.stamp != stamp:
            known = self._known[path] = _read(path, stamp)
        return known


class _Vectors(Mapping[str, Mapping[str, Tensor]]):
    """Vectors by word, read when they are asked for."""

    def __init__(self, shelf: EmbeddingShelf, words: dict[str, Path]) -> None:
        self._shelf, self._words = shelf, words

    def __getitem__(self, word: str) -> Mapping[str, Tensor]:
        return self._shelf.load(self._words[word]).vectors

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)

    def __len__(self) -> int:
        return len(self._words)


def _read(path: Path, stamp: tuple[int, int]) -> _Known:
    told = False
    try:
        if path.suffix.lower() in PICTURES:
            told = read_picture(path) is not None
        else:
            told = is_embedding(open_tensor_file(path))
        return _Known(stamp, open_embedding(path), told=True) if told else _Known(stamp)
    except NetworkFileError as error:
        return _Known(stamp, problem=str(error), told=told)
