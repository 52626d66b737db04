from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import RequestError
from lib_lycoris.prompt.blocks import BLOCKS, VECTORS, BlockWeights, Element
from lib_lycoris.prompt.request import Request, parse_request, render_request, split_prompt
from lib_lycoris.prompt.schedule import Schedule


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


@pytest.mark.parametrize(("tag", "expected"), [
    ("name: 1. : .5 ", Request("name", 1.0, 0.5)),
    ("name:unet=0.1@0.2,1@0.5:te=0.9", Request("name", 0.9, Schedule(((0.1, 0.2), (1, 0.5))))),
    ("name:1@0;0@1", Request("name", Schedule(((1, 0), (0, 1))), Schedule(((1, 0), (0, 1))))),
    ("name:0.5:hr=0.3", Request("name", 0.5, 0.5, hrte=0.3, hrunet=0.3)),
    ("name:0.5:hr=0.3:hrunet=0.4", Request("name", 0.5, 0.5, hrte=0.3, hrunet=0.4)),
    ("name:0.5:hrte=0", Request("name", 0.5, 0.5, hrte=0)),
    ("name:refiner=0", Request("name", refiner=0)),
    ("name:start=0.2:stop=0.8", Request("name", start=0.2, stop=0.8)),
    ("name:START = 5", Request("name", start=5)),
    ("name:step=5-10", Request("name", start=5, stop=10)),
    ("name:step=-0.5", Request("name", stop=0.5)),
    ("name:step=0.5-", Request("name", start=0.5)),
    ("name:on=cond", Request("name", on="cond")),
    ("name:on= all", Request("name")),
    ("name:lbw=MIDD", Request("name", blocks=BlockWeights(preset="MIDD"))),
    ("name:lbw=my preset:x=.5", Request("name", blocks=BlockWeights(preset="my preset", x=0.5))),
    ("name:lbw=" + "0," * 11 + "X", Request("name", blocks=BlockWeights(vector=(0,) * 11 + (1,)))),
    ("name:0.5:OUTD", Request("name", 0.5, 0.5, blocks=BlockWeights(preset="OUTD"))),
    ("name:1:ALL0.5", Request("name", blocks=BlockWeights(preset="ALL0.5"))),
    ("name:1:" + ",".join("1" * 17), Request("name", blocks=BlockWeights(vector=(1,) * 17))),
    ("name:1:OUTD:unet=0.5", Request("name", 1.0, 0.5, blocks=BlockWeights(preset="OUTD"))),
    ("name:lbwe=ATTNDEEPON", Request("name", blocks=BlockWeights(element_preset="ATTNDEEPON"))),
    ('name:lbwe="IN05-IN06:attn:0"', Request("name", blocks=BlockWeights(elements=(Element(("IN05", "IN06"), False, ("attn",), False, 0),)))),
    ("name:only=attn2, ff.net", Request("name", blocks=BlockWeights(only=("attn2", "ff_net")))),
    ("name:except=proj*", Request("name", blocks=BlockWeights(layers=(("proj*", 0),)))),
    ("name:layers=attn2=0.5,ff=-1:except=te", Request("name", blocks=BlockWeights(layers=(("attn2", 0.5), ("ff", -1), ("te", 0))))),
    ('"a: b=""c""":0.5', Request('a: b="c"', 0.5, 0.5)),
    ('5" disk:0.5', Request('5" disk', 0.5, 0.5)),
    ('"half:0.5', Request('"half', 0.5, 0.5)),
    ('" a ":0.5', Request("a", 0.5, 0.5)),
])
def test_all_that_a_tag_can_say_is_read(tag, expected):
    assert parse_request(tag.split(":")) == expected


@pytest.mark.parametrize(("tag", "message"), [
    ("name:te=1@0,0", None), ("name:te=1@0@1", "strength te='1@0@1'"), ("name:hr=x", "strength hr='x'"), ("name:refiner=", "strength refiner=''"),
    ("name:start=x", "start or stop of 'name'"), ("name:start=-1", "start=-1.0 of 'name'"), ("name:start=0.5:stop=0.5", "'name' would never act"),
    ("name:stop=0", "'name' would never act"), ("name:step=5", "step='5' of 'name' is no range"), ("name:step=5-10:stop=3", "keep one of the two ways"),
    ("name:on=uncond", "on='uncond'"), ("name:on=", "on="), ("name:lbw=", "'name': "), ("name:lbw=1,2", "'name': a block vector of 2 values"),
    ("name:lbw=" + ",".join("R" * 17), "random block value R"), ("name:1:OUTD:lbw=MIDD", "strength unet='OUTD'"),
    ("name:x=z:lbw=A", "'name': 'z' is not a number"),
    ("name:lbwe=IN05:attn:0", "not a"), ("name:only=", "'name': '' is no pattern"), ("name:layers=attn2", "'name': 'attn2' is no list"),
    ("name:layers=attn2=x", "'name': 'x' is not a number"), ("name:except=a b", "'name': 'a b' is no pattern"), ("name:1:oops", "strength unet='oops'"),
])
def test_each_bad_argument_is_named(tag, message):
    if message is None:
        assert parse_request(tag.split(":")).te.points == ((1, 0), (0, 1))
        return
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        parse_request(tag.split(":"))
    assert str(caught.value).isprintable() and "name" in str(caught.value)


