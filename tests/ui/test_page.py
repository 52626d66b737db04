"""The page is built from the records, its labels belong to its fields, and what users and files name stays text."""

from __future__ import annotations

import json
import warnings

import pytest

with warnings.catch_warnings():
    # gradio 3.41 warns of its own dependencies at import.
    warnings.simplefilter("ignore")
    gr = pytest.importorskip("gradio")

from lib_lycoris.errors import ConfigError
from lib_lycoris.setting import Setting
from lib_lycoris.training.config import KINDS, TrainConfig, settings
from lib_lycoris.training.job import JobState
from lib_lycoris.ui import compat, curves, text
from lib_lycoris.ui.fields import element_id, explanation, label
from lib_lycoris.ui.generate import GeneratePage, insert_tag
from lib_lycoris.ui.page import LATE, make_look, make_page
from lib_lycoris.ui.tab import make_tab
from lib_lycoris.ui.train import FIRST, REST, TrainPage, draw_train, train_settings
from lib_lycoris.ui.train import make_look as make_train_look

pytestmark = pytest.mark.filterwarnings("ignore")  # gradio's own; the rule "warnings are errors" is for what this project does


def a_setting(name, kind, default, **more):
    plain = {"optional": False, "help": f"About {name}.", "minimum": None, "maximum": None, "choices": None, "not_yet": (), "multiple": None,
             "above_minimum": False}
    return Setting(section="generate", name=name, kind=kind, default=default, **{**plain, **more})


RECORD = [
    a_setting("prompt", "text", ""), a_setting("negative", "text", ""), a_setting("seed", "whole number", -1, minimum=-1, maximum=2**63 - 1),
    a_setting("steps", "whole number", 20, minimum=1, maximum=1000), a_setting("sampler", "text", "Euler a"), a_setting("width", "whole number", 128),
    a_setting("height", "whole number", 128), a_setting("cfg", "number", 7.0, minimum=0, maximum=100), a_setting("clip_skip", "whole number", 1),
    a_setting("batch", "whole number", 1),
]


class Desk:
    """A train page's callables that remember what they were handed."""

    def __init__(self, state=None):
        self.configs = []
        self._state = state or JobState()

    def page(self, **more):
        return TrainPage(start=self.configs.append, stop=lambda: None, state=lambda: self._state.to_dict(), check=lambda config: ["8 pictures"], **more)


def a_generate_page():
    return GeneratePage(RECORD, lambda values, tell: {"pictures": [], "problems": []}, lambda: None, lambda: ["dog"],
                        choices={"generate.sampler": ["Euler a", "DDIM"]})


def train_form(page):
    with gr.Blocks() as blocks:
        form = draw_train(blocks, page)
    return blocks, form


def values_of(form):
    return [component.value for component in form.components()]


def test_every_setting_of_the_config_has_exactly_one_field_but_those_that_the_host_decides():
    page = Desk().page()
    form = train_form(page)[1]
    assert sorted(form.fields()) == sorted(setting.key for setting in settings() if setting.key != "model.checkpoint")
    assert len(form.components()) == len(train_settings(page))


def test_the_untouched_form_is_the_default_config():
    form = train_form(Desk().page())[1]
    assert TrainConfig.from_dict(form.config(values_of(form))) == TrainConfig()


def test_the_hosts_defaults_reach_the_config():
    form = train_form(Desk().page(defaults={"data.resolution": 128, "data.folders": ("a", "b"), "training.steps": 7}))[1]
    config = TrainConfig.from_dict(form.config(values_of(form)))
    assert (config.data.resolution, config.data.folders, config.training.steps) == (128, ("a", "b"), 7)


def test_a_beginner_sees_six_fields():
    assert len([key for row in FIRST for key in row]) + 1 == 6  # and the preset


def test_every_field_has_its_own_label_its_sentence_and_its_element():
    form = train_form(Desk().page())[1]
    record = {setting.key: setting for setting in settings()}
    for key, component in form.fields().items():
        assert component.label == label(record[key])
        assert component.info == compat.info(explanation(record[key]))
        assert component.elem_id == element_id(record[key])
    labels = [component.label for component in form.components()]
    assert len(set(labels)) == len(labels)


