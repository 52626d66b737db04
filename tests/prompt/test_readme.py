"""Every tag that the README shows can be typed."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from lib_lycoris.prompt.blocks import PRESETS
from lib_lycoris.prompt.request import ARGUMENTS, render_request, split_prompt

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
TAGS = sorted({tag for line in re.findall(r"`([^`]*<lyco:[^`]+)`", README) for tag in re.findall(r"<lyco:[^>]+>", line)} - {"<lyco:…>"})
SHOWN_AS_FORM = {"<lyco:NAME:TE:UNET:DYN>", "<lyco:name:weight>"}


@pytest.mark.parametrize("tag", sorted(set(TAGS) - SHOWN_AS_FORM))
def test_a_tag_of_the_readme_is_understood_and_says_something(tag):
    text, (request,), problems = split_prompt(tag)
    assert (text, problems) == ("", [])
    assert split_prompt(render_request(request))[1] == [request]
    if request.blocks:
        request.blocks.resolve(PRESETS)


def test_the_readme_shows_every_argument_and_every_preset():
    section = README.partition("### The tag")[2].partition("\n## ")[0]
    assert [argument for argument in ARGUMENTS if f"{argument}=" not in section] == []
    assert [preset for preset in PRESETS if preset not in section] == []
