"""Networks that were loaded lately, up to a number of bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.peft import CONFIG_NAME
from lib_lycoris.library.load import read_network
from lib_lycoris.networks.network import Network

_Stamp = tuple["tuple[int, int] | None", ...]


class NetworkCache:
    """Keeps loaded networks in memory, the least recently used ones leaving first; a file that changed is read again. Safe to share between threads."""

    def __init__(self, limit_bytes: int):
        """A cache that holds at most `limit_bytes` bytes of tensors; 0 keeps nothing.

        Raises:
            ConfigError: the limit is below 0.
        """
        if limit_bytes < 0:
            raise ConfigError(f"cache limit {limit_bytes} bytes is below 0; 0 keeps nothing")
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[str, tuple[_Stamp, Network]] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are kept now."""
        with self._lock:
            return sum(network.nbytes for _, network in self._kept.values())

    def load(self, path: str | os.PathLike[str]) -> Network:
        """The network in the file at `path`, from memory where the file is still the one that was read.

        Raises:
            NetworkFileError: as `read_network`; a network that was kept under this path is forgotten.
        """
        key = os.path.realpath(path)
        with self._lock:
            stamp = _stamp(key)
            kept = self._kept.pop(key, None)
            if kept is None or kept[0] != stamp:
                kept = (stamp, read_network(path))  # a copy: it is kept for long, and its file may be overwritten meanwhile
            if kept[1].nbytes <= self.limit_bytes:
                self._kept[key] = kept
            self._shrink()
            return kept[1]

    def clear(self) -> None:
        """Forgets all networks."""
        with self._lock:
            self._kept.clear()

    def _shrink(self) -> None:
        while self.nbytes > self.limit_bytes:
            self._kept.popitem(last=False)


def _stamp(path: str) -> _Stamp:
    """When file and PEFT config were changed, and how long they are."""
    return tuple(_state(each) for each in (Path(path), Path(path).with_name(CONFIG_NAME)))


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
