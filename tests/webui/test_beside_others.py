"""Adapters and networks beside other people's extensions in the running WebUI: ControlNet, FreeU, Tiled Diffusion; and the host's HyperTile and ToMe."""

from __future__ import annotations

import base64
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI has it")

from .adapter_files import write as write_adapter
from .conftest import start_real
from .network_files import write_network
from .others import controlnet, find_extensions, freeu, read_config, tiled, unet_shapes, write_checkpoints, write_controlnet
from .reply import Reply, distance
from .test_adapters import a_map, a_unit, clean

pytestmark = pytest.mark.webui
HERE = Path(__file__).parent
PROMPT = "a red circle on a white background"
ROUNDING = 2
TABLES = {"sd1-wide": "controlnet_default_config", "sdxl-wide": "controlnet_sdxl_mid_config"}
CHECKPOINTS = tuple(TABLES)
WIDTHS = (32, 64, 320, 320)
SIZE = (128, 128)
PLACES = {
    "sd1-wide": [("input_blocks.2", "input_blocks.3"), ("input_blocks.5", "input_blocks.6"), ("input_blocks.8", "input_blocks.9"),
                 ("input_blocks.11", "middle_block")],
    "sdxl-wide": [("input_blocks.3", "input_blocks.4"), ("input_blocks.5", "input_blocks.6"), ("input_blocks.8", "middle_block")],
}
"""Blocks whose output gets a map, and the block behind. SDXL's fourth is the middle, where ControlNet adds its own right behind."""


@dataclass(frozen=True)
class Neighbour:
    """What runs beside ours: scripts of the API as it acts, as it idles and as it is on without any effect; the host's settings; its picture's size."""

    acting: Any
    idle: Any = field(default_factory=dict)
    neutral: Any = None
    options: dict[str, Any] = field(default_factory=dict)
    size: dict[str, tuple[int, int]] = field(default_factory=lambda: dict.fromkeys(CHECKPOINTS, SIZE))


def _hint(**more):
    return lambda name, models: controlnet(models[name], a_map(12), save_detected_map=False, **more)


def _reference(**more):
    return lambda name, models: controlnet(picture=a_map(20), module="reference_only", threshold_a=0.5, save_detected_map=False, **more)


STAGES = {"stage_infos": [{}] * 3}
NEIGHBOURS = {
    # before ControlNet's reference, which gives each block a forward of its own back that ToMe's class no longer reaches
    "ToMe": Neighbour({}, options={"token_merging_ratio": 0.5}, size={"sd1-wide": SIZE}),  # merges nothing at SDXL's depths
    "ControlNet": Neighbour(_hint(), _hint(enabled=False), _hint(weight=0.0)),
    "ControlNet's reference": Neighbour(_reference(), _reference(enabled=False)),
    "FreeU": Neighbour(freeu(), freeu(enable=False), freeu(**STAGES)),
    "MultiDiffusion": Neighbour(tiled(tile=8, overlap=4), tiled(enabled=False)),
    "Mixture of Diffusers": Neighbour(tiled("Mixture of Diffusers", tile=8, overlap=4), tiled("Mixture of Diffusers", enabled=False)),
    "HyperTile": Neighbour({}, options={"hypertile_enable_unet": True, "hypertile_max_tile_unet": 128}, size={"sd1-wide": (128, 256), "sdxl-wide": (256, 512)}),
}
CASES = [(name, title) for name in CHECKPOINTS for title, neighbour in NEIGHBOURS.items() if name in neighbour.size]
OFF = {"hypertile_enable_unet": False, "hypertile_max_tile_unet": 256, "token_merging_ratio": 0.0, "batch_cond_uncond": True}


class Stage:
    """A WebUI with the neighbours, and how pictures are made with them."""

    def __init__(self, webui: Any, models: dict[str, str]):
        self.webui, self._models = webui, models
        self.log_from = 0

    def make(self, name: str, scripts: Any = None, unit: dict | None = None, tag: str = "", size: tuple[int, int] = SIZE, **settings: Any) -> Reply:
        """A picture of a checkpoint; scripts: a Neighbour's."""
        scripts = scripts(name, self._models) if callable(scripts) else dict(scripts or {})
        if unit is not None:
            scripts |= {"lyco adapters": {"args": [unit]}}
        settings = {"checkpoint": f"{name}.safetensors", "width": size[0], "height": size[1], "steps": 3, **settings}
        return self.webui.picture(settings.pop("prompt", PROMPT) + tag, alwayson_scripts=scripts, **settings)

    @contextmanager
    def options(self, **wanted: Any) -> Iterator[None]:
        """The host's settings for a while."""
        self.webui.set_options(**wanted)
        try:
            yield
        finally:
            self.webui.set_options(**{name: OFF[name] for name in wanted})

    def errors(self) -> list[str]:
        """What the server's log tells of errors since this was asked last."""
        new, self.log_from = self.webui.output()[self.log_from:], len(self.webui.output())
        return [line for line in new.splitlines() if line.startswith(("*** Error", "Traceback")) or "ERROR" in line]


