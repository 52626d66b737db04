"""What is around a training: pictures with what would be cut off, captions, uploads that stay in their folder, and who may read and write where."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_lycoris.errors import ConfigError, DatasetError
from lib_lycoris.training import uploads
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.desk import Desk, desk_functions
from lib_lycoris.training.fence import Fence, inside
from lib_lycoris.training.gallery import Shown, draw_picture
from lib_lycoris.training.job import TrainJob
from lib_lycoris.training.pace import Paces
from lib_lycoris.training.result import TrainResult
from lib_lycoris.training.sample_set import SampleSet

from .fake import FakeBackbone


def a_png(size=(96, 64), colour="red"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three pictures: a wide one with a caption, a square one without, and one that is none."""
    folder = tmp_path / "cats"
    folder.mkdir()
    (folder / "a.png").write_bytes(a_png((160, 64)))
    (folder / "a.txt").write_text("a zorb,\n wide\n")
    (folder / "b.png").write_bytes(a_png((64, 64)))
    (folder / "c.png").write_bytes(b"no picture")
    return folder


def a_desk(tmp_path, readable=None, run=None, sample=None):
    fence = Fence(lambda: [tmp_path / "out"], readable, "ask the owner")
    return Desk(tmp_path / "home", fence, TrainConfig.from_dict, TrainJob(run or (lambda config, leads: None)), sample)


def of(folder, **data):
    return {"data": {"folders": [str(folder)], "resolution": 64, "buckets": False, **data}}


def test_pictures_are_listed_with_what_is_kept_of_them_and_those_that_cannot_be_read(tmp_path, folder):
    found = a_desk(tmp_path).pictures(of(folder))
    wide, square, broken = found["pictures"]
    assert (wide["name"], wide["caption"], wide["size"], wide["trained"]) == ("a.png", "a zorb,\nwide", [160, 64], [64, 64])
    assert wide["box"] == [48, 0, 112, 64] and wide["cropped"] == pytest.approx(0.6) and wide["scale"] == 1
    assert (square["caption"], square["cropped"], square["problem"]) == ("", 0, None)
    assert "c.png" in broken["problem"] and found["problems"] == ["1 of 3 pictures have no caption"]


def test_what_would_be_cut_off_is_dark_and_what_stays_is_as_it_was(tmp_path, folder):
    picture = np.asarray(a_desk(tmp_path).picture(of(folder), str(folder / "a.png"), 512)).astype(int)
    assert picture.shape == (64, 160, 3) and (picture[32, 80] == [255, 0, 0]).all() and picture[32, 10, 0] < 120 and picture[32, 150, 0] < 120
    small = draw_picture(Shown(str(folder / "b.png"), "b.png"), 16)
    assert small.size == (16, 16)


def test_a_caption_is_written_beside_its_picture_and_an_empty_one_is_removed(tmp_path, folder):
    desk = a_desk(tmp_path)
    assert desk.caption(of(folder), str(folder / "b.png"), " a <b> zorb ")["caption"] == "a <b> zorb"
    assert (folder / "b.txt").read_text() == "a <b> zorb\n"
    (folder / "a.txt").rename(folder / "a.caption")
    desk.caption(of(folder), str(folder / "a.png"), "changed")
    assert (folder / "a.caption").read_text() == "changed\n" and not (folder / "a.txt").exists()
    assert desk.caption(of(folder), str(folder / "a.png"), "  ")["caption"] == "" and not (folder / "a.caption").exists()
    assert not [path for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("path", ["/etc/passwd", "a.png", "../cats/a.png", ""])
def test_only_a_picture_of_the_dataset_is_shown_or_captioned(tmp_path, folder, path):
    desk = a_desk(tmp_path)
    for work in (lambda: desk.caption(of(folder), path, "x"), lambda: desk.picture(of(folder), path, 64)):
        with pytest.raises(ConfigError, match="none of the dataset's pictures"):
            work()
    assert not (folder / "passwd.txt").exists()


def test_uploads_go_into_one_folder_of_ours_under_harmless_names(tmp_path):
    desk = a_desk(tmp_path)
    files = [("cat.png", a_png()), ("cat.txt", b"a zorb"), ("../../evil.png", a_png(colour="blue")), ("C:\\x\\sh<b>.png", a_png(colour="green")),
             ("cat.png", a_png(colour="black")), ("cat.png", a_png())]
    done = desk.upload("my cats", files)
    made = tmp_path / "home" / "datasets" / "my cats"
    assert Path(done["folder"]) == made and done["problems"] == []
    assert sorted(path.name for path in made.iterdir()) == ["cat-2.png", "cat.png", "cat.txt", "evil.png", "sh_b_.png"]
    assert sorted(path.name for path in tmp_path.rglob("*.png") if path.parent != made) == []


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.exe", b"MZ", "expected a picture"), ("a.png", b"no", "damaged"), ("a.png", a_png()[:60], "left out"), ("a.txt", b"\xff\xfe\x00", "UTF-8"),
    ("a.txt", b"x" * 30_000, "at most"), ("a.svg", b"<svg/>", "expected a picture"), ("a", b"", "expected a picture"),
])
def test_what_is_no_picture_or_caption_is_left_out_and_told(tmp_path, name, content, words):
    done = a_desk(tmp_path).upload("cats", [(name, content), ("good.png", a_png())])
    assert done["written"] == ["good.png"] and len(done["problems"]) == 1 and words in done["problems"][0]