def test_a_field_with_choices_offers_what_the_record_takes():
    form = train_form(Desk().page())[1]
    assert [choice[1] if isinstance(choice, tuple) else choice for choice in form.fields()["network.kind"].choices] == list(KINDS)


def test_a_number_that_may_be_left_out_has_a_text_field_for_a_number_box_sends_0_when_it_is_empty():
    form = train_form(Desk().page())[1]
    optional = [setting.key for setting in settings() if setting.optional and setting.kind in ("number", "whole number")]
    assert "training.steps" in optional
    assert all(isinstance(form.fields()[key], gr.Textbox) for key in optional)
    typed = dict(zip(form.fields(), values_of(form), strict=True))
    assert TrainConfig.from_dict(form.config({**typed, "training.steps": " 7 ", "network.alpha": "0.5"}.values())) == (
        TrainConfig.from_dict({"training": {"steps": 7}, "network": {"alpha": 0.5}}))
    with pytest.raises(ConfigError, match=r"training\.steps"):
        form.config({**typed, "training.steps": "many"}.values())


def test_a_choice_that_may_be_left_out_says_so_before_and_after_it_is_filled_in():
    form = train_form(Desk().page())[1]
    optional = [setting.key for setting in settings() if setting.optional and setting.choices and setting.kind == "text"]
    assert "training.time_sampling" in optional
    for key in optional:
        field, shown = form.fields()[key], form.filled({})[key]
        assert field.value == shown == "left out" and shown in [choice[1] if isinstance(choice, tuple) else choice for choice in field.choices]


def test_a_large_seed_is_not_rounded_on_its_way():
    form = train_form(Desk().page(defaults={"training.seed": 2**63 - 1}))[1]
    assert TrainConfig.from_dict(form.config(values_of(form))).training.seed == 2**63 - 1


@pytest.mark.parametrize(("more", "words"), [
    ({"minimum": 1, "maximum": 1024}, "About x. 1 to 1024."), ({"minimum": 1, "maximum": 10_000_000}, "About x. 1 or more."),
    ({"minimum": 0, "maximum": 10, "above_minimum": True}, "About x. Above 0, at most 10."), ({}, "About x."),
    ({"minimum": 64, "maximum": 4096, "multiple": 8}, "About x. 64 to 4096, a multiple of 8."),
])
def test_a_numbers_range_is_told_in_short_words(more, words):
    assert explanation(a_setting("x", "whole number", 1, **more)) == words


def test_the_studios_page_is_built_with_both_tabs_and_no_element_twice():
    whole = {"config": dict, "presets": list, "export": dict, "sample": dict, "pictures": dict, "upload": dict}
    blocks = make_page(Desk().page(**whole), a_generate_page(), lambda: "world", dict)
    ids = [block.elem_id for block in blocks.blocks.values() if getattr(block, "elem_id", None)]
    assert len(set(ids)) == len(ids)
    assert {"lycoris_tab_generate", "lycoris_tab_train", "lycoris_start", "lycoris_generate_prompt", "lycoris_data_folders"} <= set(ids)


def test_the_webuis_tab_holds_train_and_what_else_it_is_given_and_the_host_keeps_no_first_values_of_its_fields():
    blocks = make_tab(Desk().page(polls=False), (("Library", "lycoris_tab_library", lambda blocks: gr.HTML("x", elem_id="drawn")),))
    ids = {block.elem_id for block in blocks.blocks.values()}
    assert {"lycoris_tab_train", "lycoris_start", "lycoris_tab_library", "drawn"} <= ids
    assert all(block.do_not_save_to_config for block in blocks.blocks.values())


def test_once_the_model_is_known_its_size_stands_in_the_fields():
    known = {}
    look = make_look(lambda: f"line {known}", lambda: json.dumps(known))
    early = look("")
    assert early[2] == "{}"
    known.update(dict.fromkeys(LATE, 128))
    later = look(early[1])
    assert list(json.loads(later[2]).values()) == [128, 128, 128]
    assert look(later[1]) == [gr.update(), gr.update(), ""]


def handlers(blocks):
    """The page's own functions, by the ids of their outputs' elements."""
    functions = blocks.fns.values() if isinstance(blocks.fns, dict) else blocks.fns
    return [function.fn for function in functions if function.fn is not None]