@contextmanager
def stage(folder: Path, offset: int, model: Path | None = None, flags: tuple[str, ...] = (), beside: bool = True, **more: Any) -> Iterator[Stage]:
    """Starts a WebUI with the neighbours (`beside`), small checkpoints (those of `model` where that is given), ControlNets, adapters and networks for them."""
    extensions = [*find_extensions(), HERE / "small_controlnet"] if beside else []
    packages = os.environ.get("WEBUI_EXTENSIONS_PACKAGES", "")
    with contextmanager(start_real)(folder, offset, flags, beside=extensions, packages=packages, **more) as webui:
        models = webui.data / "models"
        checkpoints = models / "Stable-diffusion"
        if model is None:
            write_checkpoints(checkpoints, *CHECKPOINTS, "sdxl-refiner")
        else:
            for file in (file for name in (*CHECKPOINTS, "sdxl-refiner") for file in model.glob(f"{name}.*")):
                (checkpoints / file.name).symlink_to(file)
        (models / "ControlNet").mkdir(exist_ok=True)
        for name, layout in zip(CHECKPOINTS, ("sd", "sdxl"), strict=True):
            file = checkpoints / f"{name}.safetensors"
            sizes = write_controlnet(file, read_config(file), models / "ControlNet" / f"{name}-hint.safetensors", seed=5)
            if beside:
                webui.ask("/probe/v1/controlnet-sizes", {TABLES[name]: sizes})
            write_network(webui.networks / f"{name}-A.safetensors", unet_shapes(file), seed=21)
            write_adapter(models / "T2I-Adapter" / f"{name}.safetensors", WIDTHS, seed=1, layout=layout)
        webui.ask("/sdapi/v1/refresh-checkpoints", {})
        listed = webui.ask("/controlnet/model_list?update=true")["model_list"] if beside else []
        yield Stage(webui, {name: each for name in CHECKPOINTS for each in listed if each.startswith(name)})


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Ours before the others."""
    with stage(tmp_path_factory.mktemp("beside"), 11) as made:
        yield made


@pytest.fixture(autouse=True)
def _new_errors(request):
    """Has `errors` tell of this test alone."""
    if "here" in request.fixturenames:
        request.getfixturevalue("here").errors()


def models_of(here: Stage) -> Path:
    return here.webui.data / "models" / "Stable-diffusion"


def using(name: str) -> tuple[dict, str]:
    """A unit and a tag for a checkpoint."""
    return a_unit(name), f" <lyco:{name}-A:1>"


@pytest.fixture(scope="module")
def alone(tmp_path_factory, here):
    """Each neighbour's pictures in a WebUI without ours."""
    with stage(tmp_path_factory.mktemp("alone"), 12, models_of(here), ours="") as other:
        yield dict(scenes(other))


@pytest.fixture(scope="module")
def last(tmp_path_factory, here):
    """Pictures of both in a WebUI that has ours behind the others."""
    with stage(tmp_path_factory.mktemp("last"), 13, models_of(here), ours="zz-lyco") as other:
        yield dict(scenes(other, both=True))


def scenes(other: Stage, both: bool = False) -> Iterator[tuple[tuple[str, str], Reply]]:
    """Pictures with each other extension; what is the host's own needs no other WebUI to compare with."""
    for name, title in CASES:
        unit, tag = using(name) if both else (None, "")
        if not NEIGHBOURS[title].options:
            yield (name, title), other.make(name, NEIGHBOURS[title].acting, unit, tag)
    assert not other.errors()


@pytest.mark.parametrize(("name", "title"), CASES)
def test_both_act_in_any_order_and_nothing_stays_on(here, alone, last, name, title):
    neighbour, (unit, tag), size = NEIGHBOURS[title], using(name), NEIGHBOURS[title].size[name]
    make = here.make
    base = make(name, size=size)
    ours = {what: clean(make(name, None, *asked, size=size)) for what, asked in {"unit": (unit, ""), "tag": (None, tag), "both": (unit, tag)}.items()}
    with here.options(**neighbour.options):
        theirs = make(name, neighbour.acting, size=size)
        model = here.webui.model()
        beside = {what: clean(make(name, neighbour.acting, *asked, size=size))
                  for what, asked in {"unit": (unit, ""), "tag": (None, tag), "both": (unit, tag)}.items()}
        assert here.webui.model() == model  # ToMe has a hook of its own on it
        replies = {"base": base, "theirs": theirs, **ours, **{f"{what} beside": reply for what, reply in beside.items()}}
        for one, other in itertools.combinations(replies, 2):
            assert distance(replies[one], replies[other]) > ROUNDING, (one, other)
        assert make(name, neighbour.acting, size=size).pictures == theirs.pictures == alone.get((name, title), theirs).pictures
        assert make(name, neighbour.acting, unit, tag, size).pictures == beside["both"].pictures == last.get((name, title), beside["both"]).pictures
    if neighbour.idle:
        assert make(name, neighbour.idle, unit, tag, size).pictures == ours["both"].pictures
    if neighbour.neutral:
        assert distance(make(name, neighbour.neutral, unit, tag, size), ours["both"]) <= ROUNDING
    assert make(name, None, unit, tag, size).pictures == ours["both"].pictures
    assert make(name, size=size).pictures == base.pictures
    assert not here.webui.model()["hooks"]
    assert not here.errors()


