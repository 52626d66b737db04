"""Laws of feature maps on a UNet: where diffusers and LDM add them, row by row, at any size, with gradients, beside networks, and off without a trace."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lib_lycoris.errors import ConfigError
from lib_lycoris.patching.features import FeatureSession, Row
from lib_lycoris.patching.places import feature_channels, find_places
from lib_lycoris.patching.session import Session
from lib_lycoris.training.checkpointing import checkpointed

from .helpers import assert_untouched, generator, merge_by_hand, photograph, random_network
from .trees import CONTEXT, SD1, SDXL, Holder, LdmUNet, diffusers_unet

LAYOUTS = {"sd1": SD1, "sdxl": SDXL}
LEVELS = {"sd1": (0, 1, 2, 3), "sdxl": (1, 1, 2, 2)}


def make(kind, spelling="ldm", seed=0):
    torch.manual_seed(seed)
    return (LdmUNet(**LAYOUTS[kind]) if spelling == "ldm" else diffusers_unet(kind)).eval().requires_grad_(False)


def inputs(kind, batch=2, size=(16, 24), seed=0):
    draw = generator(seed)
    x, t, context = torch.randn(batch, 4, *size, generator=draw), torch.arange(1.0, batch + 1) * 100, torch.randn(batch, 5, CONTEXT, generator=draw)
    return (x, t, context) if kind == "sd1" else (x, t, context, torch.randn(batch, SDXL["vector"], generator=draw))


def run(unet, given, **options):
    if isinstance(unet, LdmUNet):
        return unet(*given)
    x, t, context = given[:3]
    if len(given) == 4:  # the part of `y` that diffusers makes itself is left to it
        options["added_cond_kwargs"] = {"text_embeds": given[3][:, :SDXL["vector"] - 2 * 1], "time_ids": torch.ones(len(x), 1)}
    return unet(x, t, context, **options).sample


def make_maps(kind, unet, size=(16, 24), pictures=1, seed=0):
    sides = [tuple(-(-side // 2 ** level) for side in size) for level in LEVELS[kind]]
    draw = generator(seed + 5)
    return [torch.randn(pictures, channels, *side, generator=draw) for channels, side in zip(feature_channels(unet), sides, strict=True)]


def by_hand(unet, given, maps):
    """LDM's forward, written out, with maps added where TencentARC's UNet adds them."""
    x, t, context, *y = given
    emb = unet.time_embed(torch.cos(t[:, None] * torch.arange(1, unet.time_embed[0].in_features + 1)))
    emb = emb + unet.label_emb(y[0]) if y else emb
    places = (3, 5, 8) if y else (2, 5, 8, 11)
    skips = []
    for number, block in enumerate(unet.input_blocks):
        x = block(x, emb, context)
        if number in places:
            x = x + maps[places.index(number)]
        skips.append(x)
    x = unet.middle_block(x, emb, context) + (maps[3] if y else 0)
    for block in unet.output_blocks:
        x = block(torch.cat([x, skips.pop()], dim=1), emb, context)
    return unet.out(x)


def close(a, b, **tolerance):
    torch.testing.assert_close(a, b, **{"atol": 1e-5, "rtol": 1e-5, **tolerance})


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.no_grad()
def test_an_ldm_unet_gets_maps_where_tencents_does(kind):
    unet, given = make(kind), inputs(kind)
    maps, plain = make_maps(kind, unet), unet(*given)
    with FeatureSession(unet) as session:
        session.set(maps)
        found = unet(*given)
        assert session.added == 4
    close(found, by_hand(unet, given, maps))
    assert (found - plain).abs().max() > 0.01
    assert torch.equal(unet(*given), plain)


@pytest.mark.parametrize("size", [(16, 24), (17, 23), (13, 9)])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.no_grad()
def test_a_diffusers_unet_gets_maps_where_its_own_program_adds_them(kind, size):
    unet, given = make(kind, "diffusers"), inputs(kind, size=size)
    maps = make_maps(kind, unet, size)
    expected = run(unet, given, down_intrablock_additional_residuals=[feature.repeat(2, 1, 1, 1) for feature in maps])
    with FeatureSession(unet) as session:
        session.set(maps)
        found = run(unet, given)
    close(found, expected)
    assert (found - run(unet, given)).abs().max() > 0.01


def test_places_are_found_within_a_wrapper_and_nowhere_else():
    unet = make("sd1")
    assert [place.name for place in find_places(Holder(model=unet)).places] == [f"input_blocks.{number}" for number in (2, 5, 8, 11)]
    found = find_places(make("sdxl"))
    assert [place.name for place in found.places] == ["input_blocks.3", "input_blocks.5", "input_blocks.8", "middle_block"]
    assert (found.layout, found.channels) == ("sdxl", (4, 8, 8, 8))
    for other in (nn.Linear(2, 2), LdmUNet(widths=(4, 8), depths=(1, 0))):
        with pytest.raises(ConfigError, match="SD 1, SD 2 and SDXL"):
            FeatureSession(other)


def test_the_diffusers_trees_places():
    assert [place.name for place in find_places(make("sd1", "diffusers")).places] == [
        "down_blocks.0.attentions.1", "down_blocks.1.attentions.1", "down_blocks.2.attentions.1", "down_blocks.3.resnets.1"]
    assert [place.name for place in find_places(make("sdxl", "diffusers")).places] == [
        "down_blocks.0.downsamplers.0", "down_blocks.1.attentions.1", "down_blocks.2.attentions.1", "mid_block"]


@pytest.mark.parametrize("spelling", ["ldm", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
@torch.no_grad()
def test_each_row_gets_its_own_pictures_map(kind, spelling):
    unet, given = make(kind, spelling), inputs(kind, batch=5)
    maps, rows = make_maps(kind, unet, pictures=2), (1, None, 0, 1, None)
    with FeatureSession(unet) as session:
        session.set(maps, rows)
        found = run(unet, given)
        for number, row in enumerate(rows):
            alone = tuple(each[number:number + 1] for each in given)
            session.set(None if row is None else [feature[row:row + 1] for feature in maps])
            close(found[number:number + 1], run(unet, alone))


@pytest.mark.parametrize("cuts", [(4,), (2, 2), (1, 3), (1, 1, 1, 1), (2,)])
@torch.no_grad()
def test_a_step_may_come_in_several_calls_or_without_its_last_rows(cuts):
    unet, given = make("sd1"), inputs("sd1", batch=4)
    maps, rows = make_maps("sd1", unet, pictures=2), (0, 1, 0, 1)
    with FeatureSession(unet) as session:
        session.set(maps, rows)
        whole = unet(*given)
        for _ in range(3):  # steps
            session.begin_step(rows)
            start, found = 0, []
            for count in cuts:
                found.append(unet(*(each[start:start + count] for each in given)))
                start += count
            close(torch.cat(found), whole[:start])
        assert session.problems == []


@torch.no_grad()
def test_without_rows_each_call_goes_picture_after_picture():
    unet, given = make("sd1"), inputs("sd1", batch=4)
    maps = make_maps("sd1", unet, pictures=2)
    with FeatureSession(unet) as session:
        session.set(maps, (0, 1, 0, 1))
        expected = unet(*given)
        session.set(maps)
        close(unet(*given), expected)
        close(unet(*(each[:2] for each in given)), expected[:2])
        close(unet(*given), expected)


@torch.no_grad()
def test_rows_that_can_not_be_told_apart_get_nothing_and_it_is_said():
    unet = make("sd1")
    with FeatureSession(unet) as session:
        session.set(make_maps("sd1", unet, pictures=2), (0, 1))
        given = inputs("sd1", batch=3)
        found = unet(*given)
        assert session.problems == ["maps of single pictures were left out: a call of the UNet with 3 rows does not fit into a step of 2"]
    close(found, unet(*given))


@torch.no_grad()
def test_a_row_that_is_a_part_of_the_picture_gets_that_part_of_its_map():
    unet, given = make("sd1"), inputs("sd1", size=(8, 8), batch=2)
    maps = make_maps("sd1", unet, (16, 16))
    with FeatureSession(unet) as session:
        session.set(maps, [Row(0, (0.0, 0.5, 0.5, 1.0)), Row(0, (0.5, 0.0, 1.0, 0.5))])
        found = unet(*given)
        tiles = [torch.cat([feature[..., :half, half:], feature[..., half:, :half]]) for feature in maps for half in [feature.shape[-1] // 2]]
        session.set(tiles)
        close(found, unet(*given))


@pytest.mark.parametrize("spelling", ["ldm", "diffusers"])
@torch.no_grad()
def test_maps_of_another_size_are_brought_to_the_blocks(spelling):
    unet, given = make("sd1", spelling), inputs("sd1", size=(24, 32))
    maps = make_maps("sd1", unet, (16, 16))
    with FeatureSession(unet) as session:
        session.set(maps)
        found = run(unet, given)
        shapes = [(24 // 2 ** level, 32 // 2 ** level) for level in range(4)]
        session.set([F.interpolate(feature, size=shape, mode="bilinear") for feature, shape in zip(maps, shapes, strict=True)])
        close(found, run(unet, given))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_maps_follow_the_blocks_dtype(dtype):
    unet, given = make("sd1"), inputs("sd1")
    maps = make_maps("sd1", unet)
    with FeatureSession(unet) as session:
        session.set(maps)
        expected = unet(*given)
        half = unet.to(dtype)
        # torch.cos of t stays float32 in this small tree
        half.time_embed.register_forward_pre_hook(lambda module, args: (args[0].to(dtype),))
        found = half(*(each.to(dtype) for each in given))
        assert found.dtype == dtype
        assert ((found.float() - expected).norm() / expected.norm()).item() < 0.1


@pytest.mark.parametrize("spelling", ["ldm", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_restoring_leaves_no_trace_also_after_an_exception(kind, spelling):
    unet, given = make(kind, spelling), inputs(kind)
    before, plain = photograph(unet), run(unet, given)
    session = FeatureSession(unet)
    session.set(make_maps(kind, unet))
    with pytest.raises(RuntimeError):
        run(unet, (given[0][:, :3], *given[1:]))
    session.restore()
    session.restore()
    assert_untouched(unet, before)
    assert torch.equal(run(unet, given), plain)
    with pytest.raises(ZeroDivisionError), FeatureSession(unet) as session:
        session.set(make_maps(kind, unet))
        1 / 0  # noqa: B018
    assert_untouched(unet, before)


@torch.no_grad()
def test_copies_of_the_model_take_no_map_along():
    unet, given = make("sd1"), inputs("sd1")
    plain = unet(*given)
    with FeatureSession(unet) as session:
        session.set(make_maps("sd1", unet))
        assert torch.equal(copy.deepcopy(unet)(*given), plain)
        assert torch.equal(pickle.loads(pickle.dumps(unet))(*given), plain)


@torch.no_grad()
def test_sessions_add_up_and_end_in_any_order():
    unet, given = make("sd1"), inputs("sd1")
    before, one, two = photograph(unet), make_maps("sd1", unet, seed=1), make_maps("sd1", unet, seed=2)
    first, second = FeatureSession(unet), FeatureSession(unet)
    first.set(one)
    second.set(two)
    close(unet(*given), by_hand_sum(unet, given, one, two))
    first.restore()
    with FeatureSession(unet) as third:
        second.restore()
        third.set(two)
        found = unet(*given)
    assert_untouched(unet, before)
    close(found, by_hand(unet, given, two))


def by_hand_sum(unet, given, one, two):
    copied = copy.deepcopy(unet)
    return by_hand(copied, given, [a + b for a, b in zip(one, two, strict=True)])


@pytest.mark.parametrize("beside", [False, True])
@torch.no_grad()
def test_networks_on_the_same_unet_do_not_mind(beside):
    unet, given = make("sd1"), inputs("sd1")
    before, maps = photograph(unet), make_maps("sd1", unet)
    networks, features = Session(unet, beside=beside), FeatureSession(unet)
    network = random_network(networks.targets, seed=1)
    networks.apply([(network, 0.7)])
    features.set(maps)
    found = unet(*given)
    by = copy.deepcopy(make("sd1"))
    merge_by_hand(Session(by).targets, [(network, 0.7)])
    close(found, by_hand(by, given, maps), atol=1e-4, rtol=1e-4)
    networks.restore()
    close(unet(*given), by_hand(copy.deepcopy(make("sd1")), given, maps))
    features.restore()
    assert_untouched(unet, before)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("spelling", ["ldm", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_gradients_flow_into_the_maps(kind, spelling, checkpointing):
    """The slope along a random direction, by finite differences in float64."""
    unet, given = make(kind, spelling).double(), tuple(each.double() for each in inputs(kind))
    maps = [feature.double().requires_grad_() for feature in make_maps(kind, unet)]
    if spelling == "ldm":
        unet.time_embed.register_forward_pre_hook(lambda module, args: (args[0].double(),))

    with FeatureSession(unet) as session:
        def loss(values):
            session.set(values)
            return run(unet, given).square().mean()

        if checkpointing:
            with checkpointed([unet]):
                value = loss(maps)
                value.backward()
        else:
            loss(maps).backward()
        direction = [torch.randn_like(feature) for feature in maps]
        with torch.no_grad():
            step = 1e-5
            ahead = loss([feature + step * way for feature, way in zip(maps, direction, strict=True)])
            behind = loss([feature - step * way for feature, way in zip(maps, direction, strict=True)])
    slope = sum((feature.grad * way).sum() for feature, way in zip(maps, direction, strict=True))
    close(slope, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-8)
    assert all(feature.grad.count_nonzero() for feature in maps)


def test_diffusers_own_gradient_checkpointing_runs_the_hooks_again():
    unet, given = make("sd1", "diffusers"), inputs("sd1")
    gradients = []
    for checkpointing in (False, True):
        unet.train()  # diffusers checkpoints only then; it has no dropout
        if checkpointing:
            unet.enable_gradient_checkpointing()
        maps = [feature.requires_grad_() for feature in make_maps("sd1", unet)]
        with FeatureSession(unet) as session:
            session.set(maps)
            run(unet, given).square().mean().backward()
        gradients.append([feature.grad for feature in maps])
    for plain, checkpointed_ones in zip(*gradients, strict=True):
        close(plain, checkpointed_ones)


def operations(work):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    return {event.key: event.count for event in profile.key_averages() if event.key.startswith("aten::")}


@pytest.mark.parametrize("spelling", ["ldm", "diffusers"])
@pytest.mark.parametrize("pictures", [1, 2])
@torch.no_grad()
def test_a_step_has_four_additions_more_and_nothing_else(spelling, pictures):
    unet, given = make("sd1", spelling), inputs("sd1", batch=4)
    plain = operations(lambda: run(unet, given))
    with FeatureSession(unet) as session:
        rows = [number % pictures for number in range(4)]
        session.set([feature.double() for feature in make_maps("sd1", unet, (20, 20), pictures)], rows)  # another size and dtype: brought to the blocks once
        run(unet, given)

        def step():
            session.begin_step(rows)
            run(unet, given)

        found = operations(step)
    more = {name: count - plain.get(name, 0) for name, count in found.items() if count != plain.get(name, 0)}
    more |= {name: -count for name, count in plain.items() if name not in found}
    assert more == {"aten::add": 4}


def test_maps_of_another_model_are_refused_and_what_was_on_stays():
    unet, given = make("sd1"), inputs("sd1")
    maps = make_maps("sd1", unet)
    with FeatureSession(unet) as session:
        session.set(maps)
        found = unet(*given)
        with pytest.raises(ConfigError, match=r"\[4, 8, 8\].*another model"):
            session.set(maps[:3])
        with pytest.raises(ConfigError, match="pictures"):
            session.set([maps[0].repeat(2, 1, 1, 1), *maps[1:]])
        assert torch.equal(unet(*given), found)


@torch.no_grad()
def test_what_did_not_run_through_the_blocks_is_seen():
    unet, given = make("sd1"), inputs("sd1")
    with FeatureSession(unet) as session:
        session.set(make_maps("sd1", unet))
        unet.input_blocks[2].forward, own = (lambda x, emb, context: x), unet.input_blocks[2].forward
        assert session.added == 0
        unet.input_blocks[2].forward = own
        unet(*given)
        assert session.added == 4
