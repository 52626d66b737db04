"""From what a prompt asks for to what is on the model; knows no host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from lib_lycoris.errors import LycoError, shown
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.patching.session import Session
from lib_lycoris.prompt.request import Request


class Generation:
    """Finds, loads and applies the networks of a prompt, and says what went wrong in words."""

    def __init__(self, catalogue: Catalogue, cache: NetworkCache, session: Session):
        self.catalogue = catalogue
        self.cache = cache
        self.session = session

    def apply(self, requests: Iterable[Request]) -> list[str]:
        """Puts on what is asked for, in place of what was on; gives the problems, each a line to show under the picture.

        A request that fails is left out, the others are put on.
        """
        problems: list[str] = []
        wanted = []
        titles = {}  # a network's name as the prompt has it
        for request in requests:
            try:
                network = self.cache.load(self.catalogue.find(request.name))
            except (LycoError, OSError) as error:
                problems.append(f"lyco: {error}")
                continue
            if request.dyn is not None:
                problems.append(f"lyco: dyn={request.dyn} of {shown(request.name)!r} is not supported yet; all of its ranks are used")
            titles[network] = request.name
            wanted.append((network, (request.te, request.unet)))
        self.session.apply(wanted)
        return list(dict.fromkeys([*problems, *self._leftovers(titles)]))

    def restore(self) -> None:
        """Takes everything off."""
        self.session.restore()

    def _leftovers(self, titles: Mapping[object, str]) -> list[str]:
        counts = Counter(leftover.network for leftover in self.session.plan.leftovers)
        firsts = {leftover.network: leftover for leftover in reversed(self.session.plan.leftovers)}
        return [
            f"lyco: {count} of {len(network.layers)} layers of {shown(titles[network])!r} had no home, as {shown(firsts[network].name)!r}"
            f" ({firsts[network].reason}){'; this file is for another model' if count == len(network.layers) else ''}"
            for network, count in counts.items()
        ]