def watch(here: Stage, name: str = "") -> list[tuple[int, np.ndarray]]:
    """Has what is added behind each place of the next pictures kept, from here on; gives what was until now, as (place, [rows, channels, height, width])."""
    seen = here.webui.ask("/probe/v1/watch", {"pairs": PLACES.get(name, [])})
    return [(each["place"], np.frombuffer(base64.b64decode(each["bytes"]), np.float32).reshape(each["shape"])) for each in seen]


def seen_in(here: Stage, name: str, scripts: Any = None, **settings: Any) -> list[list[np.ndarray]]:
    """For each place what a unit adds there, call by call."""
    watch(here, name)
    try:
        clean(here.make(name, scripts, using(name)[0], **settings))
    finally:
        seen = watch(here)
    return [[added for place, added in seen if place == number] for number in range(len(PLACES[name]))]


def assert_near(one: np.ndarray, other: np.ndarray) -> None:
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= 1e-4 * np.abs(other).max() + 1e-5


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("title", ["ControlNet", "FreeU", "ToMe"])
def test_each_map_comes_once_in_each_call_at_its_own_place(here, name, title):
    neighbour = NEIGHBOURS[title]
    plain = seen_in(here, name)
    with here.options(**neighbour.options):
        beside = seen_in(here, name, neighbour.acting)
    for one, other in zip(plain, beside, strict=True):
        assert len(one) == len(other) == 3  # one call of the model for each step
        for call in other:
            assert np.abs(call).max() > 0.01
            assert_near(call, one[0])


