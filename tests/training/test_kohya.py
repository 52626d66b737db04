"""A dataset file of kohya's trainers: every key acts, or a line says why not."""

from __future__ import annotations

import json

import pytest

from lib_lycoris.errors import DatasetError
from lib_lycoris.training.captions import Words
from lib_lycoris.training.config import DataSettings
from lib_lycoris.training.dataset import read_dataset
from lib_lycoris.training.kohya import _DATASET_KEYS, _IGNORED, _OWN_KEYS, _SUBSET_KEYS

from .fake import make_pictures


def read(tmp_path, text, name="data.toml", **values):
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_dataset(DataSettings(dataset=str(tmp_path / name), **values))


@pytest.fixture
def hoge(tmp_path):
    return make_pictures(tmp_path / "5_hoge", 2)


EXAMPLE = """
[general]
shuffle_caption = true
caption_extension = '.txt'
keep_tokens = 1
enable_bucket = true

[[datasets]]
resolution = 512
batch_size = 4
keep_tokens = 2

  [[datasets.subsets]]
  image_dir = 'HERE/5_hoge'
  class_tokens = 'hoge girl'

  [[datasets.subsets]]
  image_dir = 'HERE/fuga'
  class_tokens = 'fuga boy'
  keep_tokens = 3
  num_repeats = 7
  flip_aug = true

  [[datasets.subsets]]
  is_reg = true
  image_dir = 'HERE/reg'
  class_tokens = 'human'
  keep_tokens = 1

[[datasets]]
resolution = [768, 512]
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'HERE/piyo'
  metadata_file = 'HERE/piyo.json'
"""


def test_the_nearest_key_counts_and_repeats_are_those_written_not_the_folders(tmp_path, hoge):
    make_pictures(tmp_path / "fuga", 2, captions=False)
    make_pictures(tmp_path / "reg", 1, captions=False)
    make_pictures(tmp_path / "piyo", 2, captions=False)
    (tmp_path / "piyo.json").write_text(json.dumps({"0": {"caption": "a frog", "tags": "green, wet"}, str(tmp_path / "piyo" / "1.png"): {"tags": "red"}}))
    dataset = read(tmp_path, EXAMPLE.replace("HERE", str(tmp_path)))
    found = [(picture.path.parent.name, picture.caption, picture.repeats, picture.subset.words.keep, picture.frame.size) for picture in dataset.pictures]
    assert found == [
        ("5_hoge", "colour 0, plain", 1, 2, (512, 512)), ("5_hoge", "colour 1, plain", 1, 2, (512, 512)),
        ("fuga", "fuga boy", 7, 3, (512, 512)), ("fuga", "fuga boy", 7, 3, (512, 512)),
        ("piyo", "red", 1, 1, (576, 576)), ("piyo", "a frog, green, wet", 1, 1, (576, 576))]
    assert [picture.caption for picture in dataset.prior] == ["human"] and all(picture.subset.words.shuffle for picture in dataset.pictures)
    assert [picture.subset.flip for picture in dataset.pictures] == [False, False, True, True, False, False]
    assert dataset.settings.batch_size == 4 and any("batch_size of datasets[1] is ignored" in problem for problem in dataset.problems)


def test_every_key_of_captions_and_sizes_acts(tmp_path, hoge):
    dataset = read(tmp_path, f"""
[[datasets]]
enable_bucket = false
resolution = [64, 128]
random_crop = true
caption_dropout_rate = 0.5
caption_dropout_every_n_epochs = 3
caption_tag_dropout_rate = 0.25
enable_wildcard = true
keep_tokens_separator = "|||"
secondary_separator = ";;;"
caption_separator = ";"
  [[datasets.subsets]]
  image_dir = '{hoge}'
  caption_prefix = "best |||"
  caption_suffix = "end"
  alpha_mask = true
""")
    subset = dataset.pictures[0].subset
    assert subset.words == Words(lines="random", prefix="best |||", suffix="end", wildcards=True, separator=";", keep_separator="|||", second_separator=";;;",
                                 tag_dropout=0.25, dropout=0.5, dropout_every=3)
    assert subset.sizes.all == ((64, 128),) and subset.random_crop and subset.masks == "alpha" and dataset.settings.caption_dropout == 0


