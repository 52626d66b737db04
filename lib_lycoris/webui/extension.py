"""The extension's life in the WebUI: what runs when the host calls."""

from __future__ import annotations

from typing import Any

from modules import extra_networks

from . import host
from .adapter_work import AdapterWork
from .applier import Applier
from .extra_network import LycoNetwork
from .problems import tell
from .rows import rows_of, step_of
from .tiles import telling_rows


class Extension:
    """One start of the user interface; "Reload UI" ends it and makes a new one."""

    def __init__(self) -> None:
        self.applier = Applier()

    def before_ui(self) -> None:
        """Registers `<lyco:…>`; the host has emptied its registry just before."""
        extra_networks.register_extra_network(LycoNetwork(self.applier))

    def model_loaded(self, model: Any) -> None:
        """Lets go of the former model, or of this one's former weights; the host has just read its embeddings anew, ours come to them."""
        self.applier.leave_model()
        self.applier.embeddings.ensure()

    def before_step(self, params: Any) -> None:
        """Looks whether a refiner has taken over, and turns strengths to their values for this step; called before each step of the sampling."""
        adapters = AdapterWork.of(params.denoiser.p)
        if adapters is not None:
            adapters.before_step(params)
        p, latent = params.denoiser.p, tuple(params.x.shape[-2:])
        work = getattr(p, "lyco_work", None)
        if work is not None and work.asks and work.follow():  # also where regions of Tiled Diffusion have taken it off
            tell(p, self.applier.begin_step(*step_of(params.denoiser), lambda: rows_of(params), lambda count: telling_rows(p, latent, count)))

    def unload(self) -> None:
        """Leaves the model as the host made it."""
        self.applier.leave_model()
        self.applier.embeddings.clear()

    @property
    def serves_api(self) -> bool:
        """Whether the host was started with its API."""
        return host.serves_api()

    @property
    def api_credentials(self) -> dict[str, str] | None:
        """Who may use the routes, {user: password}; None where nobody is asked."""
        return host.api_credentials()
