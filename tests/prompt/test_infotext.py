"""Infotexts are read as they are written."""

from __future__ import annotations

import pytest

from lib_lycoris.prompt.infotext import parse_infotext

FIELDS = "Steps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 5, Size: 512x768"


def test_prompt_negative_prompt_and_values_are_told_apart():
    found = parse_infotext(f"a cat,\n<lyco:x:1>\nNegative prompt: dog\nbird\n{FIELDS}")
    assert (found.prompt, found.negative) == ("a cat,\n<lyco:x:1>", "dog\nbird")
    assert found.fields == {"Steps": "20", "Sampler": "Euler a", "CFG scale": "7.0", "Seed": "5", "Size": "512x768"}


@pytest.mark.parametrize(("text", "prompt", "negative"), [
    ("", "", ""), ("just words", "just words", ""), (FIELDS, "", ""), (f"Negative prompt: x\n{FIELDS}", "", "x"), ("a: 1, b", "a: 1, b", ""),
    ("words\nSteps: 4", "words", ""), (f"Steps: x\n{FIELDS}", "Steps: x", ""),
])
def test_what_is_missing_is_empty(text, prompt, negative):
    found = parse_infotext(text)
    assert (found.prompt, found.negative) == (prompt, negative)


def test_quoted_values_may_hold_commas_colons_and_marks():
    found = parse_infotext('x\nSteps: 1, Model: "a, b: \\"c\\"", Seed: 2, Lyco hashes: "x: 1, y: 2"')
    assert found.fields == {"Steps": "1", "Model": 'a, b: "c"', "Seed": "2", "Lyco hashes": "x: 1, y: 2"}


@pytest.mark.parametrize("text", ['"' * 5000, "Steps: " + '"\\' * 3000, "a: b, " * 3000, "\n" * 5000])
def test_odd_texts_are_read_in_no_time(text):
    assert parse_infotext(text) is not None
