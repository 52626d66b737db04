"""What the user sees of the networks in the WebUI: cards, settings, axes, pasted infotexts, and the routes' callables. One start of the user interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from modules import cache, ui_extra_networks

from lib_lycoris.library.adapter_files import AdapterFiles
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.library.facts import FactsCache
from lib_lycoris.library.shelf import Shelf
from lib_lycoris.tools.library import Library

from . import settings
from .adapter_axes import make_axes
from .adapters import Adapters
from .applier import Applier
from .axes import add_axes
from .cards import NetworksPage, allow_previews
from .editor import make_editor
from .infotext import Paste

_STORE = "lycoris-facts-1"
"""Where the host's cache keeps what headers tell; another number for another record."""


class Pages:
    """Everything about networks that is seen without a picture being made.

    Args:
        applier: whose catalogue and cache follow the settings.
        adapters: whose folders follow the settings.
        component: makes a setting's component: component(kind, label=…, value=…, …).
        draw: makes the fields of the editor.
    """

    def __init__(self, applier: Applier, adapters: Adapters, component: Callable[..., Any], draw: Any) -> None:
        self._applier, self._adapters, self._draw = applier, adapters, draw
        self.shelf = Shelf(lambda: applier.catalogue, settings.network_folders, FactsCache(_recall), inspect=_inspect)
        self.library = Library({"networks": self.shelf, "embeddings": applier.embeddings.shelf, "adapters": AdapterFiles(lambda: adapters.shelf)})
        self.paste = Paste(self.shelf)
        settings.register(component)

    def before_ui(self) -> None:
        """Adds page and axes; the host has emptied its list of pages just before."""
        settings.on_change(settings.FOLDERS, self._look_into_folders)
        for option in (settings.ADAPTERS, settings.CONTROLNET):
            settings.on_change(option, self._adapters.look_into_folders)
        settings.on_change(settings.CACHE, self._limit_cache)
        settings.on_change(settings.BLOCKS, self._read_presets)
        self._read_presets()
        self._adapters.look_into_folders()
        self._look_into_folders()
        self._limit_cache()
        ui_extra_networks.register_page(NetworksPage(self.shelf, make_editor(self._draw), self._applier.embeddings.ensure))
        add_axes(self.shelf, settings.block_presets, lambda: settings.value(settings.STRENGTH), lambda axis: make_axes(axis, self._adapters))

    def _look_into_folders(self) -> None:
        self._applier.catalogue = Catalogue(settings.network_folders())
        self._applier.leave_model()
        allow_previews()

    def _read_presets(self) -> None:
        problem = settings.preset_problem()
        if problem:
            print(f"Lyco Studio: {problem}; until it is mended under Settings, LyCORIS, only the presets that everybody has are known")
        self._applier.presets = settings.block_presets()
        self._applier.leave_model()

    def _limit_cache(self) -> None:
        self._applier.cache.limit_bytes = settings.cache_bytes()


def _inspect(path: Path) -> dict[str, Any]:
    """What only a file's tensors tell; the tool is imported at the first look, so that the WebUI's start does not wait for it."""
    from lib_lycoris.tools.inspect import inspect

    return dict(inspect(path).as_json())


def _recall(path: Path, read: Callable[[], dict[str, Any]]) -> Mapping[str, Any]:
    """What `read` gives, from the host's cache on disk where the file has not changed since."""
    return cache.cached_data_for_file(_STORE, str(path), str(path), read)
