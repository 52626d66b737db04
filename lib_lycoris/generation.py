"""From what a prompt asks for to what is on the model; knows no host."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence

from lib_lycoris.errors import LycoError, shown
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.patching.session import Session
from lib_lycoris.prompt.blocks import PRESETS
from lib_lycoris.prompt.request import Request


class Generation:
    """Finds, loads and applies the networks of a prompt, and says what went wrong in words.

    Attributes:
        presets: names for block weights and elements and what they stand for, as in prompt.blocks.PRESETS; may be replaced at any time.
    """

    def __init__(self, catalogue: Catalogue, cache: NetworkCache, session: Session, presets: Mapping[str, str] = PRESETS):
        self.catalogue = catalogue
        self.cache = cache
        self.session = session
        self.presets = presets

    def apply(self, requests: Iterable[Request], hires: bool = False, refiner: bool = False) -> list[str]:
        """Puts on what one prompt asks for, for all pictures, in place of what was on; gives the problems, each a line to show under the picture."""
        return self._apply(list(requests), hires, refiner)

    def apply_pictures(self, positive: Sequence[Sequence[Request]], negative: Sequence[Sequence[Request]], hires: bool = False,
                       refiner: bool = False) -> list[str]:
        """The same for a batch of pictures, each with the requests of its own prompt and its own negative prompt."""
        return self._apply([request for prompt in positive for request in prompt], hires, refiner)

    @property
    def dynamic(self) -> bool:
        """Whether `begin_step` has anything to do."""
        return False

    def begin_step(self, step: float, steps: int, rows: Sequence[tuple[int, bool]]) -> None:
        """Turns every strength to what this step wants; to be called before each call of the denoiser.

        Args:
            step: counted from 0.
            steps: how many there are.
            rows: for each row of the denoiser's batch its picture, and whether it is a row of the negative prompt.
        """

    def text_key(self, picture: int, negative: bool, step: float, steps: int) -> Hashable:
        """Equal keys mean the same networks on the text encoders."""
        return ()

    def use_text(self, picture: int, negative: bool, step: float, steps: int) -> None:
        """Puts on the text encoders what this picture's prompt, or negative prompt, wants at this step; to be called before it is encoded."""

    def text_steps(self, steps: int) -> list[int]:
        """The steps after the first at which some prompt's key is another than before, so that it is to be encoded anew."""
        return []

    def restore(self) -> None:
        """Takes everything off."""
        self.session.restore()

    def _apply(self, requests: list[Request], hires: bool, refiner: bool) -> list[str]:
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
            wanted.append((network, (request.strength("te", 0, 1, hires), request.strength("unet", 0, 1, hires, refiner))))
        self.session.apply(wanted)
        return list(dict.fromkeys([*problems, *self._leftovers(titles)]))

    def _leftovers(self, titles: Mapping[object, str]) -> list[str]:
        counts = Counter(leftover.network for leftover in self.session.plan.leftovers)
        firsts = {leftover.network: leftover for leftover in reversed(self.session.plan.leftovers)}
        return [
            f"lyco: {count} of {len(network.layers)} layers of {shown(titles[network])!r} had no home, as {shown(firsts[network].name)!r}"
            f" ({firsts[network].reason}){'; this file is for another model' if count == len(network.layers) else ''}"
            for network, count in counts.items()
        ]
