"""From units with pictures to what is on the model: maps are made, features computed once, and what can't be done is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lib_lycoris.control.making import FeatureCache, grown_resolution, make_map, settle, settled_unit
from lib_lycoris.control.preparing import Asked, Preparation
from lib_lycoris.errors import AdapterError, ConfigError
from lib_lycoris.library.adapters import AdapterShelf, open_adapter, write_adapter
from lib_lycoris.networks.adapters.full import FullAdapter
from lib_lycoris.networks.adapters.fuser import CoAdapterFuser
from lib_lycoris.networks.adapters.light import LightAdapter
from lib_lycoris.networks.adapters.style import StyleAdapter
from lib_lycoris.patching.features import FeatureSession
from lib_lycoris.preprocess.sizes import fit
from lib_lycoris.prompt.unit import Unit
from tests.networks import adapter_oracles as slow
from tests.patching.test_features import close, inputs, make
from tests.patching.trees import CONTEXT

CHANNELS = (4, 8, 8, 8)
SIZE = (192, 128)


def random(adapter, seed=0):
    return adapter.fill(slow.random_tensors(adapter, seed))


@pytest.fixture
def shelf(tmp_path):
    write_adapter(tmp_path / "edges.safetensors", random(FullAdapter(channels=CHANNELS, in_channels=1)), base_model="sd_v1", preprocessor="canny")
    write_adapter(tmp_path / "color.safetensors", random(LightAdapter(channels=CHANNELS), 1), base_model="sd_v1")
    write_adapter(tmp_path / "two.safetensors", random(FullAdapter(channels=CHANNELS), 2), base_model="sd_v2")
    write_adapter(tmp_path / "other.safetensors", random(FullAdapter(channels=slow.NARROW), 2), base_model="sd_v1")
    write_adapter(tmp_path / "words.safetensors", random(StyleAdapter(width=16, context=CONTEXT, layers=1, tokens=3, heads=8)))
    save_file({"control_model.input_hint_block.0.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "net.safetensors")
    return AdapterShelf([tmp_path])


def picture(seed=0, height=96, width=144):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def maps_on(control):
    return [entry.feature for entry in control.session._maps]


@torch.no_grad()
def test_a_units_map_is_made_and_its_features_are_on_the_model(shelf):
    unet, given = make("sd1"), inputs("sd1")
    plain = unet(*given)
    prepared = Preparation(shelf).prepare(unet, [Asked(Unit(adapter="edges", weight=0.5), (picture(),))], SIZE, base_model="sd_v1")
    assert prepared.problems == []
    (number, made), = prepared.maps
    assert number == 1 and made.shape == (128, 192, 3) and set(np.unique(made)) == {0, 255}  # canny, from the file's metadata
    with prepared.control as control:
        control.begin_step(0, 4)
        expected = open_adapter(shelf.find("edges"))(torch.from_numpy(made).permute(2, 0, 1)[None] / 255)
        for found, feature in zip(maps_on(control), expected, strict=True):
            close(found, 0.5 * feature)
        assert (unet(*given) - plain).abs().max() > 1e-4
    assert torch.equal(unet(*given), plain)


def test_features_are_computed_once_for_each_adapter_map_and_size(shelf):
    unet, calls = make("sd1"), []
    adapter = shelf.load("edges")
    adapter.register_forward_hook(lambda module, args, output: calls.append(tuple(args[0].shape)))
    preparation = Preparation(shelf)
    unit = Unit(adapter="edges", preprocessor="none")
    one, two = picture(1), picture(2)

    def prepare(pictures, size=SIZE, batch=1, **values):
        preparation.prepare(unet, [Asked(Unit(adapter="edges", preprocessor="none", **values), pictures)], size, batch)
        count = len(calls)
        calls.clear()
        return count

    assert prepare((one,)) == 1
    assert prepare((one,), weight=0.3, start=0.5) == 0  # another strength, the same features
    assert prepare((one,), batch=4) == 0
    assert prepare((one, two), batch=4) == 1
    assert prepare((two, one), batch=2) == 0
    assert prepare((one,), size=(128, 128)) == 1
    assert settle(unit, shelf.facts("edges"))[0].name == "none"


def test_pictures_of_a_batch_are_taken_in_turn(shelf):
    unet = make("sd1")
    pictures = (picture(1), picture(2))
    prepared = Preparation(shelf).prepare(unet, [Asked(Unit(adapter="two", preprocessor="none"), pictures)], SIZE, batch=3)
    with prepared.control as control:
        control.begin_step(0, 1, (0, 1, 2))
        maps = maps_on(control)
        assert len(maps[0]) == 3
        close(maps[0][0], maps[0][2])
        assert not torch.allclose(maps[0][0], maps[0][1])
    assert len(prepared.maps) == 3


def test_what_can_not_act_is_left_out_with_a_word_and_stops_where_it_is_strict(shelf):
    unet = make("sd1")
    asked = [
        Asked(Unit(adapter="edges"), (picture(),)),
        Asked(Unit(adapter="other"), (picture(),)),
        Asked(Unit(adapter="net"), (picture(),)),
        Asked(Unit(adapter="nothere"), (picture(),)),
        Asked(Unit(adapter="edges")),
        Asked(Unit(adapter="words"), (picture(),)),
        Asked(Unit(adapter="edges", enabled=False)),
        Asked(Unit(adapter="two", preprocessor="none"), (picture(),)),
        Asked(Unit(adapter="edges", hires="high"), (picture(),)),
    ]
    prepared = Preparation(shelf).prepare(unet, asked, SIZE, base_model="sd_v1")
    starts = [problem.split(":")[0] for problem in prepared.problems]
    assert starts == ["adapter 2 (other) was left out", "adapter 3 (net) was left out", "adapter 4 (nothere) was left out", "adapter 5 (edges) was left out",
                      "adapter 6 (words) was left out", "adapter two was trained on sd_v2, and the checkpoint is sd_v1"]
    for word, problem in zip(("another model", "ControlNet", "no adapter is called", "picture", "CLIP"), prepared.problems, strict=False):
        assert word in problem and "\n" not in problem
    assert {number for number, _ in prepared.maps} == {number for number, _ in prepared.units} == {1, 8}
    with prepared.control as control:
        control.begin_step(0, 1)
        assert control.session._maps
    with pytest.raises(AdapterError, match=r"nothere.*stop"):
        Preparation(shelf).prepare(unet, [Asked(Unit(adapter="nothere", strict=True), (picture(),))], SIZE)
    assert Preparation(shelf).prepare(unet, asked[6:7], SIZE).control is None
    high = Preparation(shelf).prepare(unet, asked[-1:], SIZE, hires=True)
    assert high.control is not None and not high.problems


@pytest.mark.parametrize("size", [(136, 200), (72, 104), (184, 120)])
def test_sizes_that_are_multiples_of_eight_alone_fit_the_blocks(shelf, size):
    unet = make("sd1")
    prepared = Preparation(shelf).prepare(unet, [Asked(Unit(adapter="two", preprocessor="none"), (picture(),))], size)
    with prepared.control as control:
        control.begin_step(0, 1)
        latent = (size[1] // 8, size[0] // 8)
        assert [tuple(feature.shape[-2:]) for feature in maps_on(control)] == [tuple(-(-side // 2 ** level) for side in latent) for level in range(4)]


def test_a_region_is_brought_to_the_picture_and_cuts_the_features(shelf):
    unet = make("sd1")
    region = np.zeros((96, 144), np.uint8)
    region[:, :72] = 255
    given = Asked(Unit(adapter="two", preprocessor="none"), (picture(),), region)
    with Preparation(shelf).prepare(unet, [given], SIZE).control as control:
        control.begin_step(0, 1)
        for feature in maps_on(control)[:3]:  # the smallest is three cells wide
            half = feature.shape[-1] // 2
            assert feature[..., half:].count_nonzero() == 0 and feature[..., :half].count_nonzero()


def test_style_pictures_become_words(shelf):
    unet, seen = make("sd1"), []

    def see(given):
        seen.append(given.shape)
        return torch.from_numpy(np.resize(given, (1, 17, 16)).astype(np.float32) / 255)

    preparation = Preparation(shelf, see)
    for _ in range(2):
        prepared = preparation.prepare(unet, [Asked(Unit(adapter="words", weight=0.5), (picture(),))], SIZE)
    assert seen == [(96, 144, 3)] and prepared.problems == [] and prepared.maps == []
    with prepared.control as control:
        control.begin_step(0, 1)
        found = control.extend(torch.zeros(1, 77, CONTEXT), [(0, False)])
        close(found[:, 77:], 0.5 * open_adapter(shelf.find("words"))(see(picture()))[0])
        assert control.session._maps == []


def test_the_fuser_is_used_when_it_is_there_and_several_adapters_act(shelf, tmp_path):
    unet = make("sd1")
    several = [Asked(Unit(adapter="edges", preprocessor="canny"), (picture(),)), Asked(Unit(adapter="color"), (picture(),))]
    preparation = Preparation(shelf)
    assert preparation.prepare(unet, several, SIZE).fuser is None
    fuser = CoAdapterFuser(channels=slow.NARROW, width=16, layers=1)
    write_adapter(tmp_path / "a-fuser-of-another-model.safetensors", fuser)
    assert preparation.prepare(unet, several, SIZE).fuser is None
    write_adapter(tmp_path / "coadapter-fuser.safetensors", random(CoAdapterFuser(channels=CHANNELS, width=16, layers=1)))
    # an adapter's task is told by its name where its metadata is silent
    shelf.find("edges").rename(tmp_path / "my-canny.safetensors")
    several[0] = Asked(Unit(adapter="my-canny"), (picture(),))
    used = preparation.prepare(unet, several, SIZE)
    assert (used.fuser, used.problems) == ("coadapter-fuser", [])
    assert preparation.prepare(unet, several[:1], SIZE).fuser is None
    assert preparation.prepare(unet, several[:1], SIZE, fuser="coadapter-fuser").fuser == "coadapter-fuser"
    assert preparation.prepare(unet, several, SIZE, fuser="none").fuser is None
    shelf.find("my-canny").rename(tmp_path / "coadapter-canny.safetensors")
    assert preparation.prepare(unet, [Asked(Unit(adapter="coadapter-canny"), (picture(),))], SIZE).fuser == "coadapter-fuser"
    wrong = preparation.prepare(unet, several[1:], SIZE, fuser="a-fuser-of-another-model")
    assert wrong.fuser is None and "another model" in wrong.problems[0]
    chosen = preparation.prepare(unet, [Asked(Unit(adapter="coadapter-fuser"), (picture(),))], SIZE)
    assert "acts on other adapters" in chosen.problems[0]
    plain, fused = (preparation.prepare(unet, [several[1], Asked(Unit(adapter="coadapter-canny"), (picture(),))], SIZE, fuser=name).control
                    for name in ("none", "auto"))
    plain.begin_step(0, 1)
    without = maps_on(plain)
    fused.begin_step(0, 1)
    assert not torch.allclose(maps_on(fused)[0], without[0])


def test_maps_come_from_the_same_preprocessors_as_everywhere(shelf):
    facts = shelf.facts("edges")
    made = make_map(Unit(adapter="edges", threshold_a=50, threshold_b=90), facts, picture(), SIZE)
    other = make_map(Unit(adapter="edges", preprocessor="invert"), facts, picture(), SIZE)
    assert made.shape == other.shape == (128, 192, 3) and not np.array_equal(made, other)
    assert np.array_equal(make_map(Unit(adapter="edges", preprocessor="none"), facts, picture(), SIZE), fit(picture(), *SIZE, "crop and resize"))
    with pytest.raises(ConfigError, match="no preprocessor"):
        settle(Unit(adapter="edges", preprocessor="cany"), facts)


def test_a_cache_gives_up_what_was_used_longest_ago_and_goes_with_its_adapter():
    adapter, cache, calls = FullAdapter(channels=(4, 4)), FeatureCache(), []
    adapter.register_forward_hook(lambda module, args, output: calls.append(1))
    pictures = [picture(seed, 16, 16) for seed in range(20)]
    for each in pictures:
        cache.features(adapter, [each])
    cache.features(adapter, pictures[-8:])
    assert len(calls) == 20
    cache.features(adapter, pictures[:1])
    assert len(calls) == 21
    del adapter
    assert len(cache._known) == 0


@torch.no_grad()
@pytest.mark.parametrize(("layout", "other"), [("sd", "sdxl"), ("sdxl", "sd1")])
def test_an_adapter_of_another_layout_is_left_out_though_its_channels_fit(tmp_path, layout, other):
    unet = make(other)
    channels = FeatureSession(unet).channels
    write_adapter(tmp_path / "away.safetensors", FullAdapter(channels=channels, layout=layout))
    preparation = Preparation(AdapterShelf([tmp_path]))
    asked = [Asked(Unit(adapter="away", preprocessor="none"), (picture(),))]
    prepared = preparation.prepare(unet, asked, SIZE)
    problem, = prepared.problems
    assert problem.startswith("adapter 1 (away) was left out: it is for another model") and "\n" not in problem and not prepared.units
    with pytest.raises(AdapterError, match="another model"):
        preparation.prepare(unet, [Asked(Unit(adapter="away", preprocessor="none", strict=True), (picture(),))], SIZE)


def test_auto_takes_the_values_that_an_adapter_was_trained_with(tmp_path):
    write_adapter(tmp_path / "own.safetensors", FullAdapter(channels=CHANNELS), preprocessor="canny", preprocessor_values="low=20, high=40")
    shelf = AdapterShelf([tmp_path])
    facts, seen = shelf.facts("own"), picture()
    found = settled_unit(Unit(adapter="own"), facts)
    assert (found.preprocessor, found.threshold_a, found.threshold_b) == ("canny", 20, 40)
    said = {"adapter": "own", "preprocessor": "canny", "threshold_a": 20.0, "threshold_b": 40.0}
    assert np.array_equal(make_map(Unit(adapter="own"), facts, seen, SIZE), make_map(Unit(**said), facts, seen, SIZE))
    assert settled_unit(Unit(adapter="own", threshold_b=300.0), facts).threshold_b == 300
    named = settled_unit(Unit(adapter="own", preprocessor="canny"), facts)
    assert (named.threshold_a, named.threshold_b) == (None, None)
    assert settled_unit(Unit(adapter="own", preprocessor="blur"), facts).threshold_a is None
    prepared = Preparation(shelf).prepare(make("sd1"), [Asked(Unit(adapter="own"), (seen,))], SIZE)
    assert prepared.units == [(1, found)]


@pytest.mark.parametrize("told", ["low=many", "low=300, high=20", "lo=3", "low", ",", "high=-5"])
def test_values_in_metadata_that_are_no_values_leave_the_preprocessors_own(tmp_path, told):
    write_adapter(tmp_path / "own.safetensors", FullAdapter(channels=CHANNELS), preprocessor="canny", preprocessor_values=told)
    found = settled_unit(Unit(adapter="own"), AdapterShelf([tmp_path]).facts("own"))
    assert (found.preprocessor, found.threshold_a, found.threshold_b) == ("canny", None, None)


def test_a_hires_passs_map_is_made_anew_as_much_finer_as_the_picture_is_larger(shelf):
    unet, seen = make("sd1"), picture(height=256, width=384)
    unit = Unit(adapter="edges", processor_resolution=128)
    preparation = Preparation(shelf)

    def made(size, **how):
        return preparation.prepare(unet, [Asked(unit, (seen,))], size, **how).maps[0][1]

    larger = (384, 256)
    finer = make_map(Unit(adapter="edges", processor_resolution=256), shelf.facts("edges"), seen, larger)
    assert np.array_equal(made(larger, hires=True, first=SIZE), finer)
    assert not np.array_equal(fit(made(SIZE), *larger, unit.resize_mode), finer)
    assert np.array_equal(made(larger, first=SIZE), made(larger))  # a first pass keeps the resolution


def test_a_hires_resolution_is_not_finer_than_what_is_looked_at():
    assert grown_resolution(None, (64, 64), (128, 128)) is None
    assert grown_resolution(48, (64, 64), (128, 160)) == 96
    assert grown_resolution(48, (64, 64), (128, 128), picture(height=70, width=90)) == 70
    assert grown_resolution(48, (64, 64), (128, 128), picture(height=20, width=20)) == 48
    assert grown_resolution(3000, (64, 64), (128, 128)) == 4096
