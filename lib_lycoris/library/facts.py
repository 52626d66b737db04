"""What a network file says about itself without its tensors being read: enough for a card or a row of a list."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lib_lycoris.errors import NetworkFileError
from lib_lycoris.files.keys import describe_foreign, split_key
from lib_lycoris.files.metadata import read_base_model
from lib_lycoris.files.safetensors import Header, read_header
from lib_lycoris.networks.kinds import KINDS

VERSION_OF = {"sd_v1": "SD1", "sd_v2": "SD2", "sdxl_base_v1-0": "SDXL"}
"""The base models' short names, which the WebUI's own cards have."""

COVERS = ("ssmd_cover_images", "modelspec.thumbnail")
_RANKED = ("lora_down.weight", "hada_w1_b", "lokr_w2_b", "lokr_w1_b")
_UNTOLD = ("none", "null", "")
_LONGEST = 2000  # characters of a text on a card; metadata may hold a book


@dataclass(frozen=True)
class Facts:
    """What a header says.

    Attributes:
        kind: "LoRA", "LoHa", …; several are joined; None where the tensors tell none.
        rank: of most of its layers.
        base_model: "sd_v1", "sd_v2", "sdxl_base_v1-0".
        alias: the name its trainer gave it.
        trigger_phrase: words that call the concept.
        hash: sshs_model_hash, 64 digits.
        has_metadata, has_cover: whether there is more to look at.
        problem: why it can't be used, in one line.
    """

    kind: str | None = None
    rank: int | None = None
    base_model: str | None = None
    alias: str | None = None
    title: str | None = None
    description: str | None = None
    trigger_phrase: str | None = None
    tags: str | None = None
    hash: str | None = None
    has_metadata: bool = False
    has_cover: bool = False
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, from which `Facts(**values)` makes it again."""
        return asdict(self)


def read_facts(path: Path) -> Facts:
    """The facts of the file at `path`; only a safetensors file has any. A file that can't be read has a problem, nothing is raised."""
    if path.suffix.lower() != ".safetensors":
        return Facts()
    try:
        return make_facts(read_header(path))
    except NetworkFileError as error:
        return Facts(problem=str(error))


def make_facts(header: Header) -> Facts:
    """The facts that stand in a header."""
    metadata = header.metadata
    layers = _group(header)
    kinds = _count_kinds(layers)
    foreign = None if kinds else describe_foreign(header.tensors)
    digest = (metadata.get("sshs_model_hash") or "").lower()
    return Facts(
        kind=" + ".join(title for title, _ in kinds.most_common(3)) or None,
        rank=_rank(layers, metadata),
        base_model=read_base_model(metadata, {key: shape for key, (_, shape) in header.tensors.items()}),
        alias=_text(metadata, "ss_output_name"), title=_text(metadata, "modelspec.title"), description=_text(metadata, "modelspec.description"),
        trigger_phrase=_text(metadata, "modelspec.trigger_phrase"), tags=_text(metadata, "modelspec.tags"),
        hash=digest if len(digest) == 64 and set(digest) <= set("0123456789abcdef") else None,
        has_metadata=bool(metadata), has_cover=any(len(metadata.get(key, "")) > 8 for key in COVERS),
        problem=f"it is no network but {foreign}" if foreign else None,
    )


class FactsCache:
    """Facts by file, read again when the file changed.

    Args:
        recall: gives what `read` gives for a file, from a store that outlives the program, as plain values; None: nothing is stored.
    """

    def __init__(self, recall: Callable[[Path, Callable[[], dict[str, Any]]], Mapping[str, Any]] | None = None) -> None:
        self._recall = recall
        self._known: dict[Path, tuple[tuple[int, int], Facts]] = {}

    def find(self, path: Path) -> Facts:
        """The facts of the file at `path`; of a file that is gone, none."""
        try:
            status = path.stat()
        except OSError:
            return Facts()
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._known.get(path)
        if known is None or known[0] != stamp:
            known = self._known[path] = (stamp, self._read(path))
        return known[1]

    def _read(self, path: Path) -> Facts:
        if self._recall is None:
            return read_facts(path)
        try:
            return Facts(**self._recall(path, lambda: read_facts(path).to_dict()))
        except (TypeError, OSError):  # stored by another version
            return read_facts(path)


def _group(header: Header) -> dict[str, dict[str, tuple[int, ...]]]:
    """For each layer its parameters' shapes."""
    grouped: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, (_, shape) in header.tensors.items():
        parts = split_key(key)
        if parts is not None:
            grouped.setdefault(parts[0], {})[parts[1]] = shape
    return grouped


def _count_kinds(layers: Mapping[str, Mapping[str, object]]) -> Counter[str]:
    titles: Counter[str] = Counter()
    for held, count in Counter(frozenset(held) for held in layers.values()).items():  # layers are of few sorts
        title = next((kind.title for kind in KINDS if not held.isdisjoint(kind.marks)), None)
        if title is not None:
            titles[title] += count
    return titles


def _rank(layers: Mapping[str, Mapping[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> int | None:
    shapes = (next((held[name] for name in _RANKED if name in held), ()) for held in layers.values())
    ranks = Counter(shape[0] for shape in shapes if shape)
    if ranks:
        return ranks.most_common(1)[0][0]
    told = metadata.get("ss_network_dim", "")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 7 else None


def _text(metadata: Mapping[str, str], key: str) -> str | None:
    text = metadata.get(key, "").strip()
    return None if text.lower() in _UNTOLD else text[:_LONGEST]
