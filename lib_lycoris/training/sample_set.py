"""Pictures that come with the program, for somebody who has none at hand yet."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DatasetError

_lock = threading.Lock()


@dataclass(frozen=True)
class SampleSet:
    """A dataset that is drawn when it is asked for.

    Attributes:
        name: of its folder.
        about: in a sentence, what the pictures show and what is learned from them.
        draw: takes a folder that is not there yet, and makes it.
        settings: by key, what a training on them has to know beside the folder.
    """

    name: str
    about: str
    draw: Callable[[Path], object]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def folder(self, home: Path) -> Path:
        """Its folder in `home`, whole: drawn unless it is there already.

        Raises:
            DatasetError: it can't be written.
        """
        folder, part = home / self.name, home / f".{self.name}.part"
        with _lock:
            try:
                if not folder.is_dir() or not any(folder.iterdir()):
                    home.mkdir(parents=True, exist_ok=True)
                    shutil.rmtree(part, ignore_errors=True)
                    self.draw(part)
                    shutil.rmtree(folder, ignore_errors=True)
                    part.rename(folder)
            except OSError as error:
                raise DatasetError(f"the sample pictures can't be written to {folder} ({error.strerror or error}): is the disk full?") from error
        return folder