def test_a_reference_is_seen_with_the_map_too(here):
    """ControlNet's reference runs the model's own forward within its own: its blocks get the maps then as well."""
    calls = seen_in(here, "sd1-wide", NEIGHBOURS["ControlNet's reference"].acting)
    plain = seen_in(here, "sd1-wide")
    assert [len(each) for each in calls] == [2 * len(each) for each in plain]
    assert_near(calls[0][0], plain[0][0])


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("method", ["MultiDiffusion", "Mixture of Diffusers"])
def test_each_tile_gets_its_own_part_of_the_map(here, name, method):
    cells, tile, starts = SIZE[0] // 8, 8, (0, 4, 8)
    tiles = [(top, left) for top in starts for left in starts]
    plain, beside = seen_in(here, name), seen_in(here, name, tiled(method, tile=tile, overlap=4, batch=4))
    for place in range(3):
        whole, calls = plain[place][0], beside[place]
        factor = cells // whole.shape[-1]
        assert len(calls) == 3 * 3  # steps, and batches of three tiles
        for number, call in enumerate(calls):
            mine = tiles[3 * (number % 3): 3 * (number % 3) + 3]
            wanted = [whole[:, :, top // factor: (top + tile) // factor, left // factor: (left + tile) // factor] for top, left in mine]
            assert_near(call, np.concatenate(wanted))


@pytest.mark.parametrize("batch", [1, 4])
def test_tiles_of_a_cut_step_get_the_strengths_and_maps_of_their_rows(here, batch):
    """Where the host asks for positive and negative rows one after the other, each tile's calls hold rows of one kind alone."""
    name, scripts = "sd1-wide", tiled(tile=8, overlap=4, batch=batch)
    unit = a_unit(name, pictures=[a_map(), a_map(25)])
    asked = [(None, f" <lyco:{name}-A:1:on=cond>"), (unit, ""), (unit, f" <lyco:{name}-A:1:on=cond>")]
    settings = {"negative_prompt": "a blue square", "batch_size": 2}
    whole = [clean(here.make(name, scripts, *each, **settings)) for each in asked]
    with here.options(batch_cond_uncond=False):
        cut = [clean(here.make(name, scripts, *each, **settings)) for each in asked]
    for one, other in zip(whole, cut, strict=True):
        assert distance(one, other) <= ROUNDING
    assert distance(whole[0], here.make(name, scripts, None, f" <lyco:{name}-A:1>", **settings)) > ROUNDING


def test_regions_with_prompts_of_their_own_are_told(here):
    name = "sd1-wide"
    unit, tag = using(name)
    scripts = tiled(tile=8, overlap=4, regions=((0.0, 0.0, 0.5, 1.0, "a square"),))
    base = here.make(name, scripts)
    told = here.make(name, scripts, unit)
    assert "only Tiled Diffusion's grid of tiles" in told.problems
    assert here.make(name, scripts).pictures == base.pictures
    tagged = clean(here.make(name, scripts, None, tag))
    for other in (base, here.make(name, scripts, None, f"{tag[:-1]}:stop=0.5>"), here.make(name, tiled(tile=8, overlap=4), None, tag)):
        assert distance(tagged, other) > ROUNDING
    own = here.make(name, tiled(tile=8, overlap=4, regions=((0.0, 0.0, 0.5, 1.0, f"a square{tag}"),)))
    assert "in the prompts of Tiled Diffusion's regions were left out" in own.problems
    assert not here.webui.model()["hooks"] and not here.errors()


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_prompts_of_parts_and_cut_steps_beside_controlnet(here, name):
    unit, tag = using(name)
    asked = {"scripts": NEIGHBOURS["ControlNet"].acting, "unit": unit, "tag": tag, "prompt": "a red circle AND a green square :0.6", "negative_prompt": "blue",
             "batch_size": 2}
    whole = clean(here.make(name, **asked))
    with here.options(batch_cond_uncond=False):
        assert distance(clean(here.make(name, **asked)), whole) <= ROUNDING
    for left_out in ("scripts", "unit", "tag"):
        assert distance(here.make(name, **{**asked, left_out: "" if left_out == "tag" else None}), whole) > ROUNDING


def test_pictures_that_a_script_makes_one_after_the_other(here):
    """The host's script Loopback makes them with one and the same `p`, on which ControlNet leaves its own `sample`."""
    name = "sd1-wide"
    unit, tag = using(name)
    settings = {"init": here.make(name), "script_name": "loopback", "script_args": [2, 0.7, "Linear", "None"]}
    alone = clean(here.make(name, None, unit, tag, **settings))
    assert len(alone.pictures) >= 2
    made = clean(here.make(name, NEIGHBOURS["ControlNet"].acting, unit, tag, **settings))
    without = here.make(name, NEIGHBOURS["ControlNet"].acting, None, tag, **settings)
    for one, other in zip(made.pictures, without.pictures, strict=True):
        assert np.abs(np.frombuffer(one, np.uint8).astype(int) - np.frombuffer(other, np.uint8)).max() > ROUNDING
    assert not here.webui.model()["hooks"] and not here.errors()


def test_an_adapter_goes_off_where_sdxls_refiner_takes_over(here):
    name, refine = "sdxl-wide", {"refiner_checkpoint": "sdxl-refiner.safetensors", "refiner_switch_at": 0.5, "steps": 4}
    unit, tag = using(name)
    base, plain = here.make(name), here.make(name, **refine)
    assert plain.pictures != base.pictures
    for asked in ((unit, ""), (unit | {"strict": True}, ""), (None, tag), (unit, tag)):
        made = here.make(name, None, *asked, **refine)
        assert ("adapters acted until SDXL's refiner took over" in made.problems) == (asked[0] is not None)
        assert "had no home" in made.problems or not asked[1]
        assert distance(made, plain) > ROUNDING
        assert here.make(name, None, *asked, **refine).pictures == made.pictures
    early = here.make(name, None, unit | {"end": 0.5}, **refine)
    assert early.pictures == here.make(name, None, unit, **refine).pictures
    assert here.make(name, **refine).pictures == plain.pictures
    assert here.make(name).pictures == base.pictures
    assert not here.webui.model()["hooks"] and not here.errors()


@pytest.mark.parametrize(("offset", "flag"), [(14, "--medvram"), (15, "--lowvram")])
def test_flags_that_move_the_model_change_nothing(tmp_path, here, offset, flag):
    scripts = NEIGHBOURS["ControlNet"].acting
    with stage(tmp_path, offset, models_of(here), flags=("--nowebui", flag)) as moving:
        for name in CHECKPOINTS:
            base, asked = moving.make(name), using(name)
            hooks = moving.webui.model()["hooks"]  # the host's own, which move the model's parts
            for each in ((None, *asked), (scripts, *asked)):
                assert distance(clean(moving.make(name, *each)), clean(here.make(name, *each))) <= ROUNDING
            assert moving.make(name).pictures == base.pictures
            assert moving.webui.model()["hooks"] == hooks
        assert not moving.errors()
