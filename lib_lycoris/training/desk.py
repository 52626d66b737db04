"""What page and routes do around a training: pictures, presets, settings in other forms; plain values in and out, the same in every host."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown
from .command_line import to_command_line
from .config import KINDS, TrainConfig
from .fence import Fence
from .gallery import Shown, draw_picture, list_pictures, small_jpeg
from .job import TrainJob
from .kohya_settings import import_settings
from .own_presets import PresetShelf
from .presets import nested
from .sample_set import SampleSet
from .uploads import add_files, dataset_folder, write_caption

_LARGEST_SIDE = 1024
_OF_CONTROLS = ("control_folder", "preprocessor", "preprocessor_values", "preprocessor_resolution")
"""Keys of [data] that have nothing to do with which pictures there are, and that only adapters know."""


class Desk:
    """The things around a training.

    Args:
        home: our own folder: datasets and presets are in it.
        fence: what may be read and written.
        settle: the config that a mapping means in this host, as `TrainConfig.from_dict` with the host's own defaults.
        job: of the host: whose previews may be shown, and whose config a page takes over.
        sample: takes a kind of network, gives its sample pictures; None: there are none.
    """

    def __init__(
        self, home: Path, fence: Fence, settle: Callable[[Mapping[str, Any]], TrainConfig], job: TrainJob,
        sample: Callable[[str], SampleSet] | None = None,
    ) -> None:
        self._job = job
        self._datasets, self._fence, self._settle, self._sample = home / "datasets", fence, settle, sample
        self._presets = PresetShelf(home / "presets")

    @property
    def has_sample(self) -> bool:
        """Whether there are sample pictures."""
        return self._sample is not None

    # ---------------------------------------------------------------- pictures

    def pictures(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The pictures of a config's [data], each with its caption and what would be cut off; and what looks odd.

        Raises:
            LycoError: a bad config, a folder that can't be used or is not allowed.
        """
        found, problems = self._look(values)
        return {"pictures": [one.to_dict() for one in found], "problems": problems}

    def picture(self, values: Mapping[str, Any], path: str, side: int = 512) -> Any:
        """One of those pictures as a PIL image, small, with what would be cut off in the dark.

        Raises:
            LycoError: it is none of them, or can't be read.
        """
        if not isinstance(side, int) or not 16 <= side <= _LARGEST_SIDE:
            raise ConfigError(f"side = {shown(side)}: expected 16 to {_LARGEST_SIDE} pixels")
        return draw_picture(self._find(values, path), side)

    def thumbnail(self, path: str, side: int = 256) -> bytes:
        """A preview picture as a small JPEG.

        Raises:
            ConfigError: it is no preview of the newest training, or can't be read.
        """
        if path not in [known for _, _, known in self._job.state().previews]:
            raise ConfigError(f"{shown(path)} is no preview picture of the newest training")
        return small_jpeg(Path(path), side)

    def caption(self, values: Mapping[str, Any], path: str, text: str) -> dict[str, Any]:
        """Writes the caption of one of those pictures beside it; gives the picture as it is then.

        Raises:
            LycoError: it is none of them, the text is too long, or the folder can't be written to.
        """
        write_caption(Path(self._find(values, path).path), text)
        return self._find(values, path).to_dict()

    def upload(self, name: str, files: list[tuple[str, bytes]]) -> dict[str, Any]:
        """Puts pictures and captions into the dataset folder of that name among ours; gives {"folder", "written", "problems"}.

        Raises:
            LycoError: the name can't be a folder's, or the folder can't be written to.
        """
        folder = dataset_folder(self._datasets, name)
        written, problems = add_files(folder, files)
        return {"folder": str(folder), "written": [path.name for path in written], "problems": problems}

    def upload_encoded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same for {"name": …, "files": [{"name": …, "data": base64}]}.

        Raises:
            LycoError: as `upload`; or the values are something else.
        """
        files = values.get("files")
        if not isinstance(files, list) or not files or not all(isinstance(file, Mapping) for file in files):
            raise ConfigError('files: expected a list of {"name": …, "data": …} with the content in base64')
        return self.upload(str(values.get("name", "")), [(str(file.get("name", "")), _decoded(file)) for file in files])

    def sample(self, kind: str = KINDS[0]) -> dict[str, Any]:
        """Draws the sample pictures for that kind of network; gives {"folder", "about", "settings": by key, what a training on them has to know too}.

        Raises:
            LycoError: there are none in this host, no such kind, or they can't be written.
        """
        if self._sample is None:
            raise ConfigError("this program has no sample pictures")
        if kind not in KINDS:
            raise ConfigError(f"network.kind = {shown(kind)}: expected one of {', '.join(KINDS)}")
        found = self._sample(kind)
        return {"folder": str(found.folder(self._datasets)), "about": found.about, "settings": dict(found.settings)}

    def _look(self, values: Mapping[str, Any]) -> tuple[list[Shown], list[str]]:
        data = {key: value for key, value in (values.get("data") or {}).items() if key not in _OF_CONTROLS}
        config = TrainConfig.from_dict({"data": data})
        for folder in config.data.folders:
            self._fence.check_read("data.folders", folder)
        if config.data.dataset is not None:
            self._fence.check_read("data.dataset", config.data.dataset)
        found, problems = list_pictures(config.data)
        for one in found:  # a dataset file may name any folder, and a folder hold links
            self._fence.check_read("data.folders", one.path)
        return found, problems

    def _find(self, values: Mapping[str, Any], path: str) -> Shown:
        for one in self._look(values)[0]:
            if one.path == path:
                return one
        raise ConfigError(f"{shown(path)} is none of the dataset's pictures: look at the folder again")

    # ---------------------------------------------------------------- settings

    def config(self) -> dict[str, dict[str, Any]] | None:
        """The config of the training that is under way, or was last; None where there was none."""
        config = self._job.config()
        return None if config is None else config.to_dict()

    def presets(self) -> list[dict[str, Any]]:
        """The presets, those that come with the program first."""
        return [preset.to_dict() for preset in self._presets.all()]

    def save_preset(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Saves a config's way of training, without its folders and names, as an own preset; gives it.

        Raises:
            ConfigError: the name or the config is bad, or the file can't be written.
        """
        return self._presets.save(name, TrainConfig.from_dict(values)).to_dict()

    def delete_preset(self, name: str) -> dict[str, Any]:
        """Deletes an own preset; gives it as it was.

        Raises:
            LycoError: it is not the user's own, or there is none.
        """
        return self._presets.delete(name).to_dict()

    def import_settings(self, text: str) -> dict[str, Any]:
        """Settings of kohya_ss (JSON), sd-scripts (TOML) or our own (TOML), as {"values": by key, "notes": what has no equivalent}.

        Raises:
            ConfigError: the text is none of them.
        """
        own = _own_settings(text)
        if own is not None:
            return {"values": own, "notes": []}
        found = import_settings(text)
        return {"values": dict(found.values), "notes": list(found.notes)}

    def export(self, values: Mapping[str, Any]) -> dict[str, str]:
        """A config as {"toml": a config file, "command": a command line}.

        Raises:
            ConfigError: the config is bad.
        """
        config = self._settle(values)
        return {"toml": config.to_toml(), "command": to_command_line(config)}


