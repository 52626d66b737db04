"""The Library tab: found and sorted rows, figures as escaped HTML, a field for every setting of every action, and what its buttons hand over."""

from __future__ import annotations

import colorsys
import warnings

import pytest

with warnings.catch_warnings():
    # gradio 3.41 warns of its own dependencies at import.
    warnings.simplefilter("ignore")
    gr = pytest.importorskip("gradio")

from lib_lycoris.errors import ConfigError, LycoError
from lib_lycoris.tools.actions import ACTIONS
from lib_lycoris.ui import charts, library_text
from lib_lycoris.ui.library import LibraryPage, draw_library, make_look
from lib_lycoris.ui.library_list import SHOWN, SORTS, choices, count_words, find_rows, page_of, pages, summary

pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own; the rule "warnings are errors" is for what this project does
NASTY = "<script>alert(1)</script>"


def a_row(name, **more):
    plain = {"kind": "LoRA", "rank": 16, "base_model": "sd_v1", "bytes": 36_100_000, "modified": 1e9, "file": f"/nets/{name}.safetensors", "problem": None}
    return {"name": name, **plain, **more}


class Desk:
    """A library's callables that remember what they were handed."""

    def __init__(self, rows=(), jobs=(), describe=None):
        self.asked, self._rows, self._jobs, self._describe = [], list(rows), list(jobs), describe or {}

    def run(self, action, values):
        self.asked.append((action, dict(values)))
        if values.get("name") == "bad":
            raise ConfigError(f"rename.new = {NASTY}: no")
        return {"name": values.get("new") or values.get("name") or "", "deleted": ["cat.safetensors"], "restored": ["cat.safetensors"], "gone": ["1"]}

    def page(self, shelves=("networks",)):
        described = {"remarks": {"activation text": "zorb", "preferred weight": 0.8}, "measured": None, **self._describe}
        return LibraryPage(actions=ACTIONS, shelves=shelves, rows=lambda shelf: self._rows, refresh=lambda: self.asked.append("refresh"),
                           describe=lambda name, shelf: {**a_row(name), **described}, picture=lambda name, shelf: None, run=self.run,
                           jobs=lambda: {"version": 3, "jobs": self._jobs}, stop=lambda: None,
                           trash=lambda: [{"entry": "e1", "name": "old", "kind": "networks", "bytes": 5, "deleted": 1e9, "files": ["a"]}], polls=False)


def drawn(page):
    with gr.Blocks() as blocks, gr.Tabs(), gr.Tab("Library") as tab:
        actions = draw_library(blocks, tab, page)
    return blocks, actions


def button_of(blocks, actions, name):
    """(the function of an action's button, the ids of its inputs' elements)."""
    functions = blocks.fns.values() if isinstance(blocks.fns, dict) else [*blocks.fns]
    target = actions.buttons[name]._id
    if isinstance(blocks.fns, dict):
        found = next(each for each in functions if any(one[0] == target for one in each.targets) and each.outputs)
        return found.fn, [each.elem_id for each in found.inputs]
    number, dependency = next((number, each) for number, each in enumerate(blocks.dependencies) if target in dict.fromkeys(_targets(each)) and each["outputs"])
    return functions[number].fn, [blocks.blocks[each].elem_id for each in dependency["inputs"]]


def events_of(blocks, element):
    """The functions of the events of that element."""
    target = next(number for number, block in blocks.blocks.items() if getattr(block, "elem_id", None) == element)
    if isinstance(blocks.fns, dict):
        return [each.fn for each in blocks.fns.values() if any(one[0] == target for one in each.targets)]
    return [blocks.fns[number].fn for number, each in enumerate(blocks.dependencies) if target in _targets(each)]


def _targets(dependency):
    return [each[0] if isinstance(each, (list, tuple)) else each for each in dependency["targets"]]


def test_every_setting_of_every_action_has_a_place_on_the_page():
    _, actions = drawn(Desk().page())
    of_the_list = {"name", "shelf"}
    elsewhere = {"preview": {"image"}, "restore": {"entry"}, "empty": {"entry"}}  # the dropped file, the trash's own list
    for action in ACTIONS:
        fields = {key.partition(".")[2] for key in actions.forms[action.name].fields()} if action.name in actions.forms else set()
        assert fields | of_the_list | elsewhere.get(action.name, set()) >= {setting.name for setting in action.settings}, action.name
        assert action.name in actions.buttons


