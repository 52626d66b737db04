"""The extension in the WebUI's life: Reload UI, its routes, its start, other hosts."""

from __future__ import annotations

import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

import pytest

from .reply import distance
from .test_pictures import HIRES, ROUNDING

ROOT = Path(__file__).parents[2]


def test_reload_ui_leaves_the_model_clean_and_the_tag_working(webui):
    base, changed = webui.picture("before and after"), webui.picture("before and after <lyco:A:1>")
    webui.picture("let go of what the built-in merged")
    clean = webui.model()
    webui.break_at(1, "exception", "unet.middle_block.1")
    webui.failing_picture("before and after <lyco:A:1>")
    webui.reload_ui()
    assert webui.model()["hooks"] == {}
    assert webui.model() == clean
    assert webui.picture("before and after").pictures == base.pictures
    again = webui.picture("before and after <lyco:A:1>")
    assert again.pictures == changed.pictures and distance(again, base) > 0


def test_the_tag_is_registered_by_its_own_name_before_the_built_ins_alias(webui):
    assert "lyco" in webui.model()["networks"]


@pytest.mark.webui
def test_switched_off_among_the_extensions_it_is_gone_without_a_trace_and_comes_back(real_webui):
    prompt = "switched off <lyco:A:1>"
    base, changed, model = real_webui.picture("switched off"), real_webui.picture(prompt), real_webui.model()
    real_webui.set_options(disabled_extensions=["lyco-studio"])
    try:
        real_webui.reload_ui()
        without = real_webui.model()
        assert "lyco" not in without["networks"] and {key: without[key] for key in ("bits", "hooks")} == {key: model[key] for key in ("bits", "hooks")}
        with pytest.raises(urllib.error.HTTPError) as refused:
            real_webui.ask("/lycoris/v1/networks")
        with refused.value as error:
            assert error.code == 404
        config = real_webui.ask("/config")
        ids = {str(each["props"].get("elem_id")) for each in config["components"]}
        assert not [each for each in ids if "lyco" in each and "setting" not in each]  # the host keeps settings until its process ends
        assert real_webui.picture("switched off").pictures == base.pictures
    finally:
        real_webui.set_options(disabled_extensions=[])
        real_webui.reload_ui()
    assert real_webui.picture(prompt).pictures == changed.pictures and real_webui.picture("switched off").pictures == base.pictures
    assert real_webui.model()["networks"] == model["networks"]


@pytest.mark.webui
def test_the_networks_are_listed_for_those_who_have_the_credentials(real_webui):
    listed = {each["name"]: each for each in real_webui.ask("/lycoris/v1/networks")["networks"]}
    assert listed["A"]["tag"] == "<lyco:A:1>"
    assert listed["A"]["bytes"] == (real_webui.networks / "A.safetensors").stat().st_size
    with pytest.raises(urllib.error.HTTPError) as refused:
        real_webui.ask("/lycoris/v1/networks", authorised=False)
    with refused.value as error:
        assert error.code == 401
    with pytest.raises(urllib.error.HTTPError) as refused:
        real_webui.ask("/lycoris/v1/networks", headers={"Origin": "http://elsewhere.example"})
    with refused.value as error:
        assert error.code == 403


@pytest.mark.webui
def test_an_interrupt_over_http_leaves_nothing_behind(real_webui):
    base, whole = real_webui.picture("to be stopped"), real_webui.picture("to be stopped <lyco:A:1>", steps=300)
    replies = []
    thread = threading.Thread(target=lambda: replies.append(real_webui.picture("to be stopped <lyco:A:1>", steps=300)))
    thread.start()
    while real_webui.ask("/sdapi/v1/progress")["state"]["sampling_step"] < 5:
        assert thread.is_alive()
    real_webui.ask("/sdapi/v1/interrupt", {})
    thread.join(600)
    assert replies[0].pictures != whole.pictures
    assert real_webui.model()["hooks"] == {}
    assert real_webui.picture("to be stopped").pictures == base.pictures


