"""An adapter's unit: what it takes, and that text and mapping give it back."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib_lycoris.errors import ConfigError
from lib_lycoris.prompt.unit import HIRES, RESIZE_MODES, Unit, parse_levels, parse_unit, render_unit, unit_from_dict, unit_to_dict
from lib_lycoris.setting import section_settings

TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
SHARE = st.floats(0, 1)
units = st.builds(
    lambda ends, **rest: Unit(start=min(ends), end=max(ends), **rest), ends=st.tuples(SHARE, SHARE), adapter=TEXT, preprocessor=TEXT, palette=TEXT,
    processor_resolution=st.none() | st.integers(64, 4096), threshold_a=st.none() | st.floats(-1e6, 1e6), threshold_b=st.none() | st.floats(-1e6, 1e6),
    weight=st.floats(-4, 4), level_weights=st.sampled_from(["", "1", "1, 0.8, 0.6, 1", "1 2 3 4"]), resize_mode=st.sampled_from(RESIZE_MODES),
    hires=st.sampled_from(HIRES))


@given(units)
def test_an_infotexts_unit_is_read_as_it_was_written(unit):
    assert parse_unit(render_unit(unit)) == unit


@given(units)
def test_it_survives_the_quotes_of_a_host_that_quotes_commas_and_colons(unit):
    """As the WebUI has it: JSON around a text with a comma, a colon or a new line, and one pattern to read all parameters of a line."""
    text = render_unit(unit)
    quoted = json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text
    ((key, value, _),) = [(*pair, None) for pair in re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', f"Lyco adapter 1: {quoted}, ")]
    read = json.loads(value) if value.startswith('"') and value.endswith('"') and value != text else value
    assert (key, parse_unit(read)) == ("Lyco adapter 1", unit)


@given(units)
def test_a_mapping_gives_the_unit_again(unit):
    values = unit_to_dict(replace(unit, strict=True, save_map=True, enabled=False))
    assert unit_to_dict(unit_from_dict(json.loads(json.dumps(values)))) == values


def test_a_short_text_says_only_what_is_not_the_default():
    assert render_unit(Unit(adapter="canny", weight=0.8)) == "adapter=canny; preprocessor=auto; weight=0.8"
    assert render_unit(Unit(adapter="a;b", preprocessor="canny", end=0.5, strict=True)) == 'adapter="a;b"; preprocessor=canny; weight=1.0; end=0.5'


def test_fields_of_another_version_are_passed_over():
    assert parse_unit('adapter=x; future="a;b"; weight=2') == Unit(adapter="x", weight=2.0)


@pytest.mark.parametrize("text", ["nonsense", "=1", "adapter=x; what now", "weight=heavy", "weight=9", "start=0.9; end=0.1", 'adapter="x'])
def test_what_is_no_unit_is_refused_in_one_line(text):
    with pytest.raises(ConfigError) as error:
        parse_unit(text)
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="did you mean weight"):
        unit_from_dict({"weigth": 1})
    with pytest.raises(ConfigError, match="known are enabled, adapter"):
        unit_from_dict({"zzzz": 1})


@pytest.mark.parametrize(("values", "words"), [
    ({"weight": "1"}, "unit.weight"), ({"resize_mode": "fill"}, "crop and resize"), ({"start": 0.8, "end": 0.2}, "unit.start"),
    ({"level_weights": "1,2"}, "4 numbers"), ({"level_weights": "1,2,x,4"}, "4 numbers"), ({"level_weights": "nan"}, "4 numbers"),
    ({"processor_resolution": 8}, "16"), ({"weight": float("inf")}, "unit.weight"), ({"enabled": 1}, "unit.enabled"),
])
def test_wrong_values_are_refused_when_the_unit_is_made(values, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        unit_from_dict(values)


def test_weights_of_levels_hold_the_weight():
    assert Unit(weight=0.5).levels() == (0.5,) * 4
    assert Unit(weight=2, level_weights="1, 0.5; 0 -1").levels() == (2, 1, 0, -2)
    assert parse_levels(" 3 ") == (3, 3, 3, 3)


@pytest.mark.parametrize(("start", "end", "steps", "expected"), [
    (0, 1, 4, [0, 1, 2, 3]), (0, 0.5, 20, list(range(10))), (0.5, 1, 20, list(range(10, 20))), (0.9, 1, 4, [3]), (0.26, 0.3, 4, [1]), (0, 0.01, 3, [0]),
    (0.99, 1, 3, [2]), (0.5, 0.5, 10, []), (1, 1, 5, []),
])
def test_it_acts_in_a_part_of_the_sampling(start, end, steps, expected):
    assert [step for step in range(steps) if Unit(start=start, end=end).acts(step, steps)] == expected


@given(st.integers(1, 60), st.tuples(SHARE, SHARE, SHARE))
def test_two_units_that_share_a_border_share_no_step_and_leave_none_out(steps, ends):
    first, middle, last = sorted(ends)
    both = [Unit(start=first, end=middle), Unit(start=middle, end=last)]
    whole = Unit(start=first, end=last)
    for step in range(steps):
        acting = sum(unit.acts(step, steps) for unit in both)
        assert acting <= 2 and (acting >= 1 or not whole.acts(step, steps) or last - first < 1 / steps)


@pytest.mark.parametrize(("hires", "first", "second"), [("both", True, True), ("low", True, False), ("high", False, True)])
def test_passes(hires, first, second):
    assert (Unit(hires=hires).in_pass(False), Unit(hires=hires).in_pass(True)) == (first, second)


def test_a_unit_without_an_adapter_is_idle():
    assert not Unit().active and Unit(adapter="a").active and not Unit(adapter="a", enabled=False).active


def test_every_field_has_a_help_that_ends_as_a_sentence():
    assert all(item.metadata["help"].endswith(".") for item in fields(Unit))


def test_the_readme_has_every_field_with_its_help_and_default():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for item in section_settings(Unit):
        shown = "–" if item.default in (None, "") else str(item.default).lower() if isinstance(item.default, bool) else str(item.default)
        assert f"| `{item.name}` | {shown} | {item.help} |" in readme
