"""The Generate tab: history, settings from a picture, the last seed."""

from __future__ import annotations

import warnings

import pytest

with warnings.catch_warnings():
    # gradio 3.41 warns of its own dependencies at import.
    warnings.simplefilter("ignore")
    gr = pytest.importorskip("gradio")

from lib_lycoris.errors import ConfigError
from lib_lycoris.prompt.unit import Unit
from lib_lycoris.prompt.unit_values import FIELDS, UNITS, fuser_value, told_fuser, unit_values
from lib_lycoris.ui.adapters import AdapterPage, draw_adapters, forgotten_adapters, wanted_adapters
from lib_lycoris.ui.generate import GeneratePage, draw_generate
from tests.ui.test_page import RECORD

pytestmark = pytest.mark.filterwarnings("ignore")


def recall(name):
    if name == "gone.png":
        raise ConfigError("no picture is called <b>gone</b>")
    return {"infotext": "a cat\nSteps: 5", "settings": {"prompt": "a cat", "steps": 5, "seed": 2**62}, "problems": ["other checkpoint"]}


def an_adapter_page(fusers=("the fuser",)):
    preprocessors = [{"name": "none", "label": "None", "help": "As it is.", "source": "picture", "parameters": []},
                     {"name": "canny", "label": "Canny", "help": "Edges.", "source": "picture", "parameters": [
                         {"name": name, "help": name, "minimum": 0, "maximum": 255, "default": 100, "whole": True} for name in ("low", "high")]}]

    def describe(name):
        if name == "gone":
            raise ConfigError("no adapter is called <b>gone</b>")
        return {"words": "light adapter", "preprocessor": "canny", "resolution": 512}

    return AdapterPage(lambda: ["edges"], describe, lambda: preprocessors, lambda values, size: None, lambda: list(fusers))


def drawn(generate=lambda values, tell: {"pictures": [], "problems": []}, **more):
    page = GeneratePage(RECORD, generate, lambda: None, lambda: ["dog"], {}, {"generate.sampler": ["Euler a"]}, **more)
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


def controls_of(*units, fuser="auto"):
    """The accordion's values of these units, given by what differs from an untouched one."""
    plain = {"enabled": False, "adapter": "None", "picture": None, "preprocessor": "none", "processor_resolution": 0, "threshold_a": -1, "threshold_b": -1,
             "palette": "", "keypoints": "", "weight": 1.0, "start": 0.0, "end": 1.0, "resize_mode": "crop and resize", "hires": "both", "level_weights": "",
             "mask": None, "pictures": None, "save_map": False, "strict": False}
    rows = [{**plain, **unit} for unit in (*units, *[{}] * (UNITS - len(units)))]
    return [*(row[name] for row in rows for name in FIELDS), fuser]


def test_the_accordions_values_are_as_many_as_its_controls_and_ask_for_nothing_where_no_unit_is_on():
    with gr.Blocks():
        controls = draw_adapters(an_adapter_page(), "generate").controls
    assert [control.value if not isinstance(control, (gr.Image, gr.File)) else None for control in controls] == controls_of()
    assert wanted_adapters(controls_of()) == {} and forgotten_adapters(controls_of()) == []
    assert forgotten_adapters(controls_of({}, {"enabled": True}))[0].startswith("adapter 2: it is on, but no adapter")


def test_a_unit_keeps_its_number_and_the_fuser_is_handed_over():
    asked = wanted_adapters(controls_of({}, {"enabled": True, "adapter": "edges"}, fuser="the fuser"))
    assert [unit["enabled"] for unit in asked["units"]] == [False, True] and asked["fuser"] == "the fuser"
    with pytest.raises(ConfigError, match=r"adapter 1: unit\.level_weights"):
        wanted_adapters(controls_of({"enabled": True, "adapter": "edges", "level_weights": "1, 2"}))


