from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import RequestError
from lib_lycoris.prompt.schedule import Schedule, as_schedule, parse_number, parse_schedule, render_schedule


@pytest.mark.parametrize(("text", "points"), [
    ("1", ((1, 0),)),
    ("default", ((1, 0),)),
    (" -.5 ", ((-0.5, 0),)),
    ("+1.", ((1, 0),)),
    ("1e-3", ((0.001, 0),)),
    ("1@0,0@1", ((1, 0), (0, 1))),
    ("0@0;1@0.5", ((0, 0), (1, 0.5))),
    ("0~0 , 1~0.5", ((0, 0), (1, 0.5))),
    ("1@10,0.5@0", ((0.5, 0), (1, 10))),
    ("0.1@0.2,1", ((0.1, 0.2), (1, 1))),
    ("0.5@3", ((0.5, 3),)),
])
def test_weights_and_positions_are_read_in_both_spellings_of_loractl(text, points):
    assert parse_schedule(text).points == points


@pytest.mark.parametrize("text", ["", "x", "1@", "@1", "1@2@3", "0,5", "1@0,,0@1", "1,0@1", "1@-1", "nan", "inf@0", "1@nan", "1@0,0@5,1", "1e999", "1_0"])
def test_what_is_no_schedule_raises_a_request_error(text):
    with pytest.raises(RequestError):
        parse_schedule(text)


def test_a_decimal_comma_is_hinted_at():
    with pytest.raises(RequestError, match="decimal mark is a point"):
        parse_number("0,5")


def test_fractions_run_from_the_first_step_to_the_last():
    fade = parse_schedule("1@0,0@1")
    assert [fade.at(step, 5) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert fade.at(0, 1) == 1
    assert fade.at(9, 5) == 0  # a sampler that counts on stays at the end


def test_positions_above_one_are_steps_and_the_ends_are_level():
    rise = parse_schedule("0@2,1@4")
    assert [rise.at(step, 100) for step in range(7)] == pytest.approx([0, 0, 0, 0.5, 1, 1, 1])


def test_two_weights_at_one_position_are_a_jump_and_the_later_holds_there():
    jump = parse_schedule("1@0.5,0@0.5")
    assert [jump.at(step, 5) for step in range(5)] == [1, 1, 0, 0, 0]
    assert parse_schedule("0.3@0,1@2,0@2").at(1.5, 9) == pytest.approx(0.3 + 0.7 * 0.75)


def test_it_agrees_with_numpys_interpolation():
    numpy = pytest.importorskip("numpy")
    schedule = parse_schedule("0.2@0,1@0.3,-1@0.7,0.5@0.9")
    for step in range(21):
        expected = numpy.interp(step / 20, [0, 0.3, 0.7, 0.9], [0.2, 1, -1, 0.5])
        assert schedule.at(step, 21) == pytest.approx(float(expected))


def test_constant_is_what_never_changes():
    assert as_schedule(0.3).constant and Schedule(((1, 0), (1, 0.5))).constant
    assert not Schedule(((1, 0), (0, 0.5))).constant


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
POSITIONS = st.floats(0, 1e6, allow_nan=False)
SCHEDULES = st.lists(st.tuples(NUMBERS, POSITIONS), min_size=1, max_size=5).map(lambda points: Schedule(tuple(points)))


@settings(max_examples=200, deadline=None)
@given(SCHEDULES)
def test_what_is_rendered_parses_to_the_same_schedule(schedule):
    assert parse_schedule(render_schedule(schedule)) == schedule


@settings(max_examples=200, deadline=None)
@given(SCHEDULES.filter(lambda schedule: all(abs(weight) < 1e100 for weight, _ in schedule.points)), st.floats(0, 100), st.integers(1, 100))
def test_a_weight_never_leaves_the_range_of_its_points(schedule, step, steps):
    weights = [weight for weight, _ in schedule.points]
    slack = 1e-9 * max(map(abs, weights), default=0)
    assert min(weights) - slack <= schedule.at(step, steps) <= max(weights) + slack


@pytest.mark.parametrize("points", [(), ((float("nan"), 0),), ((1, float("inf")),), ((1, -0.1),)])
def test_a_schedule_that_no_text_can_say_fails_when_it_is_made(points):
    with pytest.raises(RequestError):
        Schedule(points)
