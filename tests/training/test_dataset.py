from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import DatasetError
from lib_lycoris.training.config import DataSettings
from lib_lycoris.training.dataset import check_folders, read_dataset
from lib_lycoris.training.pictures import read_picture

from .fake import make_pictures


def read(*folders, **values):
    return read_dataset(DataSettings(folders=tuple(map(str, folders)), **values))


def test_pictures_come_in_the_order_of_their_names_with_the_captions_beside_them(tmp_path):
    make_pictures(tmp_path, 3)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.WEBP")
    (tmp_path / "a.caption").write_bytes(b"\xef\xbb\xbfan  empty\npicture \n")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "._0.png").write_text("x")
    dataset = read(tmp_path, repeats=2)
    assert [(picture.path.name, picture.caption) for picture in dataset.pictures] == [
        ("0.png", "colour 0, plain"), ("1.png", "colour 1, plain"), ("2.png", "colour 2, plain"), ("a.WEBP", "an empty")]
    assert dataset.draws == (0, 0, 1, 1, 2, 2, 3, 3)
    assert len(dataset.problems) == 1 and "1 of 4 pictures have a caption of several lines, of which the first counts" in dataset.problems[0]
    assert read(tmp_path, captions="joined").pictures[3].caption == "an empty picture"


def test_folders_named_with_a_number_repeat_their_pictures_whether_named_or_inside(tmp_path):
    make_pictures(tmp_path / "3_cat", 1)
    make_pictures(tmp_path / "2_dog", 1)
    make_pictures(tmp_path / "other", 1)
    inside, named = read(tmp_path), read(tmp_path / "3_cat", repeats=7)
    assert [(picture.repeats, picture.concept) for picture in inside.pictures] == [(2, "dog"), (3, "cat")]
    assert named.draws == (0, 0, 0)


def test_a_picture_without_a_caption_among_captioned_ones_is_told(tmp_path):
    make_pictures(tmp_path, 3)
    (tmp_path / "1.txt").unlink()
    dataset = read(tmp_path)
    assert dataset.pictures[1].caption == "" and "1 of 3 pictures have no caption" in dataset.problems[0] and "1.png" in dataset.problems[0]