def test_the_page_polls_once_a_second_and_not_at_all_where_it_may_not():
    for polls in (True, False):
        blocks, _ = train_form(Desk().page(polls=polls))
        timers = [block for block in blocks.blocks.values() if type(block).__name__ == "Timer"]
        repeated = [one for one in getattr(blocks, "dependencies", []) if one.get("every")]
        assert len(timers) + len(repeated) == (1 if polls else 0)


def test_a_look_at_what_is_shown_already_changes_nothing():
    look = make_train_look(Desk(JobState(version=3, phase="running", name="dog", step=2, steps=9)).page())
    first = look("")
    assert first[-1].startswith("3|")
    unchanged = look(first[-1])
    assert len(unchanged) == len(first)
    assert all(value == gr.update() for value in unchanged)


@pytest.mark.parametrize(("phase", "may_start", "may_stop", "pause", "may_preview"), [
    ("idle", True, False, None, False), ("preparing", False, True, "Pause", True), ("running", False, True, "Pause", True),
    ("pausing", False, True, None, False), ("paused", False, True, "Resume", False), ("stopping", False, False, None, False),
    ("done", True, False, None, False), ("stopped", True, False, "Resume", False), ("failed", True, False, "Resume", False),
    ("interrupted", True, False, "Resume", False),
])
def test_buttons_can_be_pressed_only_when_they_would_work(phase, may_start, may_stop, pause, may_preview):
    start, stop, pauses, preview = make_train_look(Desk(JobState(version=1, phase=phase)).page())("")[-5:-1]
    assert (start["interactive"], stop["interactive"], preview["interactive"]) == (may_start, may_stop, may_preview)
    assert pauses["interactive"] == (pause is not None) and (pause is None or pauses["value"] == pause)


def test_start_hands_over_the_config_and_shows_an_error_as_text():
    desk = Desk()
    blocks, form = train_form(desk.page())
    values = values_of(form)
    starts = [handler for handler in handlers(blocks) if handler.__name__ == "start_training"]
    assert starts[0]("", *values)[:2] == ["", ""]
    assert desk.configs == [form.config(values)]

    def refuse(config):
        raise ConfigError("data.folders = <img src=x onerror=alert(1)>: no folder")

    page = Desk().page()
    blocks, form = train_form(TrainPage(refuse, page.stop, page.state, page.check))
    answer = next(handler for handler in handlers(blocks) if handler.__name__ == "start_training")("", *values_of(form))
    assert "no folder" in answer[0]
    assert "<img" not in answer[0]


def test_an_error_stands_at_the_field_that_caused_it_until_it_is_mended():
    answers = ["data.folders = []: name a folder", ""]

    def refuse(config):
        error = answers.pop(0)
        if error:
            raise ConfigError(error)

    page = Desk().page()
    blocks, form = train_form(TrainPage(refuse, page.stop, page.state, page.check))
    start = next(handler for handler in handlers(blocks) if handler.__name__ == "start_training")
    place = list(form.fields()).index("data.folders")
    _, key, *updates = start("", *values_of(form))
    assert len(updates) == len(form.components()) + len(form.parts())
    assert key == "data.folders" and "name a folder" in updates[place]["info"]
    assert all(update == gr.update() for number, update in enumerate(updates) if number != place)
    _, key, *updates = start(key, *values_of(form))
    assert key == "" and updates[place]["info"] == form.fields()["data.folders"].info


def test_a_field_with_an_error_in_a_folded_part_is_unfolded():
    form = train_form(Desk().page())[1]
    opened = [part.label for part, update in zip(form.parts(), form.unfolded("training.warmup_steps"), strict=True) if update == gr.update(open=True)]
    assert opened == [REST["training"]]
    assert all(update == gr.update() for key in ("", "training.steps") for update in form.unfolded(key))


def test_an_explanation_is_shown_as_it_stands_whatever_gradio_makes_of_markdown():
    words = 'a <b> "up_1*attn*" [x](http://y) (z)'
    shown = compat.info(words)
    assert shown.replace(compat.STAR, "*").replace("\u200b", "") == words
    if compat.HAS_TIMER:
        assert "<b" not in shown and "](" not in shown and "*" not in shown
    form = train_form(Desk().page())[1]
    typed = {**dict(zip(form.fields(), values_of(form), strict=True)), "network.only": f"up{compat.STAR}attn2"}
    assert form.config(typed.values())["network"]["only"] == ["up*attn2"]