def test_bucket_keys_and_data_keys_where_the_file_is_silent(tmp_path, hoge):
    sizes = f"""
[general]
bucket_reso_steps = 32
min_bucket_reso = 96
max_bucket_reso = 256
bucket_no_upscale = true
[[datasets]]
  [[datasets.subsets]]
  image_dir = '{hoge}'
"""
    subset = read(tmp_path, sizes, resolution=128, flip=True, caption_dropout=0.1, batch_size=3).pictures[0].subset
    assert (subset.sizes.width, subset.sizes.step, subset.sizes.low, subset.sizes.high, subset.sizes.upscale) == (128, 32, 96, 256, False)
    assert subset.flip and subset.words.dropout == 0.1


@pytest.mark.parametrize("key", sorted({**_DATASET_KEYS, **_SUBSET_KEYS, **_OWN_KEYS}))
def test_every_key_is_read_or_told_to_be_ignored(tmp_path, hoge, key):
    value = {"whole": 2, "number": 0.5, "switch": True, "text": "'.txt'", "size": "[64, 128]", "any": "[1.0, 3.0]"}
    kinds = {**_DATASET_KEYS, **_SUBSET_KEYS, **_OWN_KEYS}
    place = "[[datasets]]" if key in _DATASET_KEYS else "[[datasets.subsets]]"
    special = {"image_dir": f"'{hoge}'", "metadata_file": f"'{tmp_path}/list.jsonl'", "bucket_reso_steps": 64, "max_bucket_reso": 512, "min_bucket_reso": 64,
               "network_multiplier": 0.5, "token_warmup_min": 3, "token_warmup_step": 10}
    (tmp_path / "list.jsonl").write_text(json.dumps({"image_path": "0.png", "caption": "x"}) + "\n")
    lines = ["[[datasets]]", "[[datasets.subsets]]", *([f"image_dir = '{hoge}'"] if key != "image_dir" else [])]
    lines.insert(lines.index(place) + 1, f"{key} = {str(special.get(key, value[kinds[key]])).replace('True', 'true')}")
    if key == "is_reg":
        lines += ["[[datasets.subsets]]", f"image_dir = '{make_pictures(tmp_path / 'more', 1)}'"]
    dataset = read(tmp_path, "\n".join(lines))
    assert any(problem.startswith(f"{key} of datasets[0].subsets[0] is ignored: {_IGNORED.get(key)}") for problem in dataset.problems) == (key in _IGNORED)


@pytest.mark.parametrize(("text", "words"), [
    ("[[datasets]]\nresolutoin = 512\n[[datasets.subsets]]\nimage_dir = 'H'", "did you mean resolution?"),
    ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'H'\nshufle_caption = true", "did you mean shuffle_caption?"),
    ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'H'\nbatch_size = 2", "put it under [[datasets]]"),
    ("[general]\nimage_dir = 'H'\n[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'H'", "it belongs into [[datasets.subsets]]"),
    ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 'two'\nimage_dir = 'H'", "expected a whole number"),
    ("[[datasets]]\n[[datasets.subsets]]\ncaption_dropout_rate = 2\nimage_dir = 'H'", "from 0 to 1"),
    ("[[datasets]]\nresolution = [512]\n[[datasets.subsets]]\nimage_dir = 'H'", "a number of pixels or [width, height]"),
    ("[[datasets]]\nbucket_reso_steps = 12\n[[datasets.subsets]]\nimage_dir = 'H'", "use a multiple of 8"),
    ("[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2", "has no image_dir"),
    ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'H/none'", "is no folder, seen from"),
    ("[[datasets]]\n[[datasets.subsets]]\nmetadata_file = 'H/none.json'", "No such file"),
    ("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'H'\nnum_repeats = 0", "no subset has pictures that count"),
    ("[general]\n", "datasets is missing"), ("[data]\nx = 1", "unknown key data"), ("datasets = 3", "datasets is missing"),
    ('[[datasets]]\n[[datasets.subsets]]\nimage_dir = "C:\\hoge"', "wants single quotes"),
])
def test_a_wrong_file_is_told_in_one_line_with_what_to_do(tmp_path, hoge, text, words):
    with pytest.raises(DatasetError) as caught:
        read(tmp_path, text.replace("'H", f"'{hoge}"))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_same_file_as_json_and_a_subset_named_twice(tmp_path, hoge):
    content = {"datasets": [{"subsets": [{"image_dir": str(hoge)}, {"image_dir": str(hoge), "num_repeats": 3}]}]}
    dataset = read(tmp_path, json.dumps(content), "data.json")
    assert [picture.repeats for picture in dataset.pictures] == [1, 1] and "the same pictures are in an earlier subset" in dataset.problems[0]


def test_folders_are_seen_from_the_working_folder(tmp_path, hoge, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(read(tmp_path, "[[datasets]]\n[[datasets.subsets]]\nimage_dir = '5_hoge'").pictures) == 2
