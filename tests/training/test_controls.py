"""Control pictures: found, missed, cut and turned with the pictures they belong to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import ConfigError, DatasetError
from lib_lycoris.training.config import DataSettings, TrainConfig
from lib_lycoris.training.control_maps import ControlMaps, find_values
from lib_lycoris.training.controls import find_control, with_controls
from lib_lycoris.training.dataset import read_dataset
from lib_lycoris.training.fence import Fence
from lib_lycoris.training.latents import Variant, variants_of
from lib_lycoris.training.materials import read_pictures
from lib_lycoris.training.pictures import open_image, to_pixels, to_rgb


def scene(width=96, height=64):
    """A picture in which every pixel tells where it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, np.full_like(x, 90)], -1).astype(np.uint8)


def write(folder, name="a", picture=None, caption="a thing"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene() if picture is None else picture).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(caption, encoding="utf-8")
    return folder


def read(folder, **settings):
    settings = DataSettings(folders=(str(folder),), **{"resolution": 64, "bucket_step": 8, **settings})
    return with_controls(read_dataset(settings), settings), settings


def maps_of(folder, **settings):
    dataset, settings = read(folder, **settings)
    maps = ControlMaps(settings)
    maps.prepare(dataset.pictures)
    return dataset.pictures, maps


def test_a_control_picture_lies_beside_its_picture_and_is_not_learned_from(tmp_path):
    Image.fromarray(scene()).save(write(tmp_path) / "a.cond.jpg")
    dataset, _ = read(tmp_path)
    assert [picture.path.name for picture in dataset.pictures] == ["a.png"]
    assert dataset.pictures[0].control == tmp_path / "a.cond.jpg"


def test_another_suffix_may_mark_them(tmp_path):
    Image.fromarray(scene()).save(write(tmp_path) / "a_depth.png")
    dataset, _ = read(tmp_path, control_suffix="_depth")
    assert [picture.control.name for picture in dataset.pictures] == ["a_depth.png"]


@pytest.mark.parametrize("where", ["maps", "data/maps", "maps/10_thing"])
def test_they_may_lie_in_a_folder_of_their_own_by_the_pictures_names(tmp_path, where):
    write(tmp_path / "data/10_thing")
    controls = tmp_path / where if where != "data/maps" else tmp_path / "data/10_thing/maps"
    write(controls)
    folder = "maps" if where == "data/maps" else str(tmp_path / "maps")
    dataset, _ = read(tmp_path / "data", control_folder=folder)
    assert [picture.control for picture in dataset.pictures] == [controls / "a.png"]


def test_missing_ones_are_counted_and_named_with_what_to_do(tmp_path):
    for name in "abcde":
        write(tmp_path, name)
    Image.fromarray(scene()).save(tmp_path / "c.cond.png")
    with pytest.raises(DatasetError) as caught:
        read(tmp_path)
    words = str(caught.value)
    assert words.startswith("4 of 5 pictures have no control picture: ") and "a.png" in words and "a.cond.png beside it" in words and "\n" not in words
    with pytest.raises(DatasetError, match=r"5 of 5 pictures have no control picture: .*a picture of that name in maps"):
        read(tmp_path, control_folder="maps")


def test_one_of_another_shape_is_refused_and_both_sizes_are_told(tmp_path):
    Image.fromarray(scene(64, 64)).save(write(tmp_path) / "a.cond.png")
    with pytest.raises(DatasetError, match="64×64 pixels, its picture 96×64: make it of the same shape"):
        read(tmp_path)


def test_one_that_is_no_picture_is_told(tmp_path):
    (write(tmp_path) / "a.cond.png").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match="not a picture"):
        read(tmp_path)


def test_kohyas_dataset_file_names_their_folder_for_each_subset(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "maps")
    (tmp_path / "set.toml").write_text(f'[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = "{(tmp_path / "one").as_posix()}"\n'
                                       f'conditioning_data_dir = "{(tmp_path / "maps").as_posix()}"\n', encoding="utf-8")
    settings = DataSettings(dataset=str(tmp_path / "set.toml"))
    dataset = with_controls(read_dataset(settings), settings)
    assert [picture.control for picture in dataset.pictures] == [tmp_path / "maps/a.png"]
    values = {"data": {"dataset": str(tmp_path / "set.toml")}}
    assert any("conditioning_data_dir is ignored" in line for line in read_pictures(TrainConfig.from_dict(values)).learned.problems)