def prepare(tmp_path, what):
    folder = make_pictures(tmp_path / "data", 2)
    if what == "missing":
        return tmp_path / "nowhere"
    if what == "file":
        return folder / "0.png"
    if what == "empty":
        (tmp_path / "empty").mkdir()
        return tmp_path / "empty"
    if what == "no captions":
        return make_pictures(tmp_path / "bare", 2, captions=False)
    if what == "corrupt":
        (folder / "1.png").write_bytes(b"not a picture")
    if what == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(folder / "1.png")
        data = (folder / "1.png").read_bytes()
        (folder / "1.png").write_bytes(data[: len(data) // 2])
    if what == "zero bytes":
        (folder / "1.png").write_bytes(b"")
    if what == "caption":
        (folder / "1.txt").write_bytes(b"\xff\xfe\x00caption")
    if what == "all corrupt":
        for name in ("0.png", "1.png"):
            (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(("what", "words"), [
    ("missing", "does not exist"), ("file", "is a file"), ("empty", "holds no picture"), ("no captions", "put a text file of the same name"),
    ("corrupt", "1.png can't be read (not a picture, or damaged)"), ("truncated", "1.png can't be read"), ("zero bytes", "1.png can't be read"),
    ("caption", "1.txt is not UTF-8"), ("all corrupt", "0.png can't be read"),
])
def test_a_bad_dataset_is_told_in_one_line_that_says_where_and_what_to_do(tmp_path, what, words):
    folder = prepare(tmp_path, what)
    with pytest.raises(DatasetError) as caught:
        read(folder)
    assert words in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_no_folder_at_all_is_told():
    with pytest.raises(DatasetError, match=r"data\.folders is empty"):
        read()


def test_what_is_wrong_with_the_folders_themselves_is_told_by_the_key_and_without_opening_a_picture(tmp_path):
    check_folders(DataSettings(folders=(str(prepare(tmp_path, "all corrupt")),)))
    for settings, words in (({"folders": (str(tmp_path / "<missing>"),)}, "data.folders: .*<missing> does not exist"), ({}, "data.folders is empty"),
                            ({"dataset": str(tmp_path / "none.toml")}, r"data\.dataset\b")):
        with pytest.raises(DatasetError, match=f"^{words}"):
            check_folders(DataSettings(**settings))


@pytest.mark.parametrize("what", ["corrupt", "truncated", "zero bytes"])
def test_unreadable_pictures_are_left_out_by_name_where_that_is_wanted(tmp_path, what):
    dataset = read(prepare(tmp_path, what), skip_unreadable=True)
    assert [picture.path.name for picture in dataset.pictures] == ["0.png"]
    assert len(dataset.problems) == 1 and "1.png" in dataset.problems[0] and dataset.problems[0].endswith("it is left out")


def test_a_folder_of_unreadable_pictures_alone_is_an_error_even_then(tmp_path):
    with pytest.raises(DatasetError, match="none of the 2 pictures can be read"):
        read(prepare(tmp_path, "all corrupt"), skip_unreadable=True)


def test_a_picture_is_scaled_and_cropped_around_its_middle(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = (255, 0, 255)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    picture = read_picture(tmp_path / "wide.png", 16)
    expected = torch.tensor([1.0, -1.0, 1.0])[:, None, None].expand(3, 16, 16)
    assert picture.shape == (3, 16, 16) and picture.dtype == torch.float32
    torch.testing.assert_close(picture[:, :, 2:-2], expected[:, :, 2:-2], atol=0.02, rtol=0)


def test_a_picture_is_turned_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (16, 16), "black")
    image.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "turned.png", exif=exif)
    picture = read_picture(tmp_path / "turned.png", 16)
    assert picture[:, :4].max() == -1 and picture[:, -4:].min() == 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_becomes_white(tmp_path, mode):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 16, 8))
    if mode == "P":
        image = image.convert("RGB").convert("P")
        image.putpixel((0, 0), 5)
        image.save(tmp_path / "x.png", transparency=image.getpixel((8, 12)))
        assert read_picture(tmp_path / "x.png", 16)[:, -4:].min() == 1
        return
    image.convert(mode).save(tmp_path / "x.png")
    picture = read_picture(tmp_path / "x.png", 16)
    assert picture[:, :4].max() == -1 and picture[:, -4:].min() == 1


@pytest.mark.parametrize(("mode", "colour"), [("L", 255), ("1", 1), ("CMYK", (0, 0, 0, 0)), ("I;16", 65535), ("P", None)])
def test_every_usual_mode_becomes_rgb(tmp_path, mode, colour):
    ending = "jpg" if mode == "CMYK" else "png"
    image = Image.new("RGB", (16, 16), "white").convert("P") if mode == "P" else Image.new(mode, (16, 16), colour)
    image.save(tmp_path / f"x.{ending}")
    torch.testing.assert_close(read_picture(tmp_path / f"x.{ending}", 16), torch.ones(3, 16, 16))


def test_folders_within_that_nobody_looks_into_are_told(tmp_path):
    for name in ("3_cat", "3_cat/more", "others", "mask", ".hidden"):
        make_pictures(tmp_path / name, 1)
    (tmp_path / "empty").mkdir()
    [problem] = [line for line in read(tmp_path).problems if "looked into" in line]
    assert problem.startswith("2 folders with pictures") and str(tmp_path / "others") in problem
    assert not [line for line in read(tmp_path, tmp_path / "others", tmp_path / "3_cat" / "more").problems if "looked into" in line]


def test_captions_written_as_prompts_and_two_that_differ_are_told(tmp_path):
    folder = make_pictures(tmp_path, 4)
    for name, text in (("0.txt", "a cat, (fur:1.2)"), ("1.txt", "saber \\(fate\\)"), ("2.txt", "a (very) small cat at 12:30"), ("2.caption", "another"),
                       ("3.txt", "the same"), ("3.caption", "the same\r\n")):
        (folder / name).write_text(text, encoding="utf-8")
    problems = read(folder).problems
    assert len(problems) == 2
    assert problems[0].startswith("2 of 4 pictures have a caption with weights or escaped brackets") and "'(fur:1.2)'" in problems[0]
    assert problems[1].startswith("1 of 4 pictures have two caption files that differ, of which .txt before .caption counts")
