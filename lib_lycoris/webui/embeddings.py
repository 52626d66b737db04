"""Textual inversions in the WebUI's own database: those of our folder, those of its folder that it can't read itself, and those packed with networks."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modules import sd_hijack, shared
from modules.textual_inversion import textual_inversion

from lib_lycoris.errors import NetworkFileError, shown
from lib_lycoris.files.embedding_vectors import WIDTHS
from lib_lycoris.generation import MODELS
from lib_lycoris.library.embedding_shelf import EmbeddingShelf
from lib_lycoris.library.embeddings import Embedding

from . import host

_BASES = {WIDTHS["clip_l"]: "sd_v1", WIDTHS["clip_h"]: "sd_v2", WIDTHS["clip_l"] + WIDTHS["clip_g"]: "sdxl_base_v1-0"}
"""The base model by the width of what the host calls an embedding's shape."""


def own_folder() -> Path:
    """Our folder for embeddings, beside the host's own."""
    return Path(shared.models_path) / "embeddings"


def folders() -> list[Path]:
    """The folders that hold embeddings, ours first."""
    return [own_folder(), host.embedding_folder()]


def _alone(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, run by one thread at a time: a checkpoint is loaded in another."""

    @functools.wraps(method)
    def run(self: Embeddings, *arguments: Any) -> Any:
        with self._lock:
            return method(self, *arguments)

    return run


class Embeddings:
    """What of the host's embeddings is ours. The host empties its database whenever its folder changed or a model was loaded: `ensure` puts ours in again.

    Attributes:
        shelf: all embeddings on disk, the host's too.
    """

    def __init__(self) -> None:
        self.shelf = EmbeddingShelf(folders, self._forget)
        self._files: dict[str, Any] = {}
        self._packed: dict[str, Any] = {}
        self._wanted: dict[str, Embedding] = {}
        self._seen: dict[str, Any] = {}
        self._lock = threading.RLock()

    @_alone
    def ensure(self) -> bool:
        """Registers what is on disk and what the host lacks; whether any embedding, the host's included, is another than before.

        The host keeps encoded prompts by their text, whatever the embeddings are that they name.
        """
        db, model = _database(), host.loaded_model()
        if model is None:
            return False
        theirs = {name for name, held in _held(db).items() if held is not self._files.get(name) and held is not self._packed.get(name)}
        before, self._files = self._files, {}
        for word, path in self.shelf.words(but=theirs).items():
            try:
                found = self.shelf.load(path)
            except NetworkFileError:  # told when a prompt names it
                continue
            if word in theirs:
                continue
            known = before.get(word)
            if known is None or known.lyco_source is not found:
                known = _make(found, word)
            self._files[word] = known
        for name, held in before.items():
            if self._files.get(name) is not held:
                _remove(db, model, name, held)
        for name, held in self._files.items():
            _put(db, model, name, held)
        was, self._seen = self._seen, {name: held for name, held in _held(db).items() if held is not self._packed.get(name)}
        return was.keys() != self._seen.keys() or any(was[name] is not held for name, held in self._seen.items())

    @_alone
    def put_on(self, packed: Mapping[str, Embedding]) -> None:
        """Registers what is packed with the networks that are on, in place of what was; a word that a file has stays the file's."""
        self.take_off()
        self._wanted = dict(packed)
        self.renew()

    @_alone
    def renew(self) -> None:
        """Registers what is packed with the networks that are on where its word is free now.

        The built-in Lora extension may have had the word from a picture before, and takes it away after we were called and before prompts are encoded.
        """
        db, model = _database(), host.loaded_model()
        for word, found in self._wanted.items():
            if model is not None and word not in _held(db):
                made = self._packed.get(word) or _make(found, word, packed=True)
                self._packed[word] = made
                _put(db, model, word, made)

    @_alone
    def take_off(self) -> None:
        """Takes what is packed with networks out of the database, where it is still there."""
        packed, self._packed, self._wanted = self._packed, {}, {}
        model = host.loaded_model()
        for word, held in packed.items():
            if model is not None:
                _remove(_database(), model, word, held)

    @_alone
    def give_back(self) -> None:
        """Registers what is packed with the built-in extension's networks and was left alone because ours had its word when they were put on.

        It looks before us where a batch has its tag and no longer ours.
        """
        db, model = _database(), host.loaded_model()
        for word, held in host.waiting_words():
            if model is not None and word not in _held(db):
                held.loaded = db.expected_shape in (-1, held.shape)  # by this it takes it away again itself
                _put(db, model, word, held)

    @_alone
    def clear(self) -> None:
        """Takes everything of ours out."""
        self.take_off()
        files, self._files = self._files, {}
        model = host.loaded_model()
        for word, held in files.items():
            if model is not None:
                _remove(_database(), model, word, held)

    def problems(self, prompts: Iterable[str]) -> list[str]:
        """Why words that these prompts name can't stand for their embeddings, or hide a word of the language, a line each."""
        text, db, model = "\n".join(prompts).lower(), _database(), host.loaded_model()
        if model is None or not text.strip():
            return []
        lines = []
        for name, held in db.skipped_embeddings.items():
            if _names(text, name):
                lines.append(f"lyco: embedding {shown(name)!r} is {_kind(held.shape)}, the checkpoint is {_kind(db.expected_shape)}: "
                             "its name was read as plain words")
        for name in {**self._files, **self._packed}:
            if name in db.word_embeddings and _names(text, name) and len(model.cond_stage_model.tokenize([name])[0]) == 1:
                lines.append(f"lyco: embedding {shown(name)!r} has the name of a word that is a token already and stands for it: "
                             "rename its file if you mean the word")
        return lines + [f"lyco: {problem}: its name was read as plain words" for word, problem in self.shelf.problems().items() if _names(text, word)]

    @_alone
    def _forget(self, path: Path) -> None:
        """Takes what was read from that file, which is gone, out of the host's database."""
        db, model = _database(), host.loaded_model()
        for word, held in list(_held(db).items()):
            if model is not None and getattr(held, "filename", None) == str(path):
                _remove(db, model, word, held)
                self._files.pop(word, None)


def _database() -> Any:
    return sd_hijack.model_hijack.embedding_db


def _held(db: Any) -> dict[str, Any]:
    """Every embedding that the host knows, those that don't fit the checkpoint included."""
    return {**db.skipped_embeddings, **db.word_embeddings}


def _make(found: Embedding, word: str, packed: bool = False) -> Any:
    """The host's own record of an embedding; one of a file of its own has a hash, which the host writes into infotexts."""
    data = dict(found.vectors) if len(found.vectors) > 1 else {"emb_params": next(iter(found.vectors.values()))}
    made = textual_inversion.create_embedding_from_data(data, word, filename=str(found.path), filepath=None if packed else str(found.path))
    made.filename = made.filename or str(found.path)
    made.step, made.lyco_source = found.step, found
    return made


def _put(db: Any, model: Any, word: str, held: Any) -> None:
    """Registers an embedding, or notes that it does not fit, as the host does with its own files."""
    if db.expected_shape not in (-1, held.shape):
        db.skipped_embeddings[word] = held
    elif db.word_embeddings.get(word) is not held:
        db.register_embedding(held, model)


def _remove(db: Any, model: Any, word: str, held: Any) -> None:
    """Takes an embedding out again, if it is still this one."""
    if db.skipped_embeddings.get(word) is held:
        del db.skipped_embeddings[word]
    if db.word_embeddings.get(word) is held:
        db.register_embedding_by_name(None, model, word)


def _names(text: str, word: str) -> bool:
    """Whether a text in small letters names the word, not only as a part of another."""
    return bool(word) and re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text) is not None


def _kind(shape: int) -> str:
    base = _BASES.get(shape)
    return f"for {MODELS[base]}" if base else f"{shape} wide"


def prompts_of(p: Any) -> Sequence[str]:
    """The prompts and negative prompts that the host encodes next."""
    return [str(text) for name in ("prompts", "negative_prompts", "hr_prompts", "hr_negative_prompts") for text in getattr(p, name, None) or ()]