def test_uploads_are_limited_in_number_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_FILES", 2)
    done = a_desk(tmp_path).upload("cats", [(f"{number}.png", a_png((8 + number, 8))) for number in range(4)])
    assert len(done["written"]) == 2 and "2 files" in done["problems"][0]
    monkeypatch.setattr(uploads, "LARGEST_FILE", 50)
    assert "more than" in a_desk(tmp_path).upload("dogs", [("a.png", a_png())])["problems"][0]
    monkeypatch.setattr(uploads, "LARGEST_FOLDER", 10)
    assert a_desk(tmp_path).upload("mice", [("a.png", a_png())])["written"] == []


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "a\\b", "/etc", ".x", "x" * 81, "a\0b", "end."])
def test_a_dataset_has_a_name_that_is_one_folder(tmp_path, name):
    with pytest.raises(ConfigError, match="the dataset's name"):
        a_desk(tmp_path).upload(name, [("a.png", a_png())])
    assert list(tmp_path.iterdir()) == []


def test_programs_upload_in_base64(tmp_path):
    desk = a_desk(tmp_path)
    done = desk.upload_encoded({"name": "cats", "files": [{"name": "a.png", "data": base64.b64encode(a_png()).decode()}]})
    assert done["written"] == ["a.png"]
    for files in (None, [], [1], [{"name": "a.png", "data": "?"}]):
        with pytest.raises(ConfigError):
            desk.upload_encoded({"name": "cats", "files": files})


def test_the_sample_pictures_are_drawn_once(tmp_path):
    drawn = []

    def draw(folder):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(a_png())
        drawn.append(folder)

    desk = a_desk(tmp_path, sample=lambda kind: SampleSet(f"some-{kind}", f"For {kind}.", draw, {"embedding.word": kind}))
    found = desk.sample("lora")
    assert found == desk.sample("lora") == {"folder": str(tmp_path / "home" / "datasets" / "some-lora"), "about": "For lora.",
                                            "settings": {"embedding.word": "lora"}}
    assert len(drawn) == 1 and [path.name for path in (tmp_path / "home" / "datasets").rglob("*")] == ["some-lora", "a.png"]
    assert desk.sample()["about"] == "For locon."
    with pytest.raises(ConfigError, match=r"network\.kind = nothing"):
        desk.sample("nothing")
    assert desk_functions(a_desk(tmp_path))["sample"] is None
    with pytest.raises(ConfigError, match="no sample"):
        a_desk(tmp_path).sample()