def test_a_programs_units_may_name_the_fuser_beside_them():
    assert unit_values([{"adapter": "a", "fuser": "none"}, {"adapter": "b"}]) == [{"adapter": "a"}, {"adapter": "b"}]
    assert fuser_value([{"adapter": "a"}, {"adapter": "b", "fuser": "x"}]) == "x"
    assert fuser_value([{"adapter": "a"}]) == fuser_value([]) == fuser_value(controls_of()) == fuser_value([{"fuser": None}]) == "auto"
    assert fuser_value(controls_of(fuser="none")) == "none"
    units = {f"Lyco adapter {number}": "adapter=a" for number in (1, 3)}
    assert [told_fuser({}), told_fuser(units), told_fuser({**units, "Lyco adapter fuser": "x"})] == ["auto", "none", "x"]


def run(form, blocks, *values):
    return work_of(blocks, "lycoris_generate")(lambda share, desc: None, *(component.value for component in form.components()), *values)


def marks(blocks, form, told, before=""):
    """(infos by key, the key that is marked, what stands at the units) once the page was told these lines."""
    functions = list(blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns)
    mark = next(each.fn for each in functions if getattr(each.fn, "__name__", "") == "mark")
    answer = mark(told, before)
    count = len(form.components())
    return {key: update["info"] for key, update in zip(form.fields(), answer, strict=False) if "info" in update}, answer[count], answer[count + 1 :]


def test_an_error_stands_at_the_field_that_it_names_until_the_next_picture():
    def generate(values, tell):
        raise ConfigError("generate.width = 63: expected a multiple of <b>8</b>")

    blocks, form = drawn(generate)
    *_, told = run(form, blocks)
    infos, key, _ = marks(blocks, form, told)
    assert key == "generate.width" and set(infos) == {"generate.width"} and "expected a multiple" in infos[key]
    infos, key, _ = marks(blocks, form, [], key)
    assert key == "" and "expected" not in infos["generate.width"]


def test_what_is_said_of_an_adapter_stands_at_that_adapter():
    blocks, form = drawn(lambda values, tell: {"pictures": [{"path": "a.png", "infotext": "x"}], "problems": ["adapter 2 (edges) was left out: <b>why</b>"]},
                         adapters=an_adapter_page())
    *_, told = run(form, blocks, *controls_of({}, {"enabled": True, "adapter": "edges"}, {"enabled": True}))
    first, second, third = marks(blocks, form, told)[2]
    assert first == "" and "&lt;b&gt;why" in second and "no adapter is chosen" in third
    *_, told = run(form, blocks, *controls_of({"enabled": True, "adapter": "edges", "level_weights": "x"}))
    assert "level_weights" in marks(blocks, form, told)[2][0]


def test_a_pictures_adapters_come_back_and_those_that_it_had_not_are_switched_off(tmp_path):
    unit = vars(Unit(adapter="gone", preprocessor="canny", threshold_a=50.0, weight=0.5))
    told = {**recall("a.png"), "units": [{"enabled": False}, {**unit, "picture": tmp_path / "a.png", "mask": tmp_path / "b.png"}], "fuser": "old fuser"}
    blocks, form = drawn(history=lambda count: [], recall=lambda name: told, read_picture=lambda data: told, adapters=an_adapter_page())
    answer = work_of(blocks, "lycoris_history_use")("a.png")
    updates = answer[2 + len(form.components()) :]
    *units, fuser, accordion = updates
    names = (*FIELDS, "colours", "told", "words", "preview", "problem")
    first, second, third = (dict(zip(names, units[start : start + len(names)], strict=True)) for start in range(0, len(units), len(names)))
    assert first["enabled"] is False and third["enabled"] is False and first["weight"] == gr.update()
    assert (second["enabled"], second["weight"], second["threshold_a"]["value"], second["threshold_b"]["value"]) == (True, 0.5, 50.0, 100)
    assert second["adapter"]["value"] == "gone" and "gone" in second["adapter"]["choices"] and "&lt;b&gt;gone" in second["words"]
    assert (second["picture"]["value"], second["mask"]["value"], second["pictures"]["value"]) == (str(tmp_path / "a.png"), str(tmp_path / "b.png"), None)
    assert fuser["value"] == "old fuser" and accordion["open"] is True
    assert ("old fuser", "old fuser") in fuser["choices"]
