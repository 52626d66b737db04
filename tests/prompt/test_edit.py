"""Tags changed as text."""

from __future__ import annotations

import pytest

from lib_lycoris.prompt.edit import change_tags, find_tags
from lib_lycoris.prompt.request import parse_request


def found_items(text):
    """The parts of a text's one tag as the WebUI hands them over."""
    return text[len("<lyco:"):-1].split(":")


def first(text, change):
    return change_tags(text, change, first=True)


@pytest.mark.parametrize(("tag", "te", "unet", "expected"), [
    ("<lyco:a>", "0.5", "0.5", "<lyco:a:0.5>"), ("<lyco:a:1>", "0.5", "0.5", "<lyco:a:0.5>"), ("<lyco:a:-1:0.3:4>", "2", "2", "<lyco:a:2:dyn=4>"),
    ("<lyco:a:0.2>", None, "1", "<lyco:a:0.2:1>"), ("<lyco:a:0.2:0.7>", "1", None, "<lyco:a:1:0.7>"), ("<lyco:a:te=0.2:unet=0.7>", "1", None, "<lyco:a:1:0.7>"),
    ("<lyco:a:0.2:lbw=INS>", "1", "1", "<lyco:a:1:lbw=INS>"), ("<lyco:a:dyn=3>", "0.5", "0.5", "<lyco:a:0.5:dyn=3>"),
    ("<lyco:a:0.2:0.7:3:dyn=4>", None, "1", "<lyco:a:0.2:1:dyn=4>"),
])
def test_a_strength_is_set_and_the_rest_kept(tag, te, unet, expected):
    assert first(f"x {tag}, y", lambda found: found.with_strength(te, unet)) == f"x {expected}, y"


def test_only_the_kinds_asked_for_are_changed_and_only_the_first_where_wanted():
    text = "<lora:a:1> <lyco:b:1>, <lyco:c:1:x=2> (<b:c)"
    assert change_tags(text, lambda tag: tag.renamed("new")) == "<lora:a:1> <lyco:new:1>, <lyco:new:1:x=2> (<b:c)"
    assert first(text, lambda tag: None) == "<lora:a:1> , <lyco:c:1:x=2> (<b:c)"
    assert [tag.name for tag in find_tags(text)] == ["b", "c"]


def test_an_argument_replaces_an_older_one():
    assert first("<lyco:a:1:lbw=INS:hr=2>", lambda tag: tag.with_argument("lbw", "OUTS")) == "<lyco:a:1:hr=2:lbw=OUTS>"
    assert first("<lyco:lbw=x>", lambda tag: tag.with_argument("lbw", "OUTS")) == "<lyco:lbw=x:lbw=OUTS>"


def test_an_unchanged_tag_stays_letter_for_letter():
    text = "< lyco:a> <lyco: a :1.0: unet = 2>"
    assert change_tags(text, lambda tag: tag) == text


@pytest.mark.parametrize("name", ["a:b", '"a"', 'a"b', "a, b", "ünï cödé", "(a)", "a=b", "$1 \\1 \\g<0"])
def test_any_name_that_can_stand_in_a_tag_comes_back_from_it(name):
    text = first("<lyco:old:0.5>", lambda tag: tag.renamed(name))
    (tag,) = find_tags(text)
    assert tag.name == name and tag.items[1:] == ("0.5",)
    assert parse_request(found_items(text)).name == name