def test_fields_that_the_chosen_kind_does_not_know_are_hidden_and_left_out():
    unknown = {"locon": ["network.target_rank"], "lora": ["network.target_rank", "network.conv_rank"], "adalora": ["network.conv_rank"]}
    form = train_form(Desk().page(unknown=unknown))[1]
    assert form.kind_keys() == ["network.conv_rank", "network.target_rank"]
    assert [form.fields()[key].visible for key in form.kind_keys()] == [True, False]
    assert [update["visible"] for update in form.show_for("adalora")[:2]] == [False, True]
    typed = {**dict(zip(form.fields(), values_of(form), strict=True)), "network.conv_rank": "3", "network.target_rank": "5", "network.kind": "adalora"}
    assert form.config(typed.values())["network"]["target_rank"] == 5 and "conv_rank" not in form.config(typed.values())["network"]


def test_a_folded_part_is_there_only_for_kinds_that_know_something_in_it_and_unfolds_for_its_own():
    keys = [setting.key for setting in settings()]
    of_adapter, of_word = ([key for key in keys if key.startswith(f"{section}.")] for section in ("adapter", "embedding"))
    form = train_form(Desk().page(unknown={"locon": of_adapter, "embedding": of_adapter, "adapter": of_word}))[1]
    parts = [component for component in form.kind_components() if isinstance(component, gr.Accordion)]
    place = [part.label for part in parts].index(REST["adapter"]) - len(parts)
    other = [part.label for part in parts].index(REST["embedding"]) - len(parts)
    assert [part.visible for part in parts].count(False) == 1 and not parts[place].visible
    assert form.show_for("adapter")[place] == gr.update(visible=True, open=True) and form.show_for("adapter")[other] == gr.update(visible=False)
    assert form.show_for("embedding")[other] == gr.update(visible=True, open=True) and form.show_for("locon")[other] == gr.update(visible=True)


def test_a_preset_fills_in_all_fields_but_those_of_one_training():
    form = train_form(Desk().page(defaults={"training.precision": "fp16"}))[1]
    filled = form.filled({"network.rank": 3, "training.steps": 7, "network.targets": ["q"]}, ("data.folders",))
    assert (filled["network.rank"], filled["training.steps"], filled["network.targets"]) == (3, "7", ["q"])
    assert "data.folders" not in filled and filled["training.precision"] == "fp16" and filled["data.flip"] is False
    assert set(form.fields()) - set(filled) == {"data.folders"}


def found(phase, config, late=None, name="dog"):
    """What the page is told of the last training when it is opened: (for each field by key what it may hold and what it is to hold, words)."""
    page = Desk(JobState(version=1, phase=phase, name=name)).page(config=lambda: config)
    with gr.Blocks() as blocks:
        form = draw_train(blocks, page, lambda: late or {})
    look = next(handler for handler in handlers(blocks) if handler.__qualname__.endswith("_Last.wire.<locals>.look"))
    told, words = look()
    if not told:
        return None, words
    told = json.loads(told)
    assert told["whole"]
    return {list(form.fields())[place]: (befores, after) for place, befores, after in told["changes"]}, words


def test_settings_of_a_training_under_way_are_told_beside_what_untouched_fields_hold():
    config = TrainConfig().set("training.steps", 7).set("output.name", "dog").to_dict()
    for phase in ("preparing", "running", "pausing", "paused", "stopping"):
        changes, words = found(phase, config, {"data.resolution": 64})
        assert (changes["training.steps"], changes["output.name"][1]) == (([""], "7"), "dog")
        assert changes["data.resolution"] == ([512, 64], 512)
        assert "dog" in words and "under way" in words


@pytest.mark.parametrize("phase", ["done", "stopped", "failed", "interrupted"])
def test_settings_of_a_training_that_has_ended_are_offered_in_words_alone(phase):
    assert found(phase, TrainConfig().to_dict(), name="<b>dog")[0] == {}
    assert "The last training, &lt;b&gt;dog, " in found(phase, TrainConfig().to_dict(), name="<b>dog")[1]
    assert found("idle", None) == (None, "")


