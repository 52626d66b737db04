"""A T2I-Adapter in training: its maps of each row's control picture are added to the UNet's encoder, which with all the rest stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ConfigError, NetworkFileError, shown
from ..library.adapters import open_adapter
from ..networks.adapters.full import FullAdapter
from ..networks.adapters.light import LightAdapter
from ..networks.adapters.parts import PictureAdapter
from ..patching.features import FeatureSession
from ..patching.targets import Target
from .adapter_export import export_adapter
from .adapter_settings import AdapterSettings
from .backbone import Backbone
from .config import TrainConfig
from .draws import make_generator
from .dropout import Dropout
from .export import About
from .material import Material
from .method import PlainMethod
from .selection import Key

_MAKERS = {"full": FullAdapter, "light": LightAdapter}
KEY: Key = ("unet", "adapter")
"""Where a training's state and rates have it."""


class AdapterMethod(PlainMethod):
    """An adapter and the places in the UNet where its maps go.

    Args:
        adapter: float32, on the model's device.
        unet: in LDM's or diffusers' naming.
    """

    def __init__(self, adapter: PictureAdapter, unet: nn.Module):
        super().__init__({KEY: adapter})
        self.adapter, self._unet = adapter, unet
        self._session: FeatureSession | None = None

    @contextmanager
    def attached(self, targets: Mapping[Key, Target], dropout: Dropout) -> Iterator[None]:
        """Within it, `following` acts on the UNet."""
        with FeatureSession(self._unet) as self._session:
            try:
                yield
            finally:
                self._session = None

    def around(self, material: Material, rows: Sequence[tuple[int, int]]) -> AbstractContextManager[None]:
        return self.following(torch.stack([material.control(sample, epoch) for epoch, sample in rows]))

    @contextmanager
    def following(self, controls: Tensor) -> Iterator[None]:
        """Within it the UNet's answers follow these control pictures [B,3,H,W] in 0..1, one for each row, or one for all; gradients reach the adapter."""
        self._session.set(self.adapter(controls))
        try:
            yield
        finally:
            self._session.set(None)

    def write(self, folder: Path, config: TrainConfig, backbone: Backbone, about: About) -> Path:
        return export_adapter(folder, self.adapter, config, backbone, about)


def make_adapter_method(config: TrainConfig, backbone: Backbone) -> AdapterMethod:
    """The adapter that the config wants, as wide as the UNet, on its device; its first numbers depend on the seed alone, or are those of a file.

    Raises:
        ConfigError: the UNet takes no adapter, or the file in network.start_from is no such adapter.
    """
    if config.network.start_from is not None:
        adapter = _start(config.network.start_from, config.adapter, backbone)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(make_generator(config.training.seed, "adapter").initial_seed())
            adapter = make_adapter(config.adapter, backbone)
    adapter = adapter.to(backbone.device, torch.float32)
    return AdapterMethod(adapter.requires_grad_(True).train(), backbone.unet)


def count_adapter(config: TrainConfig, backbone: Backbone) -> int:
    """How many numbers the adapter has that the config wants.

    Raises:
        ConfigError: the UNet takes no adapter, or the file in network.start_from is no such adapter.
    """
    if config.network.start_from is not None:
        adapter = _start(config.network.start_from, config.adapter, backbone)
    else:
        with torch.device("meta"):
            adapter = make_adapter(config.adapter, backbone)
    return sum(parameter.numel() for parameter in adapter.parameters())


def make_adapter(settings: AdapterSettings, backbone: Backbone) -> PictureAdapter:
    """A fresh adapter for that UNet, which adds nothing yet.

    Raises:
        ConfigError: the UNet takes no adapter.
    """
    given = {name: value for name in ("downscale", "blocks") if (value := getattr(settings, name)) is not None}
    places = FeatureSession(backbone.unet)
    return _MAKERS[settings.kind].create(channels=places.channels, in_channels=settings.in_channels or 3, layout=places.layout, **given)


def _start(path: str, settings: AdapterSettings, backbone: Backbone) -> PictureAdapter:
    """The file's adapter, which need not be described again.

    Raises:
        ConfigError: it can't be read, is for another model, or is not what the settings say.
    """
    where = f"network.start_from = {shown(path)}"
    try:
        adapter = open_adapter(Path(path).expanduser())
    except (NetworkFileError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if adapter.kind not in _MAKERS:
        raise ConfigError(f"{where}: a {adapter.kind} adapter can't be trained here; give a full or light one")
    places = FeatureSession(backbone.unet)
    if tuple(adapter.channels) != tuple(places.channels) or adapter.layout != places.layout:
        raise ConfigError(f"{where}: its maps have {list(adapter.channels)} channels as {adapter.layout} lays them out, the model's UNet takes "
                          f"{list(places.channels)} as {places.layout} does; give an adapter for that model")
    for name in settings.changed():
        if getattr(adapter, name) != getattr(settings, name):
            raise ConfigError(f"{where}: its {name} is {getattr(adapter, name)}, adapter.{name} says {getattr(settings, name)}; leave that out")
    return adapter