def test_no_element_is_there_twice_and_every_field_has_a_label():
    blocks, _ = drawn(Desk().page(("networks", "embeddings")))
    ids = [block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)]
    assert len(set(ids)) == len(ids)
    fields = [block for block in blocks.blocks.values() if isinstance(block, (gr.Textbox, gr.Dropdown, gr.Radio, gr.Number, gr.File, gr.Image))]
    labels = [field.label for field in fields]
    assert all(labels) and len(set(labels)) == len(labels)


def test_search_finds_by_every_word_in_any_place():
    rows = [a_row("cat"), a_row("dog", kind="LoHa", base_model="sdxl_base_v1-0", trigger_phrase="Rex"), a_row("cat two", tags="indoor")]
    assert [row["name"] for row in find_rows(rows, "CAT", "Name")] == ["cat", "cat two"]
    assert [row["name"] for row in find_rows(rows, "sdxl loha rex", "Name")] == ["dog"]
    assert [row["name"] for row in find_rows(rows, "sd1 indoor", "Name")] == ["cat two"]
    assert find_rows(rows, "horse", "Name") == []


@pytest.mark.parametrize("sort", list(SORTS))
def test_every_order_takes_rows_that_lack_everything(sort):
    rows = [a_row("b", modified=5, bytes=1), a_row("a", modified=9, bytes=2), a_row("c", kind=None, base_model=None, modified=None, bytes=None)]
    found = [row["name"] for row in find_rows(rows, "", sort)]
    assert sorted(found) == ["a", "b", "c"] and found[0] == ("a" if sort != "x" else "")
    assert found[-1] == "c"


def test_of_thousands_a_page_is_shown_and_the_others_can_be_turned_to():
    rows = find_rows([a_row(f"n{number:04}") for number in range(SHOWN * 2 + 5)], "", "Name")
    assert [len(choices(rows, page)) for page in range(pages(len(rows)))] == [SHOWN, SHOWN, 5]
    assert [name for page in range(pages(len(rows))) for _, name in choices(rows, page)] == [row["name"] for row in rows]
    assert page_of(rows, rows[SHOWN]["name"]) == 1 and page_of(rows, "no such") == page_of(rows, None) == 0 and pages(0) == 1
    assert count_words(5000, 5000, 1) == f"{SHOWN + 1} to {2 * SHOWN} of 5000" and count_words(3, 5000) == "3 of 5000" and "Nothing" in count_words(0, 0)


def test_pages_of_the_list_are_turned_and_a_file_that_is_not_shown_is_no_longer_chosen():
    blocks, _ = drawn(Desk([a_row(f"n{number:04}") for number in range(SHOWN + 7)]).page())
    turn = events_of(blocks, "lycoris_library_later")[0]
    names, count, number, earlier, later, about, *_ = turn("networks", "", "Name", "n0003", 0)
    assert [len(names["choices"]), names["value"], number, earlier["interactive"], later["interactive"]] == [7, None, 1, True, False]
    assert f"{SHOWN + 1} to {SHOWN + 7}" in count and "Choose a file" in about
    assert turn("networks", "", "Name", None, 1)[2] == 1  # there are no more
    names, _, number, *_ = events_of(blocks, "lycoris_library_search")[0]("networks", "n", "Name", f"n{SHOWN + 2:04}")
    assert "value" not in names and number == 1  # it stays chosen, or what was chosen while the list was on its way
    assert f"n{SHOWN + 2:04}" in [name for _, name in names["choices"]]


def test_a_list_that_comes_late_takes_no_choice_back():
    blocks, _ = drawn(Desk([a_row("cat"), a_row("dog")]).page())
    read = events_of(blocks, "lycoris_library_read")[0]
    for chosen in (None, "cat"):
        assert "value" not in read("networks", "", "Name", chosen)[0]
    assert read("networks", "", "Name", "gone")[0]["value"] is None


def test_the_folders_are_read_anew_where_that_is_asked_for_and_not_with_each_key_in_the_search():
    desk = Desk([a_row("cat")])
    blocks, _ = drawn(desk.page())
    events_of(blocks, "lycoris_library_search")[0]("networks", "c", "Name", None)
    assert desk.asked == []
    events_of(blocks, "lycoris_library_read")[0]("networks", "c", "Name", None)
    assert desk.asked == ["refresh"]


