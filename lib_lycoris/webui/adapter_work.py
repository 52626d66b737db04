"""One of the host's pictures with adapters: their control maps, their features on the UNet for the time of its sampling, and what goes wrong."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from lib_lycoris.control import preparing as control
from lib_lycoris.errors import AdapterError, LycoError, shown
from lib_lycoris.patching.places import find_places
from lib_lycoris.prompt.unit import Unit, render_unit
from lib_lycoris.prompt.unit_values import AUTO_FUSER, INFOTEXT, INFOTEXT_FUSER, split_unit

from . import adapter_pictures, host
from .adapter_texts import extend_texts
from .problems import tell
from .rows import rows_of, step_of
from .tiles import Tiles


@dataclass
class Asked:
    """A unit of the picture.

    Attributes:
        number: of the unit on the page, from 1.
        unit: its values.
        pictures: what it was given beside them.
    """

    number: int
    unit: Unit
    pictures: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What problems call it."""
        return f"adapter {self.number} ({self.unit.adapter})"


class AdapterWork:
    """Kept on the host's `p` as `lyco_adapters`. Its features are on the model during `p.sample` and at no other time."""

    def __init__(self, p: Any, adapters: Any, asked: Sequence[Asked], fuser: str = AUTO_FUSER):
        self._owner = weakref.ref(p)
        self._fuser = fuser
        self._adapters = adapters
        self._asked = list(asked)
        self._control: Any = None
        self._model: Any = None
        self._size = (0, 0)
        self._first: tuple[int, int] | None = None
        self._maps: dict[tuple[int, int, int], Any] = {}
        self._device: Any = None
        self._hires = False
        self._pictures: list[int] = []
        self._stop: AdapterError | None = None
        self._mapped: list[Unit] = []
        self._expected = self._acted = False
        self._watching: Any = None
        self._tiles: Any = None
        self._step = (0, 1)

    @staticmethod
    def begin(p: Any, adapters: Any, units: Sequence[Mapping[str, Any]], fuser: str = AUTO_FUSER) -> None:
        """Reads the units of a picture that is about to be made; where some act, the picture samples under them."""
        Sample.remove(p)
        p.lyco_adapters = None
        asked, problems = [], []
        for number, values in enumerate(units, 1):
            try:
                unit, pictures = split_unit(values)
                if unit.active:
                    asked.append(Asked(number, adapters.settle(unit), pictures))
                elif values.get("enabled", bool(pictures)) is True and not unit.adapter:  # a client that names a picture wants it followed
                    problems.append((f"lyco: adapter {number}: it is on, but no adapter is chosen, so it did nothing", unit.strict))
            except LycoError as error:
                if values.get("enabled", True) is not False:
                    problems.append((f"lyco: adapter {number}: {error}", values.get("strict") is True))
        if not asked and not problems:
            return
        work = p.lyco_adapters = AdapterWork(p, adapters, asked, fuser)
        p.sample = Sample(p)
        for each in asked:
            p.extra_generation_params[INFOTEXT.format(each.number)] = render_unit(each.unit)
        for problem, strict in problems:
            work.fail(problem, strict)

    @staticmethod
    def of(p: Any) -> AdapterWork | None:
        """The one of this `p`, if it has one (a copied `p` brings its original's along)."""
        work = getattr(p, "lyco_adapters", None)
        return work if work is not None and work._owner() is p else None

    def put_on(self, x: Any) -> None:
        """Computes the features of a pass whose latents are `x` [B,C,h,w]; what can't be is told, or stops the picture if its unit is strict."""
        p = self._owner()
        self.take_off()
        self._hires = bool(getattr(p, "is_hr_pass", False))
        self._size, self._device = (x.shape[-1] * 8, x.shape[-2] * 8), x.device
        if not self._hires or self._first is None:  # a hires pass of a finished picture has none before it
            self._first = self._size if not self._hires else (p.width, p.height)
        self._expected = self._acted = False
        self._pictures = [p.iteration * p.batch_size + row for row in range(len(x))]
        with self._telling():
            self._attach()

    def before_step(self, params: Any) -> None:
        """Follows a model that came in the middle of a pass, and turns the features to this step and these rows; called before each step."""
        if not self._pictures:
            return
        with self._telling():
            if host.loaded_model() is not self._model:
                self._attach(in_between=True)
            if self._control is not None:
                rows, self._step = rows_of(params), step_of(params.denoiser)
                self._expected |= any(unit.acts(*self._step) for unit in self._mapped)
                self._acted |= self._control.session.added > 0
                pictures = [picture for picture, _ in rows]
                self._control.begin_step(*self._step, pictures)
                self._tiles.begin_step(pictures)
                extend_texts(params, self._control, rows)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """Tells also what nobody foresaw: the host only prints it, and goes on without the adapter."""
        try:
            yield
        except Exception as error:
            self.fail(f"lyco: adapters were left out: {type(error).__name__}: {shown(error)}", any(each.unit.strict for each in self._asked))
            raise

    def _begin_call(self, module: Any, values: tuple, named: Mapping[str, Any]) -> None:
        """Before each call of the UNet: raises for a strict unit that failed, and turns to the parts of pictures where a call holds tiles."""
        self.raise_if_stopped()
        x = values[0] if values else named.get("x")
        if self._control is None or x is None or (size := tuple(x.shape[-2:])) == (self._size[1] // 8, self._size[0] // 8):
            return
        with self._telling():
            rows = self._tiles.rows(len(x), size)
            if rows is not None:
                self._control.begin_step(*self._step, rows)
            else:
                self._control.session.begin_step([None])
                self.fail("lyco: adapters were left out where the model ran on parts of the picture: only Tiled Diffusion's grid of tiles is known", any(
                    each.unit.strict for each in self._asked))

    def take_off(self) -> None:
        """Leaves the model without a trace."""
        on, self._control, self._model, self._pictures = self._control, None, None, []
        if self._watching is not None:
            self._watching.remove()
            self._watching = None
        if on is not None:
            on.restore()

    def check(self) -> None:
        """Tells what only showed while the model ran; called at the end of a sampling."""
        if self._control is None:
            return
        strict = any(each.unit.strict for each in self._asked)
        for problem in self._control.problems:
            self.fail(f"lyco: {problem}", strict)
        if self._expected and not self._acted and not self._control.session.added:
            self.fail("lyco: adapters did not act: the model's own blocks did not run, another program took their place", strict)

    def fail(self, problem: str, strict: bool) -> None:
        """Tells a problem; where it comes from a strict unit, the sampling stops with it."""
        p = self._owner()
        tell(p, [problem])
        if strict and self._stop is None:
            self._stop = AdapterError(f"{problem.removeprefix('lyco: ')} (the unit is set to stop then)")

    def raise_if_stopped(self) -> None:
        """Raises what a strict unit stops the picture with."""
        if self._stop is not None:
            raise self._stop

    def finish(self, processed: Any) -> None:
        """Adds the control maps that were asked for to the results."""
        p = self._owner()
        wanted = {asked.number for asked in self._asked if asked.unit.save_map}
        for (number, _, _), made in sorted(self._maps.items(), key=lambda item: item[0]):
            if number in wanted:
                adapter_pictures.add_result(p, processed, made, f"control-map-{number}")

    def _attach(self, in_between: bool = False) -> None:
        """Puts the features on the model that is loaded now; `in_between`: it came in the middle of a pass."""
        if self._control is not None:
            self._control.restore()
        self._control, self._model = None, host.loaded_model()
        acting = [each for each in self._asked if each.unit.in_pass(self._hires)]
        if not acting:
            return
        if in_between and host.is_refiner(self._model):  # also of a strict unit: who sets a refiner wants it so
            self.fail("lyco: adapters acted until SDXL's refiner took over: there are none for it", False)
            return
        try:
            host.check_reachable("adapters")
            unet = host.trees_of(self._model).unet
            find_places(unet)
            self._watch(unet)
        except LycoError as error:
            for each in acting:
                self._refuse(each, str(error))
            return
        asked = [control.Asked(Unit(enabled=False))] * max(each.number for each in acting)
        for each in acting:
            try:
                self._adapters.path_of(each.unit.adapter)
                asked[each.number - 1] = self._pictures_of(each)
            except LycoError as error:
                self._refuse(each, str(error))
        try:
            prepare = self._adapters.preparation.prepare
            self._take(prepare(unet, asked, self._size, len(self._pictures), self._device, self._hires, host.base_model(self._model),
                               self._fuser, self._first))
        except AdapterError as error:
            self.fail(f"lyco: {error}", False)
            self._stop = self._stop or error

    def _watch(self, unet: Any) -> None:
        """Has every call of the UNet looked at, before the features' own hook does."""
        if self._watching is not None:
            self._watching.remove()
        self._watching = unet.register_forward_pre_hook(self._begin_call, with_kwargs=True)
        self._tiles = Tiles(self._owner(), (self._size[1] // 8, self._size[0] // 8))

    def _take(self, prepared: Any) -> None:
        """Keeps what was prepared for this pass."""
        for problem in prepared.problems:
            self.fail(f"lyco: {problem}", False)
        if not self._hires:
            self._maps.update({(number, place, self._pictures[0]): made for place, (number, made) in enumerate(prepared.maps)})
        if prepared.fuser:
            self._owner().extra_generation_params[INFOTEXT_FUSER] = prepared.fuser
        self._control = prepared.control
        numbers = {number for number, _ in prepared.maps}
        self._mapped = [each.unit for each in self._asked if each.number in numbers]

    def _refuse(self, asked: Asked, why: str) -> None:
        self.fail(f"lyco: {asked.name} was left out: {why}", asked.unit.strict)

    def _pictures_of(self, asked: Asked) -> control.Asked:
        """A unit with what it looks at in this pass: one picture for all of the batch where they have the same, else one for each."""
        sources = [self._source(asked, picture) for picture in self._pictures]
        sources = sources[:1] if len(set(sources)) == 1 else sources
        pictures = [self._picture(asked, source) for source in sources]
        region = asked.pictures.get("mask")
        if region is not None:
            region = adapter_pictures.crop_to_masked(self._owner(), adapter_pictures.read_picture(region))
        return control.Asked(asked.unit, tuple(each for each in pictures if each is not None), region)

    def _source(self, asked: Asked, picture: int) -> int:
        """Which of its pictures a unit looks at for one of the run's; -1: the only one it has, or none."""
        own = asked.pictures.get("pictures")
        if own:
            return picture % len(own)
        inits = getattr(self._owner(), "init_images", None) or ()
        return -1 if "picture" in asked.pictures or len(inits) < 2 else picture % len(inits)

    def _picture(self, asked: Asked, source: int) -> Any:
        p, own = self._owner(), asked.pictures.get("pictures")
        given = own[source] if own else asked.pictures.get("picture")
        if given is not None:
            return adapter_pictures.crop_to_masked(p, adapter_pictures.read_picture(given))
        picture = adapter_pictures.init_picture(p, max(0, source))
        return None if picture is None else adapter_pictures.fit_init(p, adapter_pictures.crop_to_masked(p, picture), self._size)


class Sample:
    """Stands in for one picture's own `sample`, in the instance alone: whatever happens in it, nothing of ours is on the model afterwards.

    It asks at each call what the picture's units are: scripts make several runs with one `p`, and another extension that stands in for `sample` too, as
    ControlNet does, may hold on to the one of the first run.
    """

    def __init__(self, p: Any):
        self._owner = weakref.ref(p)
        self._before = vars(p).get("sample")

    def __call__(self, *values: Any, **named: Any) -> Any:
        """The latents or pictures, as the host's method of this name gives them."""
        p = self._owner()
        sample, work = self._before or type(p).sample.__get__(p), AdapterWork.of(p)
        if work is None:
            return sample(*values, **named)
        try:
            work.raise_if_stopped()
            made = sample(*values, **named)
            work.check()
            work.raise_if_stopped()
            return made
        finally:
            work.take_off()

    @staticmethod
    def remove(p: Any) -> None:
        """Gives a picture back the `sample` that it had before."""
        found = vars(p).get("sample")
        if isinstance(found, Sample):
            if found._before is None:
                del p.sample
            else:
                p.sample = found._before