def desk_functions(desk: Desk) -> dict[str, Any]:
    """What a page gets of a desk, by the names of `ui.train_page.TrainPage`."""
    return {
        "thumbnail": desk.thumbnail, "pictures": desk.pictures, "picture": desk.picture, "caption": desk.caption, "upload": desk.upload,
        "sample": desk.sample if desk.has_sample else None, "presets": desk.presets, "save_preset": desk.save_preset, "delete_preset": desk.delete_preset,
        "import_settings": desk.import_settings, "export": desk.export, "config": desk.config,
    }


def _own_settings(text: Any) -> dict[str, Any] | None:
    """The settings by key where the text is a config file of ours; None where it is none."""
    from .config import settings, toml_reader

    sections = {setting.section for setting in settings()}
    if not isinstance(text, str) or text.lstrip("\ufeff \r\n").startswith("{"):
        return None
    try:
        plain = toml_reader()(text.lstrip("\ufeff"))
    except ValueError:
        return None
    if not plain or not set(plain) <= sections or not all(isinstance(part, dict) for part in plain.values()):
        return None
    known = {setting.key for setting in settings()}
    flat = {f"{section}.{key}": value for section, part in plain.items() for key, value in part.items()}
    if not set(flat) & known:
        return None
    TrainConfig.from_dict(nested(flat))
    return flat


def _decoded(file: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(str(file.get("data", "")), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigError(f"the content of {shown(file.get('name'), 60)} is no base64 ({error})") from error