@pytest.mark.parametrize("name", ["a\nb", "\u202egpj.x", "tab\there", "nul\x01", "\u05d0\u05d1 1", NASTY, "😀", "e" * 255, "a'b\"c"])
def test_a_name_stays_on_its_line_whatever_it_is_called(name):
    (shown, value), = choices([a_row(name)])
    first, second = shown.split("\n")
    assert value == name and second.startswith("LoRA 16") and "\u202e" not in first and first


def test_a_line_says_what_a_file_is():
    assert summary(a_row("cat")).startswith("LoRA 16 · SD 1 · 36.1 MB · 2001-09-0")
    assert summary(a_row("cat", problem="damaged", kind=None, rank=None, base_model=None, bytes=18)).startswith("can't be used · 18 bytes")


def test_nothing_that_a_file_says_becomes_html():
    seen = a_row(NASTY, title=NASTY, description=NASTY, metadata={"ss_sd_model_name": NASTY}, tag=NASTY, problem=NASTY)
    side = {"kind": NASTY, "norms": {NASTY: 1.0, "b": None}}
    result = {"name": NASTY, "other": NASTY, "first": side, "second": side, "common": 1, "only_first": 0, "only_second": 0, "alikeness": {NASTY: 0.5},
              "training": {NASTY: [NASTY, NASTY]}}
    job = {"id": 1, "title": NASTY, "phase": "running", "done": 1, "total": 2, "result": None, "error": None}
    failed = {**job, "phase": "failed", "error": NASTY}
    done = {**job, "phase": "done", "result": {"name": NASTY, "file": NASTY, "bytes": 5, "notes": [NASTY]}}
    figures = {"layers": 1, "layers_by_kind": {NASTY: 1}, "parameters": 1, "dtypes": [NASTY], "embeddings": [NASTY], "problems": [NASTY],
               "norms": {NASTY: 1.0}, "spectra": {NASTY: [1.0, 0.5]}}
    for html in (library_text.describe(seen), library_text.compared(result), library_text.jobs([job, failed, done]), library_text.measured(figures),
                 library_text.said(NASTY)):
        assert "<script" not in html and "&lt;script&gt;" in html


def test_bars_are_as_long_as_their_norms_and_a_missing_norm_says_why():
    html = charts.norm_bars({"IN00": 2.0, "M00": 1.0, "OUT11": None})
    assert "width:100.0%" in html and "width:50.0%" in html and "needs a checkpoint" in html


def test_a_line_falls_as_its_values_fall_and_zeros_are_left_out():
    html = charts.spectrum_lines({"IN00": [4.0, 2.0, 1.0, 0.0], "M00": [], "OUT00": [3.0]})
    points = html.split('points="')[1].split('"')[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == 3 and heights == sorted(heights)
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.2)  # equal ratios, equal distances
    assert charts.spectrum_lines({}) == charts.spectrum_lines({"a": [0.0]}) == ""


@pytest.mark.parametrize("values", [[1.0], [1e-30, 1e-31], [1e9, 1e-2], [1.0, 1.0], [5.0] * 400])
def test_any_values_can_be_drawn(values):
    assert "nan" not in charts.spectrum_lines({"a": values})


def test_a_look_at_what_is_shown_already_changes_nothing():
    look = make_look(Desk().page())
    first = look("", "networks", None)
    assert first[2].startswith("3 ") and all(value == gr.update() for value in look(first[2], "networks", "cat"))


def test_the_list_is_read_anew_once_a_piece_of_work_has_ended_and_what_is_chosen_stays_so():
    jobs = [{"id": 4, "title": "x", "phase": "running", "done": 0, "total": 1, "result": None, "error": None}]
    desk = Desk([a_row("cat")], jobs)
    blocks, _ = drawn(desk.page())
    look, = events_of(blocks, "lycoris_library_refresh")
    asked = ("networks", "cat", "", "Name", 0)
    seen = look("", *asked)[2]
    assert look(seen, *asked)[5:] == [gr.update()] * 5
    jobs[0]["phase"] = "done"
    desk._rows.append(a_row("cat-4"))
    *_, files, _, _, _, _ = look(seen, *asked)
    assert [name for _, name in files["choices"]] == ["cat", "cat-4"] and "value" not in files


