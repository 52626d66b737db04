"""The Generate tab: history, settings from a picture, the last seed."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    # gradio 3.41 warns of its own dependencies at import.
    warnings.simplefilter("ignore")
    gr = pytest.importorskip("gradio")

from lib_lycoris.errors import ConfigError
from lib_lycoris.ui.generate import GeneratePage, draw_generate
from tests.ui.test_page import RECORD

pytestmark = pytest.mark.filterwarnings("ignore")


def recall(name):
    if name == "gone.png":
        raise ConfigError("no picture is called <b>gone</b>")
    return {"infotext": "a cat\nSteps: 5", "settings": {"prompt": "a cat", "steps": 5, "seed": 2**62}, "problems": ["other checkpoint"]}


def drawn(**more):
    page = GeneratePage(RECORD, lambda values, tell: {"pictures": [], "problems": []}, lambda: None, lambda: ["dog"], {},
                        {"generate.sampler": ["Euler a"]}, **more)
    with gr.Blocks() as blocks, gr.Tabs(), gr.Tab("Generate") as tab:
        form = draw_generate(blocks, tab, page)
    return blocks, form


def work_of(blocks, element):
    functions = list(blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns)
    target = next(number for number, block in blocks.blocks.items() if getattr(block, "elem_id", None) == element)
    if isinstance(blocks.fns, dict):
        return next(each.fn for each in functions if any(one[0] == target for one in each.targets))
    return next(functions[number].fn for number, each in enumerate(blocks.dependencies)
                if target in [one[0] if isinstance(one, (list, tuple)) else one for one in each["targets"]])


def test_without_a_history_there_is_none_on_the_page():
    blocks, _ = drawn()
    assert not [block for block in blocks.blocks.values() if "history" in str(getattr(block, "elem_id", ""))]


def test_a_pictures_settings_come_into_the_fields_and_others_stay(tmp_path):
    read = []

    def read_picture(data):
        read.append(data)
        return recall("")

    blocks, form = drawn(history=lambda count: [], recall=recall, read_picture=read_picture)
    (tmp_path / "x.png").write_bytes(b"png")
    infotext, problems, *updates = work_of(blocks, "lycoris_drop")(str(tmp_path / "x.png"))
    told = dict(zip(form.fields(), updates, strict=True))
    assert read == [b"png"] and infotext.startswith("a cat") and "other checkpoint" in problems
    assert (told["generate.prompt"]["value"], told["generate.steps"]["value"], told["generate.seed"]["value"]) == ("a cat", 5, str(2**62))
    assert told["generate.width"] == gr.update()
    assert [update for update in work_of(blocks, "lycoris_history_use")("a.png")[2:] if update != gr.update()]


def test_a_picture_that_tells_nothing_changes_no_field_and_says_why():
    blocks, _ = drawn(history=lambda count: [], recall=recall, read_picture=lambda data: {})
    for name, words in (("gone.png", "&lt;b&gt;gone"), ("", "no picture is chosen")):
        answer = work_of(blocks, "lycoris_history_use")(name)
        assert words in answer[1] and all(update == gr.update() for update in answer[2:])


def test_the_same_seed_again_is_the_last_pictures_and_another_each_time_is_drawn():
    blocks, _ = drawn()
    assert work_of(blocks, "lycoris_seed_again")("123") == "123"
    assert work_of(blocks, "lycoris_seed_again")("") == gr.update()
    assert work_of(blocks, "lycoris_seed_other")() == "-1"
