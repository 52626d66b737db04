"""Which folders a training that was asked for over the network may read and write; for whoever sits at the machine only writing is fenced in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, shown
from .config import TrainConfig
from .templates import LISTS

Folders = Callable[[], Sequence[Path]]


@dataclass(frozen=True)
class Fence:
    """What page and API may name.

    Attributes:
        writable: folders of ours: networks, and what belongs to them.
        readable: folders of pictures, and whatever else is read; None: any, as only this machine's own user can ask.
        advice: what to do where a folder to be read is none of these.
    """

    writable: Folders
    readable: Folders | None = None
    advice: str = ""

    def check(self, config: TrainConfig) -> None:
        """Returns where every path of the config is allowed.

        Raises:
            ConfigError: one is not.
        """
        self._check_written("output.folder", config.output.folder)
        if config.data.cache_folder is not None:
            self._check_written("data.cache_folder", config.data.cache_folder)
        if config.data.prior_prompt is not None and config.data.prior_folder is not None:  # missing class pictures are written there
            self._check_written("data.prior_folder", config.data.prior_folder, also=self.readable)
        for key, path in read_paths(config):
            self.check_read(key, path)

    def check_read(self, key: str, path: str | Path) -> None:
        """Returns where that path may be read.

        Raises:
            ConfigError: it may not.
        """
        if self.readable is None or inside(Path(path), [*self.readable(), *self.writable()]):
            return
        raise ConfigError(f"{key} = {shown(path)}: this folder is not allowed, as others can reach this server; {self.advice}")

    def _check_written(self, key: str, path: str, also: Folders | None = None) -> None:
        folders = list(self.writable())
        if also is None and self.readable is None and key == "data.prior_folder":
            return
        if not inside(Path(path), [*folders, *(also() if also else ())]):
            raise ConfigError(f"{key} = {shown(path)}: networks are written to {', '.join(str(folder) for folder in folders)} and folders in there alone; "
                              "leave it out, or add the folder to those with networks")


def read_paths(config: TrainConfig) -> list[tuple[str, str]]:
    """(key, path) of all that a training reads, but the checkpoint, which the host finds by its own list."""
    single = (
        ("data.dataset", config.data.dataset), ("data.prior_folder", config.data.prior_folder), ("validation.folder", config.validation.folder),
        ("network.start_from", config.network.start_from), ("embedding.start_from", config.embedding.start_from),
        ("data.templates", None if config.data.templates in LISTS else config.data.templates),
    )
    return [*(("data.folders", folder) for folder in config.data.folders), *((key, path) for key, path in single if path is not None), *_controls(config)]


def _controls(config: TrainConfig) -> list[tuple[str, str]]:
    """Where control pictures are looked for: within each folder of pictures, and by the path itself, where there is such a folder."""
    named = config.data.control_folder
    if named is None:
        return []
    itself = [named] if Path(named).expanduser().is_absolute() or Path(named).is_dir() else []
    return [("data.control_folder", path) for path in (*(str(Path(folder) / named) for folder in config.data.folders), *itself)]


def inside(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path lies in one of the folders, with every link and ".." followed."""
    real = path.expanduser().resolve()
    return any(real.is_relative_to(folder.expanduser().resolve()) for folder in folders)
