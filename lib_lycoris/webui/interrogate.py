"""Captions by the host's own interrogators, which load and download their models when they are first asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from modules import devices, lowvram, shared
from PIL import Image

from lib_lycoris.errors import CheckpointError, ConfigError, shown
from lib_lycoris.training.captioning import write_captions
from lib_lycoris.training.pictures import open_image, to_rgb

from .settled import job

BLIP, DEEPBOORU = "blip", "deepbooru"
INTERROGATORS = (BLIP, DEEPBOORU)
_KEYS = ("folder", "interrogator")

Describe = Callable[[Image.Image], str]
"""An RGB picture → what it shows."""


class Interrogation:
    """Writes captions while nobody else uses the device.

    Args:
        queue: the host's, held meanwhile.
    """

    def __init__(self, queue: AbstractContextManager[Any]):
        self._queue = queue

    def write_captions(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """{"written": [path], "problems": [line]}.

        Args:
            values: "folder" of pictures; "interrogator", one of INTERROGATORS.

        Raises:
            ConfigError: a key or value.
            DatasetError: the folder.
        """
        for key in values:
            if key not in _KEYS:
                raise ConfigError(f"unknown key {shown(key)!r}; known are {', '.join(_KEYS)}")
        folder, name = values.get("folder"), values.get("interrogator", BLIP)
        if not isinstance(folder, str) or not folder.strip():
            raise ConfigError(f"folder = {shown(folder)}: expected the path of a folder of pictures")
        if name not in INTERROGATORS:
            raise ConfigError(f"interrogator = {shown(name)}: expected one of {', '.join(INTERROGATORS)}")
        with self._queue, job(f"describing pictures with {name}"), _OPENERS[name]() as describe:

            def tell(done: int, total: int) -> None:
                shared.state.job_count, shared.state.job_no = total, done

            written, problems = write_captions(Path(folder).expanduser(), lambda path: describe(to_rgb(open_image(path))), tell,
                                               lambda: shared.state.interrupted)
        return {"written": [str(path) for path in written], "problems": problems}


@contextmanager
def _blip() -> Iterator[Describe]:
    """BLIP alone: the host's own route adds CLIP's guesses at artists and styles, which a caption for training should not have."""
    interrogator = shared.interrogator
    lowvram.send_everything_to_cpu()
    try:
        with _loading(BLIP):
            if interrogator.blip_model is None:  # not by its `load`, which would download CLIP too
                model = interrogator.load_blip_model()
                interrogator.blip_model = model if shared.cmd_opts.no_half or interrogator.running_on_cpu else model.half()
            interrogator.blip_model = interrogator.blip_model.to(devices.device_interrogate)
        interrogator.dtype = next(interrogator.blip_model.parameters()).dtype
        yield interrogator.generate_caption
    finally:
        interrogator.unload()


@contextmanager
def _deepbooru() -> Iterator[Describe]:
    """DeepBooru's tags, without the numbers that emphasis in a prompt would read."""
    from modules import deepbooru

    try:
        with _loading(DEEPBOORU):
            deepbooru.model.start()
        yield lambda picture: deepbooru.model.tag_multi(picture, force_disable_ranks=True)
    finally:
        if deepbooru.model.model is not None:
            deepbooru.model.stop()
        devices.torch_gc()


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the host's downloads and loads raise whatever they like
        reason = f"{type(error).__name__}: {shown(' '.join(str(error).split()))}"
        raise CheckpointError(f"the WebUI's {name} could not be loaded ({reason}): it is downloaded at its first use, so look at the connection") from error


_OPENERS: dict[str, Callable[[], AbstractContextManager[Describe]]] = {BLIP: _blip, DEEPBOORU: _deepbooru}