def test_curves_and_bars_are_drawn_of_numbers_and_told_in_words():
    svg = curves.curves({"loss": [(1, 0.5), (2, 0.25)], "validation": [(2, 0.3)]}, "Loss")
    assert 'aria-label="Loss: loss 0.25 at step 2; validation 0.3 at step 2"' in svg and svg.count("<polyline") == 2
    assert curves.curves({"loss": [(1, 0.5)]}, "Loss") == "" and curves.curves({"loss": [(1, float("nan"))]}, "x") == ""
    html = curves.ranks({"unet.down_blocks_1_x": 4, "unet.down_blocks_1_y": 8, "te1.<b>": 0, "unet.mid_block_z": 2}, 12)
    assert 'value="6.000"' in html and "down 1" in html and "<b>" not in html and 'max="12"' in html and "3.5 on average" in html
    assert curves.ranks({}, 4) == ""
    flat = curves.curves({"rate": [(1, 1e-4), (2, 1e-4)]}, "Learning rate")
    assert flat.count("<polyline") == 1 and "NaN" not in flat


def test_previews_stand_beside_the_picture_from_before_and_are_sent_once():
    previews = [(0, "a <b>zorb</b>", "step0-0.png"), *((step, "a <b>zorb</b>", f"step{step}-0.png") for step in range(10, 100, 10))]
    page = Desk(JobState(version=1, phase="running", previews=tuple(previews))).page(thumbnail=lambda path: path.encode())
    look = make_train_look(page)
    shown = look("")
    html = shown[2]
    assert html.count("<img") == 6 and "before" in html and "step 90" in html and "step 10<" not in html and "<b>" not in html
    assert look(shown[-1].replace("1|", "0|", 1))[2] == gr.update()


@pytest.mark.parametrize(("kind", "tag", "shown", "words"), [
    ("locon", "<lyco:dog:1>", "<lyco:dog:1>", "words of your captions"), ("embedding", "dog", "dog", "this word"), ("adapter", None, "dog", "control picture"),
])
def test_it_is_told_how_that_what_was_trained_is_used(kind, tag, shown, words):
    use = make_train_look(Desk(JobState(version=1, phase="done", kind=kind, path="/nets/dog.safetensors", tag=tag)).page())("")[5]
    assert (use["value"], use["visible"]) == (shown, True) and words in use["label"]
    assert not make_train_look(Desk(JobState(version=1, phase="running", kind=kind)).page())("")[5]["visible"]


def test_an_adapters_previews_stand_beside_the_control_picture_that_they_follow():
    made = ((-1, "a zorb", "control-0.png"), (0, "a zorb", "without-0.png"), *((step, "a zorb", f"step{step}-0.png") for step in range(10, 100, 10)))
    html = make_train_look(Desk(JobState(version=1, phase="running", previews=made)).page(thumbnail=lambda path: path.encode()))("")[2]
    assert html.count("<img") == 6 and html.index("control<") < html.index("before<") < html.index("step 60<") and "step 50<" not in html


def test_nothing_that_a_user_or_a_file_names_becomes_html():
    nasty = "<script>alert(1)</script>"
    for html in (text.progress({"phase": "running", "name": nasty, "step": 1, "steps": 2, "loss": 0.5}), text.problems([nasty]), text.heading(nasty, nasty)):
        assert "<script" not in html
        assert "&lt;script&gt;" in html


def test_progress_says_step_loss_and_time_left():
    html = text.progress({"phase": "running", "name": "dog", "step": 30, "steps": 100, "loss": 0.12345, "seconds": 65, "seconds_left": 4000})
    assert "data-phase='running'" in html  # by which the host's page, whatever its language, knows that pictures wait
    for words in ("Training (dog)", "step 30 of 100", "loss 0.1235", "1 min 5 s so far", "about 1 h 6 min left", 'max="100" value="30"'):
        assert words in html


def test_a_failed_training_says_why_as_an_alert():
    html = text.progress(JobState(phase="failed", name="dog", error="loss <b>NaN</b>").to_dict())
    assert 'role="alert"' in html
    assert "loss &lt;b&gt;NaN&lt;/b&gt;" in html


def test_inserting_a_tag_adds_it_once_at_the_end():
    assert insert_tag("a dog", "rex") == "a dog <lyco:rex:1>"
    assert insert_tag("", "rex") == "<lyco:rex:1>"
    assert insert_tag("a <lyco:rex:1> dog", "rex") == "a <lyco:rex:1> dog"
    assert insert_tag("a dog", None) == "a dog"