def test_the_newest_comparison_of_the_chosen_network_is_shown():
    side = {"kind": "lora", "norms": {"IN00": 1.0}}
    result = {"name": "cat", "other": "dog", "first": side, "second": side, "common": 7, "only_first": 0, "only_second": 0, "alikeness": {"IN00": 0.25}}
    jobs = [{"id": 1, "title": "x", "phase": "done", "done": 1, "total": 1, "result": result, "error": None}]
    assert "25 %" in make_look(Desk(jobs=jobs).page())("", "networks", "cat")[4]
    assert make_look(Desk(jobs=jobs).page())("", "networks", "dog")[4] == gr.update()


@pytest.mark.parametrize(("name", "typed", "expected"), [
    ("rename", {"lycoris_rename_new": "tabby"}, {"name": "cat", "shelf": "networks", "new": "tabby"}),
    ("resize", {"lycoris_resize_rank": "4"}, {"name": "cat", "rank": 4}),
    ("convert", {"lycoris_convert_to": "peft", "lycoris_convert_out": " mine "}, {"name": "cat", "to": "peft", "out": "mine"}),
    ("merge", {"lycoris_merge_parts": "cat:1\n dog:0.5 \n"}, {"parts": ["cat:1", "dog:0.5"]}),
    ("compare", {"lycoris_compare_other": "dog"}, {"name": "cat", "other": "dog"}),
    ("measure", {}, {"name": "cat"}), ("delete", {}, {"name": "cat", "shelf": "networks"}),
    ("restore", {"lycoris_library_deleted": "e1"}, {"entry": "e1"}),
    ("remark", {"lycoris_remark_activation_text": "zorb", "lycoris_remark_preferred_weight": "", "lycoris_remark_notes": "n"},
     {"name": "cat", "shelf": "networks", "preferred_weight": 0.0, "notes": "n"}),
])
def test_a_button_hands_over_what_its_action_takes(name, typed, expected):
    desk = Desk()
    blocks, actions = drawn(desk.page())
    work, inputs = button_of(blocks, actions, name)
    known = {"lycoris_library_shelf": "networks", "lycoris_library_files": "cat", "lycoris_library_search": "", "lycoris_library_sort": "Name",
             "lycoris_convert_to": "kohya"}
    work(*({**known, **typed}.get(each, "") for each in inputs))
    assert desk.asked == [(name, expected)]
    record = next(action for action in ACTIONS if action.name == name)
    assert record.make(expected) is not None


@pytest.mark.parametrize("name", ["rename", "measure", "delete", "remark", "convert"])
def test_without_a_chosen_file_the_page_says_what_to_do(name):
    desk = Desk()
    blocks, actions = drawn(desk.page())
    work, inputs = button_of(blocks, actions, name)
    answer = work(*("networks" if each == "lycoris_library_shelf" else None if each == "lycoris_library_files" else "" for each in inputs))
    told = answer if isinstance(answer, str) else answer[1]
    assert "no file is chosen" in told and desk.asked == []


def test_an_error_is_shown_as_text():
    blocks, actions = drawn(Desk().page())
    work, inputs = button_of(blocks, actions, "rename")
    answer = work(*("networks" if each == "lycoris_library_shelf" else "bad" for each in inputs))
    assert "&lt;script&gt;" in answer[1] and "<script" not in answer[1]


def test_a_file_that_is_gone_is_told_and_nothing_is_shown():
    page = Desk().page()

    def gone(name, shelf):
        raise LycoError("no network is called 'cat'")

    from dataclasses import replace

    _, actions = drawn(replace(page, describe=gone))
    assert actions.fill("networks", "cat")[0]["value"] == ""


def test_the_lines_of_a_chart_stand_out_from_a_white_page_and_from_a_black_one():
    for number in range(25):
        hue, saturation, light = (float(part.rstrip("%")) for part in charts._colour(number, 25)[4:-1].split())
        rgb = colorsys.hls_to_rgb(hue / 360, light / 100, saturation / 100)
        luminance = sum(weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
                        for weight, part in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))
        assert 1.05 / (luminance + 0.05) > 2 and (luminance + 0.05) / 0.05 > 3  # contrast as WCAG counts it


def test_what_can_not_be_used_has_no_tag_to_write():
    told = library_text.describe({**a_row("cat", problem="damaged"), "tag": "<lyco:cat:1>"})
    assert "damaged" in told and "lyco:cat" not in told and "lyco:cat" in library_text.describe({**a_row("cat"), "tag": "<lyco:cat:1>"})
