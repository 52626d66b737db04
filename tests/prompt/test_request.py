from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import RequestError
from lib_lycoris.prompt.request import Request, parse_request, render_request, split_prompt


@pytest.mark.parametrize(("tag", "expected"), [
    ("name", Request("name", 1.0, 1.0)),
    ("name:0.8", Request("name", 0.8, 0.8)),
    ("name:0.8:0.5", Request("name", 0.8, 0.5)),
    ("name:0.8:0.5:4", Request("name", 0.8, 0.5, 4)),
    ("name:-1.5:+.5", Request("name", -1.5, 0.5)),
    ("name:te=0.3", Request("name", 0.3, 0.3)),
    ("name:unet=0.3", Request("name", 1.0, 0.3)),
    ("name:0.8:unet=0.3", Request("name", 0.8, 0.3)),
    ("name:0.8:0.5:te=0.1:dyn=2", Request("name", 0.1, 0.5, 2)),
    ("name:unet=0.3:0.8", Request("name", 0.8, 0.3)),
    ("name:default", Request("name", 1.0, 1.0)),
    ("name:default:0.5", Request("name", 1.0, 0.5)),
    ("name:0.5:default:default", Request("name", 0.5, 1.0)),
    ("name:te=default:unet=2", Request("name", 1.0, 2.0)),
    ("name:1:1:0", Request("name", 1.0, 1.0)),
    (" sub/folder name :0.8", Request("sub/folder name", 0.8, 0.8)),
    ("a=b:0.8", Request("a=b", 0.8, 0.8)),
    ("(näme), v2.1:1e-1", Request("(näme), v2.1", 0.1, 0.1)),
])
def test_a_tags_parts_are_text_encoder_unet_and_dyn_by_place_or_by_name(tag, expected):
    assert parse_request(tag.split(":")) == expected


@pytest.mark.parametrize(("tag", "message"), [
    ("", "without a network's name"),
    (" :0.8", "without a network's name"),
    ("name:", "strength te='' of 'name' can't be read: '' is not a number"),
    ("name:high", "strength te='high' of 'name' can't be read: 'high' is not a number"),
    ("name:1:0,5", "strength unet='0,5' of 'name' can't be read"),
    ("name:te=", "strength te='' of 'name' can't be read: '' is not a number"),
    ("name:nan", "strength te='nan' of 'name' can't be read: 'nan' is not a number"),
    ("name:1:inf", "strength unet='inf' of 'name' can't be read: 'inf' is not a number"),
    ("name:1:1:half", "dyn='half' of 'name' is not a whole number"),
    ("name:dyn=1.5", "dyn='1.5' of 'name' is not a whole number"),
    ("name:dyn=-2", "dyn=-2 of 'name' is less than 1"),
    ("name:1:1:1:1", "has 4 values where at most 3 are known"),
    ("name:weight=1", "'name' has an argument 'weight' that is not known; known are te=, unet=, dyn=, hr=,"),
    ("name:te=1:te=2", "'name' has 'te' twice"),
    ("name:te=1=2", "strength te='1=2'"),
    ("name:\x1b[31m", "is not a number"),
])
def test_a_bad_tag_raises_a_request_error_of_one_line_that_names_the_value(tag, message):
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        parse_request(tag.split(":"))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("values", [{"name": ""}, {"name": "a>b"}, {"name": " a"}, {"name": "a", "te": float("nan")},
                                    {"name": "a", "unet": float("inf")}, {"name": "a", "dyn": 0}])
def test_a_request_that_no_tag_can_say_fails_when_it_is_made(values):
    with pytest.raises(RequestError):
        Request(**values)


def test_tags_are_cut_out_of_the_text_as_the_webui_does_it():
    text, requests, problems = split_prompt("a cat <lyco:one:0.5>, <lyco:two> on (a mat:1.2)<lyco:three:1:2>")
    assert (text, problems) == ("a cat ,  on (a mat:1.2)", [])
    assert requests == [Request("one", 0.5, 0.5), Request("two"), Request("three", 1.0, 2.0)]


@pytest.mark.parametrize("text", ["a < b > c", "<lyco>", "<lyco one>", "<:x>", "<lyco:>", "lyco:one", "a <3"])
def test_what_is_no_tag_stays_as_text(text):
    assert split_prompt(text) == (text, [], [])


def test_bad_and_unknown_tags_are_cut_out_and_told_and_the_others_stand():
    text, requests, problems = split_prompt("x <lyco:a:oops> <hypernet:h:1> <lyco:b> <lora:c>")
    assert text == "x    " and requests == [Request("b")]
    assert len(problems) == 3
    assert "'oops'" in problems[0] and "'<hypernet:h:1>' is not known" in problems[1] and "<lora:c>" in problems[2]


def test_other_tag_names_can_be_taken_too():
    assert split_prompt("<lora:a:0.5> <lyco:b>", tags=("lyco", "lora")) == (" ", [Request("a", 0.5, 0.5), Request("b")], [])


@pytest.mark.parametrize(("request_", "tag"), [
    (Request("a"), "<lyco:a:1>"),
    (Request("a", 0.5, 0.5), "<lyco:a:0.5>"),
    (Request("a", 0.5, -1.0), "<lyco:a:0.5:-1>"),
    (Request("a", 1.0, 1.0, 8), "<lyco:a:1:dyn=8>"),
])
def test_a_request_is_rendered_as_the_shortest_tag(request_, tag):
    assert render_request(request_) == tag


NAMES = st.text(st.characters(exclude_characters=":>", exclude_categories=("Cs",)), min_size=1).filter(lambda name: name == name.strip())
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=200, deadline=None)
@given(st.builds(Request, NAMES, NUMBERS, NUMBERS, st.one_of(st.none(), st.integers(1, 512))), st.sampled_from(["lyco", "lora"]))
def test_what_is_rendered_parses_to_the_same_request(request_, tag):
    assert split_prompt(f"a {render_request(request_, tag)} b", tags=(tag,)) == ("a  b", [request_], [])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>:=lyco, 0.5te\nn", max_size=40))
def test_no_text_makes_it_fail(text):
    rest, requests, problems = split_prompt(text)
    assert len(requests) + len(problems) == len(re.findall(r"<\w+:[^>]+>", text))
    assert rest == re.sub(r"<(\w+):([^>]+)>", "", text)