def test_a_copy_of_the_picture_itself_is_told_of(tmp_path):
    write(tmp_path)
    (tmp_path / "a.cond.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert any("the picture itself, byte for byte" in problem for problem in read(tmp_path)[0].problems)


@pytest.mark.parametrize("settings", [
    {}, {"flip": True}, {"buckets": False}, {"buckets": False, "random_crop": True, "flip": True}, {"buckets": False, "random_crop": True, "resolution": 80},
])
def test_they_are_cut_scaled_and_mirrored_as_their_pictures(tmp_path, settings):
    """The control picture is the picture, so that each variant must be what the picture's own way gives, but for the filter."""
    picture = scene(120, 80)
    Image.fromarray(picture).save(write(tmp_path, picture=picture) / "a.cond.png")
    (found,), maps = maps_of(tmp_path, **settings)
    image = to_rgb(open_image(found.path))
    for variant in variants_of(found):
        wanted = (to_pixels(image, found.frame.box(variant.place), found.frame.size) + 1) / 2
        wanted = wanted.flip(-1) if variant.mirrored else wanted
        got = maps.get(found, variant)
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() < 0.03


def test_lines_stay_two_valued_and_flat_colours_the_same_when_scaled(tmp_path):
    lines = np.zeros((128, 192, 3), np.uint8)
    lines[:, 96:98] = 255
    Image.fromarray(lines).save(write(tmp_path) / "a.cond.png")  # twice the picture's size
    (found,), maps = maps_of(tmp_path)
    assert set(maps.get(found, Variant()).unique().tolist()) == {0.0, 1.0}


def test_sixteen_bits_transparency_and_grey_are_read_as_control_pictures_are_meant(tmp_path):
    write(tmp_path)
    levels = np.linspace(0, 65535, 96).astype(np.uint16)[None].repeat(64, 0)
    Image.fromarray(levels).save(tmp_path / "a.cond.png")
    (found,), maps = maps_of(tmp_path, resolution=96, buckets=False)
    got = maps.get(found, Variant())
    assert torch.equal(got[0], got[1]) and 0.15 < float(got[0, :, 0].mean()) < 0.19 and 0.81 < float(got[0, :, -1].mean()) < 0.85
    ghost = np.full((64, 96, 4), 255, np.uint8)
    ghost[:, :48, 3] = 0
    Image.fromarray(ghost).save(tmp_path / "a.cond.png")
    (found,), maps = maps_of(tmp_path)
    got = maps.get(found, Variant())
    assert float(got[..., :16].max()) == 0 and float(got[..., -16:].min()) == 1  # what is transparent is black, nothing to follow


def test_a_picture_that_exif_turns_takes_its_control_picture_along(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path)
    Image.fromarray(scene()).save(tmp_path / "a.png", exif=exif)
    Image.fromarray(scene()).save(tmp_path / "a.cond.png")  # lies as the bytes do, and says nothing
    (found,), maps = maps_of(tmp_path)
    assert found.size == (64, 96)
    wanted = (to_pixels(to_rgb(open_image(found.path)), found.frame.box(None), found.frame.size) + 1) / 2
    assert (maps.get(found, Variant()) - wanted).abs().max() < 0.03


def test_a_preprocessor_makes_them_of_the_cut_picture(tmp_path):
    from lib_lycoris.preprocess.table import find_preprocessor

    picture = np.full((64, 96, 3), 20, np.uint8)
    picture[20:44, 30:60] = 220
    write(tmp_path, picture=picture)
    settings = {"preprocessor": "canny", "preprocessor_values": ("low=50", "high=100")}
    (found,), maps = maps_of(tmp_path, resolution=64, buckets=False, **settings)
    seen = ((to_pixels(to_rgb(open_image(found.path)), found.frame.box(None), (64, 64)) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    canny = find_preprocessor("canny")
    wanted = canny.run(seen, None, canny.values(low=50, high=100))
    assert found.control is None and wanted.any()
    assert torch.equal(maps.get(found, Variant()), torch.from_numpy(wanted).permute(2, 0, 1) / 255)
    assert torch.equal(maps.get(found, Variant(None, True)), maps.get(found, Variant()).flip(-1))


@pytest.mark.parametrize(("settings", "words"), [
    ({"preprocessor": "cany"}, "did you mean canny"),
    ({"preprocessor": "canny", "preprocessor_values": ("lo=3",)}, "knows no 'lo'; it has low, high"),
    ({"preprocessor": "canny", "preprocessor_values": ("low=many",)}, "low"),
    ({"preprocessor": "canny", "preprocessor_values": ("low=300", "high=20")}, "above canny.high"),
])
def test_a_preprocessor_or_value_that_is_not_known_is_told(settings, words):
    with pytest.raises(ConfigError, match=words) as caught:
        find_values(DataSettings(**settings))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_into_memory_is_made_again_and_is_the_same(tmp_path):
    Image.fromarray(scene()).save(write(tmp_path) / "a.cond.png")
    (found,), maps = maps_of(tmp_path)
    dataset, settings = read(tmp_path)
    poor = ControlMaps(settings, most_bytes=0)
    poor.prepare(dataset.pictures)
    assert torch.equal(maps.get(found, Variant()), poor.get(found, Variant()))


def test_a_picture_with_the_suffix_but_no_partner_is_a_picture(tmp_path):
    write(tmp_path, "night.cond")
    dataset = read_dataset(DataSettings(folders=(str(tmp_path),), resolution=64))
    assert [picture.path.name for picture in dataset.pictures] == ["night.cond.png"]
    assert find_control(tmp_path / "night.cond.png") is None


def test_over_the_network_they_may_lie_where_pictures_may_and_nowhere_else(tmp_path):
    fence = Fence(lambda: [tmp_path / "out"], lambda: [tmp_path / "allowed"], "ask the owner")
    (tmp_path / "secret").mkdir()

    def config(control_folder):
        return TrainConfig.from_dict({"data": {"folders": [str(tmp_path / "allowed/cats")], "control_folder": control_folder}, "network": {"kind": "adapter"},
                                      "output": {"folder": str(tmp_path / "out")}})

    for allowed in ("maps", "../maps", str(tmp_path / "allowed/maps")):
        fence.check(config(allowed))
    for forbidden in ("../../secret", str(tmp_path / "secret")):
        with pytest.raises(ConfigError, match=r"data\.control_folder"):
            fence.check(config(forbidden))
