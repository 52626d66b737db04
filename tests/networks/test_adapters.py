"""Adapters give what their authors' and diffusers' own programs give, and maps of the UNet's sizes for every size of picture."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.networks.adapters.full import FullAdapter
from lib_lycoris.networks.adapters.fuser import TASKS, CoAdapterFuser
from lib_lycoris.networks.adapters.light import LightAdapter
from lib_lycoris.networks.adapters.style import StyleAdapter

from . import adapter_oracles as slow

HALVED = {"sd": (1, 2, 3), "sdxl": (2,)}


def close(found, expected):
    assert [tuple(a.shape) for a in found] == [tuple(b.shape) for b in expected]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("make", [
    {"layout": "sd", "in_channels": 1}, {"layout": "sd"}, {"layout": "sdxl", "in_channels": 1}, {"layout": "sdxl"},
    {"layout": "sd", "blocks": 3, "ksize": 3, "sk": False, "use_conv": True}, {"layout": "sdxl", "blocks": 1, "ksize": 3, "sk": False, "use_conv": True},
    {"layout": "sd", "blocks": 1, "sk": False}, {"layout": "sd", "channels": (4, 4, 4, 4), "ksize": 3},
])
def test_full_adapters_give_the_slow_implementations_maps(make):
    adapter = FullAdapter(**{"channels": slow.NARROW, **make})
    values = slow.random_tensors(adapter)
    adapter.fill(values)
    picture = torch.rand(2, 3, 128, 192)
    close(adapter(picture), slow.full(values, picture[:, :adapter.in_channels], adapter.downscale, adapter.blocks, HALVED[adapter.layout]))


@pytest.mark.parametrize("layout", ["sd", "sdxl"])
def test_light_adapters_give_the_slow_implementations_maps(layout):
    adapter = LightAdapter(channels=slow.NARROW, layout=layout, blocks=3)
    values = slow.random_tensors(adapter)
    adapter.fill(values)
    picture = torch.rand(2, 3, 128, 64)
    close(adapter(picture), slow.light(values, picture, adapter.downscale, HALVED[layout]))


def test_style_adapters_give_the_slow_implementations_words():
    adapter = StyleAdapter(width=32, context=24, layers=2, tokens=5)
    values = slow.random_tensors(adapter)
    adapter.fill(values)
    tokens = torch.randn(3, 17, 32)
    close(adapter(tokens), [slow.style(values, tokens)])


def test_the_fuser_scales_as_the_slow_implementation_does():
    fuser = CoAdapterFuser(channels=slow.NARROW, width=32, layers=2)
    values = slow.random_tensors(fuser)
    fuser.fill(values)
    maps = {task: [torch.randn(2, channels, 4, 6) for channels in slow.NARROW] for task in ("canny", "color")}
    words = torch.randn(2, 5, 32)
    found = fuser([("canny", maps["canny"]), ("style", [words]), ("color", maps["color"])])
    expected, tokens = slow.fuser(values, [(4, maps["canny"]), (5, words), (6, maps["color"])])
    close([a + b for a, b in zip(found[0], found[2], strict=True)], expected)
    close(found[1], [tokens])


def test_a_fresh_fuser_changes_nothing_and_an_unknown_task_is_named():
    fuser = CoAdapterFuser(channels=slow.NARROW, width=32, layers=1)
    maps = [torch.randn(1, channels, 4, 6) for channels in slow.NARROW]
    for found, given in zip(fuser([("depth", maps)])[0], maps, strict=True):
        assert torch.equal(found, given)
    with pytest.raises(ConfigError, match=r"lineart.*sketch, keypose"):
        fuser([("lineart", maps)])
    assert TASKS.index("openpose") == 7  # the rows' order is the files'


def test_the_attention_is_torchs_own():
    adapter = StyleAdapter(width=32, context=8, layers=1)
    theirs = torch.nn.MultiheadAttention(32, 8, batch_first=True)
    theirs.load_state_dict({name.removeprefix("transformer_layes.0.attn."): value for name, value in adapter.tensors().items() if ".attn." in name})
    x = torch.randn(2, 9, 32)
    torch.testing.assert_close(adapter.transformer_layes[0].attn(x), theirs(x, x, x)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["full_adapter", "full_adapter_xl", "light_adapter"])
@pytest.mark.parametrize("size", [(128, 64), (64, 192), (72, 104), (1032 // 4, 40)])
def test_maps_are_those_of_diffusers(kind, size):
    diffusers = pytest.importorskip("diffusers")
    from lib_lycoris.files.adapters import AdapterFacts, to_diffusers

    light, layout = kind == "light_adapter", "sdxl" if kind.endswith("xl") else "sd"
    channels = (8, 16, 16) if light else (8, 12, 16, 16)
    theirs = diffusers.T2IAdapter(in_channels=3, channels=list(channels), num_res_blocks=2, downscale_factor=16 if layout == "sdxl" else 8, adapter_type=kind)
    ours = (LightAdapter if light else FullAdapter)(channels=(*channels, channels[-1]) if light else channels, layout=layout, blocks=2)
    facts = AdapterFacts("light" if light else "full", layout, channels=ours.channels, blocks=2)
    state = theirs.state_dict()
    ours.fill({name: state[name_there] for name, name_there in to_diffusers(ours.tensors(), facts).items()})
    factor = ours.downscale
    size = tuple(side // factor * factor for side in size)  # diffusers takes no other
    picture = torch.rand(1, 3, *size)
    with torch.no_grad():
        close(ours(picture), theirs(picture))


@pytest.mark.parametrize("layout", ["sd", "sdxl"])
@pytest.mark.parametrize("make", [FullAdapter, LightAdapter])
@pytest.mark.parametrize("size", [(520, 600), (712, 1000), (1032, 1048), (64, 8), (72, 136)])
def test_maps_have_the_unets_sizes_for_every_multiple_of_eight(layout, make, size):
    adapter = make(channels=(4, 4, 4, 4), layout=layout, blocks=1)
    latent = [side // 8 for side in size]

    def down(times):
        sides = list(latent)
        for _ in range(times):
            sides = [(side - 1) // 2 + 1 for side in sides]  # a convolution of 3 with stride 2 and padding 1
        return tuple(sides)

    wanted = [down(times) for times in ((0, 1, 2, 3) if layout == "sd" else (1, 1, 2, 2))]
    with torch.no_grad():
        assert [tuple(feature.shape[-2:]) for feature in adapter(torch.rand(1, 3, *size))] == wanted


@pytest.mark.parametrize("make", [FullAdapter, LightAdapter])
def test_a_picture_that_does_not_divide_gives_what_the_one_with_a_longer_edge_gives(make):
    adapter = make(channels=(4, 4, 4, 4), layout="sdxl", blocks=1)
    picture = torch.rand(1, 3, 40, 56)
    longer = torch.cat([picture, picture[..., -1:, :].expand(-1, -1, 8, -1)], 2)
    longer = torch.cat([longer, longer[..., -1:].expand(-1, -1, -1, 8)], 3)
    for a, b in zip(adapter(picture), adapter(longer), strict=True):
        assert torch.equal(a, b)


def test_gray_adapters_take_the_first_channel_and_rgb_ones_take_gray_pictures_thrice():
    gray, rgb = FullAdapter(channels=(4, 4), in_channels=1), FullAdapter(channels=(4, 4))
    picture = torch.rand(1, 3, 16, 16)
    assert torch.equal(gray(picture)[0], gray(picture[:, :1])[0])
    assert torch.equal(rgb(picture[:, :1])[0], rgb(picture[:, :1].repeat(1, 3, 1, 1))[0])


@pytest.mark.parametrize(("kind", "extra"), [(FullAdapter, {}), (FullAdapter, {"sk": False, "use_conv": True, "ksize": 3}), (LightAdapter, {})])
def test_a_fresh_adapter_adds_exactly_zero_and_learns(kind, extra):
    torch.manual_seed(0)
    adapter = kind.create(channels=(16, 16, 16, 16), layout="sd", blocks=2, **extra)
    picture = torch.rand(2, 3, 64, 64)
    assert all(feature.count_nonzero() == 0 for feature in adapter(picture))
    optimizer = torch.optim.Adam(adapter.parameters(), 1e-3)
    wanted = [feature.detach() for feature in kind(channels=(16, 16, 16, 16), layout="sd", blocks=2, **extra)(picture)]
    losses = []
    for _ in range(60):
        loss = sum((feature - goal).square().mean() for feature, goal in zip(adapter(picture), wanted, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(parameter.grad is not None and parameter.grad.count_nonzero() for parameter in adapter.parameters())


@pytest.mark.parametrize("make", [{"layout": "flux"}, {"channels": ()}, {"blocks": 0}, {"in_channels": 0}])
def test_an_adapter_that_can_not_be_is_refused_when_it_is_made(make):
    with pytest.raises(ConfigError):
        FullAdapter(**make)


def test_what_is_no_picture_or_no_tokens_is_refused_in_words():
    with pytest.raises(ConfigError, match=r"\[1, 4, 8, 8\]"):
        FullAdapter(channels=(4, 4))(torch.rand(1, 4, 8, 8))
    with pytest.raises(ConfigError, match="257,32"):
        StyleAdapter(width=32, context=8, layers=1)(torch.rand(1, 9, 16))
    with pytest.raises(ConfigError, match="heads"):
        StyleAdapter(width=30)