@pytest.mark.parametrize("values", [{"start": -1}, {"stop": float("nan")}, {"start": 3, "stop": 2}, {"on": "both"},
                                    {"refiner": float("inf")}, {"hrte": float("nan")}])
def test_more_requests_that_no_tag_can_say_fail_when_they_are_made(values):
    with pytest.raises(RequestError):
        Request("a", **values)


def strengths(request, side="unet", steps=5, **where):
    return [request.strength(side, step, steps, **where) for step in range(steps)]


def test_strength_is_zero_before_start_and_from_stop_on():
    assert strengths(Request("a", start=2, stop=4)) == [0, 0, 1, 1, 0]
    assert strengths(Request("a", start=0.5)) == [0, 0, 1, 1, 1]
    assert strengths(Request("a", stop=0.5), "te") == [1, 1, 0, 0, 0]
    assert strengths(Request("a", start=0.5, stop=1)) == [0, 0, 1, 1, 1]
    assert strengths(Request("a", stop=2), steps=4) == [1, 1, 0, 0]


def test_first_and_second_half_are_complements_whatever_the_number_of_steps():
    for steps in range(1, 30):
        first, second = strengths(Request("a", stop=0.5), steps=steps), strengths(Request("a", start=0.5), steps=steps)
        assert [one + other for one, other in zip(first, second, strict=True)] == [1] * steps


def test_the_later_pass_and_the_refiner_have_strengths_of_their_own_or_those_of_the_first():
    request = Request("a", te=0.1, unet=0.2, hrunet=0.3, refiner=0.4)
    assert [request.strength("te", 0, 1, hires=hires) for hires in (False, True)] == [0.1, 0.1]
    assert [request.strength("unet", 0, 1, hires=hires) for hires in (False, True)] == [0.2, 0.3]
    assert request.strength("unet", 0, 1, hires=True, refiner=True) == request.strength("unet", 0, 1, refiner=True) == 0.4
    assert Request("a", unet=0.2).strength("unet", 0, 1, refiner=True) == 0.2
    assert request.strength("te", 0, 1, refiner=True) == 0.1


@pytest.mark.parametrize(("request_", "constant"), [
    (Request("a", 0.5), True), (Request("a", start=0, stop=1), True), (Request("a", start=0.5), False), (Request("a", stop=3), False),
    (Request("a", unet=0, start=0.5), True), (Request("a", unet=Schedule(((1, 0), (0, 1)))), False), (Request("a", unet=Schedule(((1, 0), (1, 1)))), True),
])
def test_constant_is_a_strength_that_no_step_changes(request_, constant):
    assert request_.constant("unet") == constant == (len(set(strengths(request_, steps=12))) == 1)


NAMES = st.text(st.characters(exclude_characters=">", exclude_categories=("Cs",)), min_size=1).filter(lambda name: name == name.strip())
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SCHEDULES = NUMBERS | st.lists(st.tuples(NUMBERS, st.floats(0, 1e3)), min_size=1, max_size=3).map(lambda points: Schedule(tuple(points)))
PATTERNS = st.from_regex(r"[a-zA-Z0-9_*?]+", fullmatch=True)
PRESET = st.none() | st.from_regex(r"[A-Za-z][A-Za-z0-9._-]*", fullmatch=True).filter(lambda name: name not in ("R", "U", "X"))
WORDS = st.lists(st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True), max_size=2).map(tuple)
ELEMENTS = st.builds(Element, st.lists(st.sampled_from(BLOCKS), max_size=3).map(tuple), st.just(False), WORDS, st.just(False), NUMBERS)


@st.composite
def block_weights(draw):
    preset = draw(PRESET)
    vectors = st.sampled_from([0, *VECTORS]).flatmap(lambda count: st.lists(NUMBERS, min_size=count, max_size=count))
    vector = () if preset else tuple(draw(vectors))
    element_preset = draw(PRESET)
    return BlockWeights(preset or "", vector, draw(NUMBERS) if preset else 1.0, element_preset or "",
                        () if element_preset else tuple(draw(st.lists(ELEMENTS, max_size=2))),
                        tuple(draw(st.lists(st.tuples(PATTERNS, NUMBERS), max_size=2))), tuple(draw(st.lists(PATTERNS, max_size=2))))


@st.composite
def requests(draw):
    start, stop = draw(st.tuples(st.none() | st.floats(0, 50), st.none() | st.floats(0, 100)).filter(lambda ends: ends[1] is None or ends[1] > (ends[0] or 0)))
    maybe = st.none() | SCHEDULES
    return Request(draw(NAMES), draw(SCHEDULES), draw(SCHEDULES), draw(st.none() | st.integers(1, 512)), draw(maybe), draw(maybe), draw(maybe), start, stop,
                   draw(st.none() | block_weights()), draw(st.sampled_from(["all", "cond"])))


@settings(max_examples=300, deadline=None)
@given(requests(), st.sampled_from(["lyco", "lora"]))
def test_what_is_rendered_parses_to_the_same_request(request_, tag):
    assert split_prompt(f"a {render_request(request_, tag)} b", tags=(tag,)) == ("a  b", [request_], [])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="<>:=lyco, 0.5te\nn@~;\"-X*bw", max_size=40))
def test_no_text_makes_it_fail(text):
    rest, requests, problems = split_prompt(text)
    assert len(requests) + len(problems) == len(re.findall(r"<\w+:[^>]+>", text))
    assert rest == re.sub(r"<(\w+):([^>]+)>", "", text)