@pytest.mark.webui
def test_layers_that_are_moved_to_the_device_only_while_they_run_take_networks(lowvram_webui):
    webui = lowvram_webui
    hires = HIRES | {"hr_prompt": "a shape <lyco:B:1>"}  # the host activates three times for it then
    base, hooks = webui.picture("a shape"), webui.model()["hooks"]
    changed, both = webui.picture("a shape <lyco:A:1>"), webui.picture("a shape <lyco:A:1> <lora:B:1>", **hires)
    assert distance(base, changed) > ROUNDING
    assert distance(changed, webui.picture("a shape <lora:A:1>")) <= ROUNDING
    assert webui.picture("a shape <lyco:A:1> <lora:B:1>", **hires).pictures == both.pictures
    own = webui.picture("a shape <lyco:A:1:hrte=0:hrunet=0.5>", **HIRES)
    assert distance(own, webui.picture("a shape <lyco:A:1>", hr_prompt="a shape <lyco:A:0:0.5>", **HIRES)) <= ROUNDING
    assert webui.picture("a shape").pictures == base.pictures
    assert webui.model()["hooks"] == hooks


def test_where_the_host_encodes_the_hires_prompt_before_the_first_pass_nothing_else_comes_out(stand_in_webui, monkeypatch):
    from modules import shared

    prompt, settings = "a shape <lyco:A:3:hrte=0:hrunet=0.5>", {**HIRES, "negative_prompt": "none <lyco:A:0.5>", "hr_negative_prompt": "<lyco:B:1>"}
    wanted = stand_in_webui.picture(prompt, **settings)
    stand_in_webui.picture("another one", **HIRES)  # the host keeps encoded prompts
    monkeypatch.setattr(shared.cmd_opts, "lowvram", True)
    assert stand_in_webui.picture(prompt, **settings).pictures == wanted.pictures


def test_without_a_tag_nothing_of_ours_runs_in_a_step_and_the_picture_is_left_alone(stand_in_webui, monkeypatch):
    from modules import processing

    from lib_lycoris.webui import extension, work

    made, process = [], processing.process_images
    monkeypatch.setattr(processing, "process_images", lambda p: made.append(p) or process(p))
    stand_in_webui.picture("not ours <lyco:A:1>")
    assert {"close", "get_conds_with_caching"} <= vars(made[0]).keys()
    for name in ("follow", "prepare"):
        monkeypatch.setattr(work.Work, name, None)
    monkeypatch.setattr(extension, "rows_of", None)
    stand_in_webui.picture("not ours", negative_prompt="<lora:A:1>", **HIRES)
    assert not {"close", "get_conds_with_caching"} & vars(made[1]).keys()


def test_a_copied_picture_is_not_its_original(stand_in_webui, monkeypatch):
    import copy

    from modules import processing

    made, process = [], processing.process_images
    monkeypatch.setattr(processing, "process_images", lambda p: made.append(p) or process(p))
    wanted = stand_in_webui.picture("copied <lyco:A:1>")
    other = copy.copy(made[0])
    latents, _ = processing.process_images(other)
    assert other.lyco_work is not made[0].lyco_work and vars(other)["close"].owner() is other
    assert [stand_in_webui.decode(each) for each in latents] == wanted.pictures
    other.close()
    assert stand_in_webui.model()["hooks"] == {}


@pytest.mark.webui
def test_the_start_prints_nothing_of_ours_and_no_error(real_webui):
    assert "lyco studio" not in real_webui.output().lower()
    assert "Error loading script" not in real_webui.output()
    assert "activating extra network" not in real_webui.output()


def run_script_with(tmp_path, *modules: str) -> subprocess.CompletedProcess:
    """Runs scripts/lycoris.py where the host's package `modules` has these modules and nothing else."""
    for module in ("modules.script_callbacks", *modules):
        path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        (path.parent / "__init__.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; exec(open({str(ROOT / 'scripts' / 'lycoris.py')!r}).read())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("modules", "name"), [(("modules_forge.forge",), "Forge"), (("modules.modeldata",), "SD.Next"),
                                               ((), "no modules.extra_networks")])
def test_another_host_is_told_in_one_line_what_is_supported(tmp_path, modules, name):
    done = run_script_with(tmp_path, *modules)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout.count("\n") == 1
    assert name in done.stdout and "v1.10.1" in done.stdout