def test_sample_pictures_that_were_not_drawn_to_the_end_are_drawn_anew(tmp_path):
    def draw(folder, whole=True):
        folder.mkdir(parents=True)
        (folder / "a.png").write_bytes(a_png())
        if not whole:
            raise OSError("disk full")

    with pytest.raises(DatasetError, match="disk full"):
        SampleSet("some", "", lambda folder: draw(folder, whole=False)).folder(tmp_path)
    assert not (tmp_path / "some").exists()
    assert [path.name for path in SampleSet("some", "", draw).folder(tmp_path).iterdir()] == ["a.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


def test_settings_come_as_config_file_and_command_line_and_are_read_again(tmp_path):
    desk = a_desk(tmp_path)
    config = {"network": {"rank": 5}, "output": {"name": "cat"}}
    made = desk.export(config)
    assert desk.import_settings(made["toml"])["values"]["network.rank"] == 5
    assert "network.rank=5" in made["command"]
    with pytest.raises(ConfigError, match=r"network\.rank"):
        desk.import_settings("[network]\nrank = 'x'")
    assert desk.import_settings('{"network_dim": 6}')["values"]["network.rank"] == 6


def test_a_thumbnail_is_a_preview_of_the_newest_training_or_nothing(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(a_png((600, 300)))

    def run(config, leads):
        leads.viewer.show(0, "a", path)
        return TrainResult(path, 1, 0.5, 1.0)

    job = TrainJob(run)
    desk = Desk(tmp_path, Fence(list), TrainConfig.from_dict, job)
    assert desk.config() is None
    with pytest.raises(ConfigError, match="no preview"):
        desk.thumbnail(str(path))
    job.start(TrainConfig())
    job.wait(20)
    with Image.open(io.BytesIO(desk.thumbnail(str(path)))) as image:
        assert image.format == "JPEG" and image.size == (256, 128)
    assert desk.config() == TrainConfig().to_dict()


# ---------------------------------------------------------------- who may read and write where

def test_networks_are_written_to_our_folders_alone(tmp_path):
    fence = Fence(lambda: [tmp_path / "out"])
    for folder in ("out", "out/deep/er"):
        fence.check(TrainConfig.from_dict({"output": {"folder": str(tmp_path / folder)}}))
    for values in ({"output": {"folder": str(tmp_path)}}, {"output": {"folder": str(tmp_path / "out" / ".." / "x")}},
                   {"output": {"folder": str(tmp_path / "out")}, "data": {"cache_folder": str(tmp_path / "cache")}}):
        with pytest.raises(ConfigError, match=r"^(output\.folder|data\.cache_folder) = "):
            fence.check(TrainConfig.from_dict(values))


def test_a_link_out_of_our_folders_leads_nowhere(tmp_path):
    (tmp_path / "out").mkdir()
    try:
        (tmp_path / "out" / "link").symlink_to(tmp_path)
    except OSError:
        pytest.skip("this system makes no links")
    assert not inside(tmp_path / "out" / "link" / "x", [tmp_path / "out"]) and inside(tmp_path / "out" / "x", [tmp_path / "out"])


@pytest.mark.parametrize("values", [
    {"data": {"folders": ["{}"]}}, {"data": {"dataset": "{}/d.toml"}}, {"validation": {"folder": "{}"}}, {"network": {"start_from": "{}/a.safetensors"}},
    {"data": {"prior_folder": "{}"}}, {"data": {"prior_folder": "{}", "prior_prompt": "a dog"}},
])
def test_where_others_can_reach_the_server_only_allowed_folders_are_read(tmp_path, values):
    def config(folder):
        filled = {section: {key: [text.format(folder) for text in value] if isinstance(value, list) else value.format(folder) for key, value in part.items()}
                  for section, part in values.items()}
        return TrainConfig.from_dict({**filled, "output": {"folder": str(tmp_path / "out")}})

    fence = Fence(lambda: [tmp_path / "out"], lambda: [tmp_path / "allowed"], "ask the owner")
    fence.check(config(tmp_path / "allowed" / "x"))
    with pytest.raises(ConfigError):
        fence.check(config(tmp_path / "secret"))
    Fence(lambda: [tmp_path / "out"]).check(config(tmp_path / "secret"))


def test_there_pictures_of_other_folders_are_not_shown_either_also_not_by_a_dataset_file(tmp_path, folder):
    desk = a_desk(tmp_path, readable=lambda: [tmp_path / "allowed"])
    with pytest.raises(ConfigError, match=r"data\.folders = .*not allowed.*ask the owner"):
        desk.pictures(of(folder))
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "d.toml").write_text(f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder}'\n")
    with pytest.raises(ConfigError, match="not allowed"):
        desk.pictures({"data": {"dataset": str(tmp_path / "allowed" / "d.toml"), "resolution": 64}})


# ---------------------------------------------------------------- how long it takes

def test_time_is_told_only_from_steps_that_were_measured_with_such_settings(tmp_path):
    paces, backbone = Paces(tmp_path / "deep" / "paces.json"), FakeBackbone()
    config = TrainConfig.from_dict({"data": {"resolution": 64}})
    assert paces.seconds_a_step(config, backbone) is None
    paces.note(config, backbone, 2, 5.0)
    assert paces.seconds_a_step(config, backbone) is None  # too few steps to tell
    paces.note(config, backbone, 10, 5.0)
    assert paces.seconds_a_step(config.set("training.seed", 3), backbone) == 0.5
    assert paces.seconds_a_step(config.set("data.batch_size", 2), backbone) is None
    (tmp_path / "deep" / "paces.json").write_text("[1]")
    assert paces.seconds_a_step(config, backbone) is None


def test_captions_of_no_picture_are_refused(tmp_path):
    for picture, text in ((tmp_path / "a.png", "x"), (tmp_path / "a.txt", "x")):
        with pytest.raises(DatasetError, match="no such picture"):
            uploads.write_caption(picture, text)


def test_pictures_of_an_adapters_training_are_listed_without_their_control_pictures(tmp_path, folder):
    desk, name = a_desk(tmp_path), next(folder.glob("*.png"))
    name.with_name(f"{name.stem}.cond.png").write_bytes(name.read_bytes())
    values = of(folder)
    alone = desk.pictures(values)
    for more in ({"preprocessor": "canny", "preprocessor_values": ["low=3"]}, {"control_folder": str(tmp_path)}):
        assert desk.pictures({"data": {**values["data"], **more}}) == alone
    assert ".cond" not in json.dumps(alone)
