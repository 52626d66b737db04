from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lib_lycoris.errors import ConfigError, DatasetError
from lib_lycoris.training.captioning import uncaptioned, write_captions
from lib_lycoris.training.captions import Drawn, Words, compose, name_as_text, plain
from lib_lycoris.training.config import DataSettings

from .fake import make_pictures


def draws(texts, count=200, **words):
    return [compose(texts, Words(**words), Drawn(3, epoch, 1), "cat", "file") for epoch in range(count)]


def test_a_caption_follows_from_seed_epoch_and_sample_alone():
    words = Words(shuffle=True, tag_dropout=0.3, lines="random")
    texts = ("a, b, c, d, e", "f, g, h, i")
    first = [compose(texts, words, Drawn(1, epoch, sample)) for epoch in range(4) for sample in range(4)]
    assert first == [compose(texts, words, Drawn(1, epoch, sample)) for epoch in range(4) for sample in range(4)] and len(set(first)) > 8
    assert first != [compose(texts, words, Drawn(2, epoch, sample)) for epoch in range(4) for sample in range(4)]


def test_shuffled_tags_stay_the_same_tags_and_kept_ones_in_place():
    found = draws(("one, two, three, four, five",), shuffle=True, keep=2)
    assert {tuple(sorted(text.split(", "))) for text in found} == {("five", "four", "one", "three", "two")}
    assert all(text.startswith("one, two, ") for text in found) and len(set(found)) == 6


def test_dropped_tags_are_as_many_as_asked_and_never_kept_ones():
    found = draws(("keep, a, b, c, d",), 400, keep=1, tag_dropout=0.25)
    left = Counter(tag for text in found for tag in text.split(", "))
    assert left["keep"] == 400 and all(260 < left[tag] < 340 for tag in "abcd")
    assert list(found[0].split(", ")) == sorted(found[0].split(", "), key="keepabcd".find)


def test_several_lines_are_joined_or_the_first_or_each_in_turn():
    texts = ("one cat", "two cats", "three cats")
    assert set(draws(texts)) == {"one cat"} and set(draws(texts, lines="joined")) == {"one cat two cats three cats"}
    counts = Counter(draws(texts, 300, lines="random"))
    assert set(counts) == set(texts) and min(counts.values()) > 60


def test_wildcards_choose_and_double_braces_are_braces():
    counts = Counter(draws(("a {red|blue} {cat|dog} {{x|y}}",), 400, wildcards=True))
    assert set(counts) == {f"a {colour} {animal} {{x|y}}" for colour in ("red", "blue") for animal in ("cat", "dog")} and min(counts.values()) > 60
    assert draws(("a {red|blue} cat",), 1) == ["a {red|blue} cat"]


def test_separators_keep_both_ends_and_bind_tags_together():
    found = draws(("a, b ||| c, d;;;e, f ||| g",), shuffle=True, keep_separator="|||", second_separator=";;;")
    assert len(set(found)) == 6 and all(text.startswith("a, b, ") and text.endswith(", g") and "d,e" in text for text in found)


def test_templates_prefixes_and_suffixes_are_put_around():
    assert draws(("fat",), 1, template="a photo of a {caption} {concept} ({name})", prefix="best,", suffix=", x") == ["best, a photo of a fat cat (file) , x"]
    assert plain((), Words(template="a photo of {concept}"), "cat") == "a photo of cat"


def test_whole_captions_are_dropped_by_share_and_in_every_nth_epoch():
    assert 60 < draws(("a",), dropout=0.5).count("") < 140
    assert [text == "" for text in draws(("a",), 6, dropout_every=3)] == [False, False, True, False, False, True]


@pytest.mark.parametrize("template", ["a {subject}", "no name", "{}"])
def test_a_template_with_a_wrong_name_is_told_when_it_is_set(template):
    with pytest.raises(ConfigError, match="caption_template"):
        DataSettings(caption_template=template)


@pytest.mark.parametrize(("name", "caption"), [("001_red_cat.png", "red cat"), ("12-a cat.jpg", "a cat"), ("0003.png", ""), ("cat 2.png", "cat 2")])
def test_a_files_name_is_a_caption_without_its_numbers(name, caption):
    assert " ".join(name_as_text(Path(name))) == caption


def test_whoever_looks_at_pictures_writes_captions_only_where_there_are_none(tmp_path):
    folder = make_pictures(tmp_path, 4, captions=False)
    (folder / "0.caption").write_text("mine")

    def caption(path):
        if path.name == "2.png":
            raise MemoryError("too\nlarge")
        if path.name == "3.png":  # somebody is faster
            (folder / "3.txt").write_text("theirs")
        return f" seen\n{path.stem} "

    assert [path.name for path in uncaptioned(folder)] == ["1.png", "2.png", "3.png"]
    written, problems = write_captions(folder, caption)
    assert [path.name for path in written] == ["1.txt"] and (folder / "1.txt").read_text() == "seen 1\n"
    assert (folder / "3.txt").read_text() == "theirs" and len(problems) == 1 and "2.png got no caption: MemoryError: too large" in problems[0]
    assert sorted(path.name for path in folder.iterdir()) == ["0.caption", "0.png", "1.png", "1.txt", "2.png", "3.png", "3.txt"]
    with pytest.raises(DatasetError):
        write_captions(tmp_path / "nowhere", caption)
