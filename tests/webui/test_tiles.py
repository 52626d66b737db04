"""UNet calls that hold tiles: each row gets its own part of its own picture."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib_lycoris.patching.features import Row
from lib_lycoris.webui.tiles import Tiles, read_batches, telling_rows

LATENT = (8, 16)


def a_tile(x, y, w=8, h=4):
    return SimpleNamespace(x=x, y=y, w=w, h=h)


def a_picture(batches, custom=(), title="Tiled Diffusion"):
    delegate = SimpleNamespace(batched_bboxes=batches, custom_bboxes=list(custom))
    script = SimpleNamespace(title=lambda: title, delegate=delegate)
    return SimpleNamespace(scripts=SimpleNamespace(alwayson_scripts=[SimpleNamespace(title=lambda: "other"), script]))


GRID = [[a_tile(0, 0), a_tile(8, 0)], [a_tile(0, 4), a_tile(8, 4)]]
BOXES = [((0, 0, 0.5, 0.5), (0, 0.5, 0.5, 1)), ((0.5, 0, 1, 0.5), (0.5, 0.5, 1, 1))]


@pytest.mark.parametrize("cut", [6, 2, 3])
def test_rows_are_told_by_tile_and_picture_however_the_host_cuts_its_calls(cut):
    """The extension takes each of the host's calls apart: all rows of tile 1, all rows of tile 2, …, batch after batch."""
    rows = [0, 0, 1, 0, 1, 1]
    tiles = Tiles(a_picture(GRID), LATENT)
    for _ in range(2):
        tiles.begin_step(rows)
        for start in range(0, len(rows), cut):
            part = rows[start : start + cut]
            for boxes in BOXES:
                assert tiles.rows(2 * len(part), (4, 8)) == [Row(picture, box) for box in boxes for picture in part]


def test_what_is_no_grid_of_tiles_is_not_guessed():
    rows = [0, 0]
    for p, count, size in ((a_picture([]), 4, (4, 8)), (a_picture(GRID), 4, (4, 4)), (a_picture(GRID), 3, (4, 8)), (a_picture(GRID), 8, (4, 8)),
                           (a_picture(GRID, [a_tile(0, 0)]), 4, (4, 8)), (a_picture(GRID, title="another"), 4, (4, 8)),
                           (SimpleNamespace(scripts=None), 4, (4, 8))):
        tiles = Tiles(p, LATENT)
        tiles.begin_step(rows)
        assert tiles.rows(count, size) is None


def test_an_idle_extension_has_no_tiles():
    p = a_picture(GRID)
    p.scripts.alwayson_scripts[1].delegate = None
    assert read_batches(p, LATENT) == [] and len(read_batches(a_picture(GRID), LATENT)) == 2


@pytest.mark.parametrize("cut", [6, 2, 3])
def test_a_calls_rows_of_the_step_are_told(cut):
    telling = telling_rows(a_picture(GRID), LATENT, 6)
    for start in range(0, 6, cut):
        for _ in BOXES:
            assert telling(torch.zeros(2 * cut, 4, 4, 8)) == [*range(start, start + cut)] * 2
    assert telling(torch.zeros(6, 4, *LATENT)) is None  # no tile
    assert telling(torch.zeros(5, 4, 4, 8)) == []
    assert telling_rows(a_picture(GRID, [a_tile(0, 0)]), LATENT, 6)(torch.zeros(6, 4, 4, 8)) == []
    assert telling_rows(a_picture(GRID, title="another"), LATENT, 6) is None


@pytest.mark.parametrize("tag", ["<lyco:A:1>", "<lyco:B:unet=0@0,1@1>"])
def test_networks_stay_on_where_regions_put_on_and_take_off_their_own(stand_in_webui, tag):
    """As the extension does it within the model's call, for each region with a prompt of its own."""
    from modules import extra_networks, scripts, sd_models

    region = SimpleNamespace(extra_network_data={"lyco": [extra_networks.ExtraNetworkParams(["B", "1"])]})

    class Regions(scripts.Script):
        def title(self):
            return "Tiled Diffusion"

        def process(self, p, *args):
            self.p = p

    def turn(module, args, output):
        extra_networks.activate(script.p, region.extra_network_data)
        extra_networks.deactivate(script.p, region.extra_network_data)

    prompt, script = "regions", Regions()
    base, wanted = (stand_in_webui.picture(f"{prompt} {each}") for each in ("", tag))
    stand_in_webui._scripts.append(script)
    handle = sd_models.model_data.sd_model.model.diffusion_model.register_forward_hook(turn)
    try:
        made = stand_in_webui.picture(f"{prompt} {tag}")
    finally:
        handle.remove()
        stand_in_webui._scripts.remove(script)
    assert made.pictures == wanted.pictures != base.pictures
    assert stand_in_webui.picture(prompt).pictures == base.pictures and stand_in_webui.model()["hooks"] == {}
