"""The user's own presets: small TOML files in a folder of ours, a file each, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnknownPresetError, shown
from ..setting import show
from .config import TrainConfig
from .presets import PRESETS, Preset

_NAME = re.compile(r"[\w(][\w .,·()+-]{0,59}")
_ABOUT = "Your own."
_LEFT_OUT = ("model.checkpoint", "data.folders", "data.dataset", "data.prior_folder", "data.cache_folder", "validation.folder", "output.name", "output.folder",
             "network.start_from", "model.vae")
"""What belongs to one training on one machine, not to a way of training."""


class PresetShelf:
    """All presets: those that come with the program, then the user's own.

    Args:
        folder: of the user's own.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Preset]:
        """Every preset that can be used; own ones by name."""
        found = []
        for path in sorted(self._folder.glob("*.toml")) if self._folder.is_dir() else []:
            with contextlib.suppress(ConfigError):  # of a later version, or edited by hand into something else
                found.append(Preset(path.stem, _ABOUT, values=_changed(TrainConfig.from_toml(path)), own=True))
        return [*PRESETS, *found]

    def find(self, name: str) -> Preset:
        """The preset of that name.

        Raises:
            UnknownPresetError: there is none.
        """
        for preset in self.all():
            if preset.name == name:
                return preset
        raise UnknownPresetError(f"no preset is called {shown(name)}: choose one of the list")

    def save(self, name: str, config: TrainConfig) -> Preset:
        """Writes the way of training that a config describes, without its folders and names, as the preset of that name; an own one is replaced.

        Raises:
            ConfigError: the name can't be a file's, or is that of a preset that comes with the program; the folder can't be written to.
        """
        path = self._path(name)
        preset = Preset(path.stem, _ABOUT, values=_changed(config), own=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            draft.write_text(preset.config().to_toml(), encoding="utf-8")
            os.replace(draft, path)
        except OSError as error:
            raise ConfigError(f"preset {shown(name)} could not be saved in {self._folder}: {error.strerror or error}") from error
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
        return preset

    def delete(self, name: str) -> Preset:
        """Deletes an own preset; gives it as it was.

        Raises:
            ConfigError: it comes with the program, or can't be deleted.
            UnknownPresetError: there is none of that name.
        """
        preset = self.find(name)
        if not preset.own:
            raise ConfigError(f"preset {shown(name)} comes with the program: only your own can be deleted")
        try:
            self._path(name).unlink()
        except OSError as error:
            raise ConfigError(f"preset {shown(name)} could not be deleted: {error.strerror or error}") from error
        return preset

    def _path(self, name: str) -> Path:
        name = name.strip() if isinstance(name, str) else ""
        if not _NAME.fullmatch(name) or name.endswith("."):
            raise ConfigError(f"the preset's name {show(name)}: expected letters, digits and blanks, at most 60")
        if any(preset.name == name for preset in PRESETS):
            raise ConfigError(f"preset {shown(name)} comes with the program: give yours another name")
        return self._folder / f"{name}.toml"


def _changed(config: TrainConfig) -> dict[str, Any]:
    """What differs from the defaults, by key, without what belongs to one training."""
    plain: Mapping[str, Mapping[str, Any]] = config.to_dict()
    default = TrainConfig().to_dict()
    flat = {f"{section}.{name}": value for section, part in plain.items() for name, value in part.items() if value != default[section][name]}
    return {key: value for key, value in flat.items() if key not in _LEFT_OUT}
