"""The host's face of `<lyco:…>`: what it calls before and after each picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modules import extra_networks

from lib_lycoris.prompt.request import Request

from . import host, settings
from .applier import Applier
from .embeddings import prompts_of
from .problems import tell
from .tags import TAG
from .work import Work

HASHES = "Lyco hashes"


class LycoNetwork(extra_networks.ExtraNetwork):
    """`<lyco:name:te:unet>`. Registered under its own name, it goes before the built-in extension's alias."""

    def __init__(self, applier: Applier) -> None:
        super().__init__(TAG)
        self._applier = applier
        self._seen: dict[str, object] = {}

    def activate(self, p: Any, params_list: Sequence[extra_networks.ExtraNetworkParams]) -> None:
        """Puts on the loaded model what each picture of the batch asks for; a tag that can't be used stops itself alone and is told under the picture."""
        if not params_list and _is_empty_prompt_after_load(p):
            self._applier.leave_model()
            return
        changed = self._applier.embeddings.ensure()
        batch = Work.of(p, self._applier).begin(p, params_list)
        self._applier.embeddings.give_back()
        tell(p, self._applier.embeddings.problems(prompts_of(p)))
        self._forget_stale_conds(p, batch.requests, changed)
        _note_hashes(p, self._applier, batch.requests)

    def deactivate(self, p: Any) -> None:
        """Takes everything off."""
        self._applier.restore()

    def _forget_stale_conds(self, p: Any, requests: Sequence[Request], changed: bool) -> None:
        """Empties the host's cache of encoded prompts where a file changed: its key knows the tag and the words, not the files behind them."""
        files = self._applier.files(requests)
        now = {request.name: (files.get(request.name), host.modified(files[request.name]) if request.name in files else None) for request in requests}
        if changed or any(self._seen.get(name) != found for name, found in now.items()):
            for cache in (getattr(p, name, None) for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")):
                if cache is not None:
                    cache[0] = None
        self._seen.update(now)


def _is_empty_prompt_after_load(p: Any) -> bool:
    """Whether the host only encodes the empty prompt because it has just loaded a model; it hands in a bare object then."""
    return getattr(p, "scripts", None) is None and getattr(p, "prompts", None) is None


def _note_hashes(p: Any, applier: Applier, requests: Sequence[Request]) -> None:
    """Writes "name: hash, …" into the picture's parameters, as the built-in extension does under "Lora hashes"."""
    info = getattr(p, "extra_generation_params", None)
    if info is None or not settings.value(settings.HASHES):
        return
    if not getattr(p, "is_hr_pass", False) or not hasattr(p, "lyco_hashes"):
        p.lyco_hashes = {}
    for name, path in applier.files(requests).items():
        short = host.short_hash(path)
        if short:
            p.lyco_hashes[name.replace(":", "").replace(",", "")] = short
    if p.lyco_hashes:
        info[HASHES] = ", ".join(f"{name}: {short}" for name, short in p.lyco_hashes.items())
    else:
        info.pop(HASHES, None)
