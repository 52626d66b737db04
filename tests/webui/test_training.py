"""Training on the loaded checkpoint over the API: a network comes out that works, and the model is as it was, whatever happened."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

PROMPT = "a large red circle"
STEPS = 3
ROUTE = "/lycoris/v1/train"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of three captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a (zorb:1.3), number {number}")
    return folder


def config(folder, name, **sections):
    """A config of a short training that leaves a mark."""
    values = {
        "data": {"folders": [str(folder)], "resolution": 64}, "network": {"kind": "lora", "rank": 4},
        "training": {"steps": STEPS, "learning_rate": 0.02}, "output": {"name": name, "dtype": "fp32"},
    }
    for section, more in sections.items():
        values[section] = {**values.get(section, {}), **more}
    return values


def wait(webui, *phases, seconds=240):
    """The training's state once it is in one of these phases."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = webui.ask(ROUTE)
        if state["phase"] in phases:
            return state
        assert state["phase"] != "failed", state["error"]
        time.sleep(0.02)
    raise AssertionError(f"still {state}")


def until(webui, reached, seconds=240):
    """The training's state once `reached(state)`; an error where that does not come, so that no test waits for ever."""
    end = time.monotonic() + seconds
    while not reached(state := webui.ask(ROUTE)):
        assert time.monotonic() < end, f"still {state}"
        time.sleep(0.02)
    return state


def begun(state):
    """Whether a training has made a step; one that ended before it is an error."""
    assert state["phase"] not in ("failed", "done", "stopped"), state
    return state["step"] >= 1


def finished(webui, values):
    """The state after the training of a config."""
    webui.ask(ROUTE, values)
    return wait(webui, "done", "stopped")


def test_the_check_says_what_would_happen_and_changes_nothing(webui, folder):
    webui.picture(PROMPT)  # the host loads its checkpoint in the background, or now
    lines = webui.ask(f"{ROUTE}/check", config(folder, "checked"))["lines"]
    assert "3 pictures." in lines[0] and any("How long it takes is not known" in line for line in lines)
    assert any(line.startswith("About ") and "GiB of memory" in line for line in lines)
    assert not (webui.networks / "checked.safetensors").exists()


def refused(webui, path, values):
    """(status, error) of a request that is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        webui.ask(path, values)
    return caught.value.code, json.load(caught.value)["error"]


@pytest.fixture
def unchanged(webui):
    """Fails where the picture without a network, or anything on the model, is another one after the test than before."""
    before, model = webui.picture(PROMPT, checkpoint=webui.base), webui.model()
    yield before
    assert webui.picture(PROMPT).pictures == before.pictures
    after = webui.model()
    assert after["bits"] == model["bits"] and after["identity"] == model["identity"] and after["hooks"] == model["hooks"]


def test_a_training_leaves_a_network_that_works_and_nothing_else(webui, folder, unchanged):
    state = finished(webui, config(folder, "fresh"))
    assert state["phase"] == "done" and state["step"] == STEPS and state["tag"] == "<lyco:fresh:1>"
    assert state["path"] == str(webui.networks / "fresh.safetensors") and (webui.networks / "fresh.safetensors").is_file()
    assert webui.picture(f"{PROMPT} <lyco:fresh:1>").pictures != unchanged.pictures
    assert "fresh" in [network["name"] for network in webui.ask("/lycoris/v1/networks")["networks"]]


def test_a_training_of_a_word_leaves_a_file_that_the_host_finds_and_nothing_else(webui, folder, unchanged):
    lone = webui.picture("a zorbaz")
    settings = {"network": {"kind": "embedding", "rank": 16}, "embedding": {"vectors": 2, "learning_rate": 0.5}}
    output = {"preview_prompts": ["a zorbaz"], "preview_every": 2}
    state = finished(webui, config(folder, "zorbaz", **settings, output=output, data={"caption_dropout": 0.3, "batch_size": 2}))
    assert state["phase"] == "done" and state["tag"] == "zorbaz" and not [line for line in state["log"] if "preview" in line], state["log"]
    assert state["path"] == str(webui.host_embeddings / "zorbaz.safetensors")
    assert webui.picture("a zorbaz").pictures != lone.pictures


def test_a_word_in_training_is_not_lost_when_the_hosts_embeddings_are_read_anew(stand_in_webui, folder, unchanged):
    from modules import sd_hijack
    from safetensors.torch import load_file

    made, db = [], sd_hijack.model_hijack.embedding_db
    for reload in (False, True):
        values = config(folder, "zorbuz", network={"kind": "embedding", "rank": 16}, training={"steps": 8, "learning_rate": 0.05})
        stand_in_webui.ask(ROUTE, values)
        while stand_in_webui.ask(ROUTE)["phase"] not in ("done", "failed"):
            if reload:
                db.load_textual_inversion_embeddings(force_reload=True)
            time.sleep(0.005)
        state = stand_in_webui.ask(ROUTE)
        assert state["phase"] == "done", state["error"]
        made.append(load_file(state["path"])["emb_params"])
        assert sd_hijack.model_hijack.embedding_db is db
    assert (made[0] == made[1]).all()


def test_networks_that_were_merged_into_the_weights_are_not_trained_upon(webui, folder, unchanged):
    finished(webui, config(folder, "clean"))
    webui.picture(f"{PROMPT} <lora:A:1> <lyco:B:1>")
    finished(webui, config(folder, "after"))
    assert (webui.networks / "after.safetensors").read_bytes()[-4000:] == (webui.networks / "clean.safetensors").read_bytes()[-4000:]


def test_a_pause_lets_pictures_through_and_the_end_is_the_same(webui, folder):
    before, bits = webui.picture(PROMPT, checkpoint=webui.base), webui.model()["bits"]
    steps = {"steps": 40}
    finished(webui, config(folder, "whole", training=steps))
    webui.ask(ROUTE, config(folder, "paused", training=steps))
    webui.ask(f"{ROUTE}/pause", {})
    paused = wait(webui, "paused", "done")
    assert paused["phase"] == "paused" and paused["step"] < 40
    webui.picture(f"{PROMPT} <lyco:whole:1>", checkpoint=webui.own_config)
    assert webui.picture(PROMPT, checkpoint=webui.base).pictures == before.pictures
    webui.picture(PROMPT, checkpoint=webui.own_config)  # it stays loaded when the training goes on
    webui.ask(f"{ROUTE}/resume", {})
    assert wait(webui, "done")["step"] == 40
    assert (webui.networks / "paused.safetensors").read_bytes()[-4000:] == (webui.networks / "whole.safetensors").read_bytes()[-4000:]
    assert webui.picture(PROMPT, checkpoint=webui.base).pictures == before.pictures
    assert webui.model()["bits"] == bits


@pytest.mark.parametrize("how", ["stop", "interrupt"])
def test_what_ends_a_training_saves_it(webui, folder, unchanged, how):
    webui.ask(ROUTE, config(folder, how, training={"steps": 100000}))
    until(webui, begun)
    webui.ask(f"{ROUTE}/stop", {}) if how == "stop" else webui.interrupt()
    state = wait(webui, "stopped")
    assert 1 <= state["step"] < 100000 and os.path.isfile(state["path"])
    assert webui.picture(f"{PROMPT} <lyco:{os.path.basename(state['path'])[:-12]}:1>").pictures != unchanged.pictures


def test_an_exception_in_the_middle_leaves_the_model_as_it_was(webui, folder, unchanged):
    webui.break_at("training", "exception", "unet.middle_block.0.in_layers.2")
    webui.ask(ROUTE, config(folder, "broken training"))
    state = until(webui, lambda state: state["phase"] in ("failed", "done"))
    assert state["phase"] == "failed" and "on purpose" in state["error"] and "\n" not in state["error"]
    assert finished(webui, config(folder, "broken training"))["phase"] == "done"


def test_what_is_wrong_is_told_at_once_in_one_line(webui, folder):
    webui.picture(PROMPT, checkpoint=webui.base)  # what hangs on the model is told at once where it is loaded
    for sections, word in (
        ({"network": {"rnak": 4}}, "rank"), ({"training": {"steps": 0}}, "training.steps"), ({"model": {"checkpoint": "nowhere"}}, "nowhere"),
        ({"model": {"vae": "nowhere.pt"}}, "nowhere.pt"), ({"training": {"precision": "fp16"}}, "fp16"),
    ):
        status, error = refused(webui, ROUTE, config(folder, "bad", **sections))
        assert status == 400 and word in error and "\n" not in error
    status, error = refused(webui, f"{ROUTE}/resume", {"output": {"name": ""}})
    assert status == 400 and "output.name" in error
    before = webui.ask(ROUTE)
    for route in (ROUTE, f"{ROUTE}/check"):
        status, error = refused(webui, route, config(folder / "missing", "bad"))
        assert status == 400 and error.startswith("data.folders: ") and "missing" in error
    assert webui.ask(ROUTE) == before


def test_a_second_training_is_refused_and_a_picture_waits_for_the_first(webui, folder, unchanged):
    made = []
    webui.ask(ROUTE, config(folder, "first", training={"steps": 100000}))
    until(webui, begun)
    assert refused(webui, ROUTE, config(folder, "second"))[0] == 409
    waiting = threading.Thread(target=lambda: made.append(webui.picture(PROMPT).pictures))
    waiting.start()
    seen = webui.ask(ROUTE)["step"]
    until(webui, lambda state: state["step"] >= seen + 2)
    assert not made
    webui.ask(f"{ROUTE}/stop", {})
    waiting.join(120)
    assert made == [unchanged.pictures]


def test_a_model_that_is_taken_away_ends_the_training_with_its_state_saved(stand_in_webui, folder):
    webui = stand_in_webui
    before = webui.picture(PROMPT, checkpoint=webui.base)
    webui.ask(ROUTE, config(folder, "lost", training={"steps": 100000}))
    until(webui, begun)
    webui.take_model_away()
    state = until(webui, lambda state: state["phase"] in ("failed", "stopped"))
    told = " ".join([state["error"] or "", *state["log"]])
    assert (f"in place of {webui.base}" in told or f"moved or reloaded {webui.base}" in told) and "unexpected" not in told
    assert list((webui.networks / "lost-states").glob(f"step-{state['step']:08}-*"))
    assert webui.picture(PROMPT, checkpoint=webui.base).pictures == before.pictures
    assert webui.model()["hooks"] == {}


@pytest.mark.webui
def test_what_the_user_has_chosen_for_pictures_neither_disturbs_a_training_nor_is_disturbed(real_webui, folder):
    webui = real_webui
    webui.picture(PROMPT, checkpoint=webui.base)
    finished(webui, config(folder, "plain"))
    chosen = {"cross_attention_optimization": "sub-quadratic", "hypertile_enable_unet": True, "token_merging_ratio": 0.5, "tiling": True,
              "CLIP_stop_at_last_layers": 2, "emphasis": "No norm", "unload_models_when_training": True, "sd_unet": "[probe] <b>plain</b>"}
    usual = {"cross_attention_optimization": "Automatic", "hypertile_enable_unet": False, "token_merging_ratio": 0, "tiling": False,
             "CLIP_stop_at_last_layers": 1, "emphasis": "Original", "unload_models_when_training": False, "sd_unet": "Automatic"}
    try:
        webui.set_options(**chosen)
        before, model = webui.picture(PROMPT), webui.model()
        finished(webui, config(folder, "chosen"))
        assert webui.model() == model
        assert webui.picture(PROMPT).pictures == before.pictures
        settings = webui.ask("/sdapi/v1/options")
        assert {name: settings[name] for name in chosen} == chosen
    finally:
        webui.set_options(**usual)
    assert (webui.networks / "chosen.safetensors").read_bytes()[-4000:] == (webui.networks / "plain.safetensors").read_bytes()[-4000:]


@pytest.mark.webui
def test_every_attention_of_the_hosts_and_recomputed_blocks_give_the_same_network(real_webui, folder):
    webui = real_webui
    before, model = webui.picture(PROMPT, checkpoint=webui.base), webui.model()
    made = {"plain": load_file(finished(webui, config(folder, "plain"))["path"])}
    made["recomputed"] = load_file(finished(webui, config(folder, "recomputed", training={"gradient_checkpointing": True}))["path"])
    try:
        for name in ("sdp", "Doggettx", "V1", "InvokeAI", "None"):
            webui.set_options(cross_attention_optimization=name)
            made[name] = load_file(finished(webui, config(folder, f"with {name}"))["path"])
    finally:
        webui.set_options(cross_attention_optimization="Automatic")
    for name, tensors in made.items():
        for key, value in made["plain"].items():
            assert (tensors[key] - value).norm() <= 1e-3 * value.norm() + 1e-6, (name, key)
    assert webui.model() == model
    assert webui.picture(PROMPT).pictures == before.pictures


@pytest.mark.webui
def test_class_pictures_are_made_by_the_hosts_own_sampler(real_webui, folder, tmp_path):
    webui = real_webui
    before, model = webui.picture(PROMPT, checkpoint=webui.base), webui.model()
    prior = {"prior_prompt": "a shape", "prior_folder": str(tmp_path / "classes"), "prior_pictures": 3}
    plain = load_file(finished(webui, config(folder, "no prior"))["path"])
    kept = load_file(finished(webui, config(folder, "with prior", data=prior))["path"])
    assert len(list((tmp_path / "classes").glob("*.png"))) == 3
    assert any(not torch.equal(plain[key], kept[key]) for key in plain)
    assert webui.model() == model
    assert webui.picture(PROMPT).pictures == before.pictures


def autoencoder_of(checkpoint):
    """A checkpoint's autoencoder's tensors, under the names that a file of its own has."""
    start = "first_stage_model."
    return {name.removeprefix(start): tensor for name, tensor in load_file(str(checkpoint)).items() if name.startswith(start)}


@pytest.mark.webui
def test_another_autoencoder_is_trained_with_and_pictures_stay(real_webui, folder):
    webui = real_webui
    before, model = webui.picture(PROMPT, checkpoint=webui.base), webui.model()
    tensors = autoencoder_of(webui.data / "models" / "Stable-diffusion" / webui.base)
    (webui.data / "models" / "VAE").mkdir(exist_ok=True)
    other = webui.data / "models" / "VAE" / "other.safetensors"
    save_file({name: tensor * 1.2 if name == "quant_conv.weight" else tensor for name, tensor in tensors.items()}, str(other))
    finished(webui, config(folder, "own autoencoder"))
    assert finished(webui, config(folder, "other autoencoder", model={"vae": str(other)}))["phase"] == "done"
    assert webui.picture(PROMPT).pictures == before.pictures and webui.model() == model
    made, plain = ((webui.networks / f"{name} autoencoder.safetensors").read_bytes()[-4000:] for name in ("other", "own"))
    assert made != plain


@pytest.mark.webui
@pytest.mark.parametrize("what", ["picture", "network", "cut off", "another shape", "more"])
def test_a_file_that_is_no_autoencoder_is_told_and_the_model_stays_whole(real_webui, folder, tmp_path, what):
    webui = real_webui
    before, model = webui.picture(PROMPT, checkpoint=webui.base), webui.model()
    checkpoint = webui.data / "models" / "Stable-diffusion" / webui.base
    tensors = autoencoder_of(checkpoint)
    wrong = tmp_path / f"{what}.safetensors"
    if what == "picture":
        wrong = folder / "0.png"
    elif what == "network":
        wrong = webui.networks / "A.safetensors"
    elif what == "cut off":
        wrong.write_bytes(checkpoint.read_bytes()[:5000])
    else:
        key = "quant_conv.bias"
        save_file(tensors | ({key: tensors[key][:1].clone()} if what == "another shape" else {"more": tensors[key].clone()}), str(wrong))
    values = config(folder, "bad autoencoder", model={"vae": str(wrong)})
    status, error = refused(webui, f"{ROUTE}/check", values)
    assert status == 400 and error.startswith(f"model.vae = {wrong}: ") and "\n" not in error
    webui.ask(ROUTE, values)
    assert until(webui, lambda state: state["phase"] in ("failed", "done"))["error"] == error
    assert webui.picture(PROMPT).pictures == before.pictures and webui.model() == model


@pytest.mark.webui
def test_with_medvram_the_same_network_comes_out_and_pictures_stay(real_webui, medvram_webui, folder):
    finished(real_webui, config(folder, "usual"))
    before = medvram_webui.picture(PROMPT)
    output = {"preview_prompts": [PROMPT], "preview_every": 2}
    state = finished(medvram_webui, config(folder, "usual", output=output))
    assert state["phase"] == "done" and not [line for line in state["log"] if "preview" in line]
    assert medvram_webui.picture(PROMPT).pictures == before.pictures
    assert (medvram_webui.networks / "usual.safetensors").read_bytes()[-4000:] == (real_webui.networks / "usual.safetensors").read_bytes()[-4000:]


def test_previews_are_the_hosts_own_pictures_with_the_network_on(webui, folder, unchanged):
    output = {"preview_prompts": [PROMPT], "preview_every": STEPS, "preview_seed": 1}
    state = finished(webui, config(folder, "seen", output=output))
    assert not [line for line in state["log"] if "preview" in line], state["log"]
    made = np.asarray(Image.open(webui.networks / "seen-previews" / f"step{STEPS:08}-0.png")).astype(int)
    settings = {"steps": 20, "cfg_scale": 7.0, "sampler_name": "Euler"}
    if webui.kind == "real":
        wanted = np.frombuffer(webui.picture(f"{PROMPT} <lyco:seen:1>", **settings).pictures[0], np.uint8).reshape(made.shape).astype(int)
        plain = np.frombuffer(webui.picture(PROMPT, **settings).pictures[0], np.uint8).reshape(made.shape).astype(int)
        assert np.abs(made - wanted).mean() < 1 < np.abs(made - plain).mean()


@pytest.mark.webui
def test_the_training_tab_is_on_the_page(real_webui):
    page = json.dumps(real_webui.ask("/config"))
    assert all(f'"lycoris_{name}"' in page for name in ("start", "stop", "pause", "check", "progress"))


def test_a_bad_request_for_captions_is_told_in_one_line(webui, folder, tmp_path):
    for values in ({"folder": str(folder), "interrogator": "crystal ball"}, {"folder": str(tmp_path), "what": 1}, {"interrogator": "deepbooru"}):
        status, error = refused(webui, "/lycoris/v1/preprocess", values)
        assert status == 400 and "\n" not in error


def test_the_hosts_interrogator_writes_captions_where_none_are(stand_in_webui, tmp_path):
    for name, colour in (("red", (200, 0, 7)), ("blue", (0, 0, 250)), ("grey", (9, 9, 9)), ("known", (1, 2, 3))):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "known.txt").write_text("mine")
    answer = stand_in_webui.ask("/lycoris/v1/preprocess", {"folder": str(tmp_path), "interrogator": "deepbooru"})
    assert sorted(answer["written"]) == [str(tmp_path / "blue.txt"), str(tmp_path / "red.txt")]
    assert len(answer["problems"]) == 1 and "no colour" in answer["problems"][0]
    assert (tmp_path / "red.txt").read_text().strip() == "red 200, blue 7" and (tmp_path / "known.txt").read_text() == "mine"


@pytest.mark.webui
@pytest.mark.parametrize("interrogator", ["blip", "deepbooru"])
def test_an_interrogator_that_cannot_be_downloaded_is_told_in_one_line(real_webui, folder, interrogator):
    status, error = refused(real_webui, "/lycoris/v1/preprocess", {"folder": str(folder), "interrogator": interrogator})
    assert status == 400 and interrogator in error and "\n" not in error


# ---------------------------------------------------------------- the real WebUI's other architectures


@pytest.fixture(scope="module")
def architectures(real_webui):
    """The real WebUI with checkpoints sd2 and sdxl beside its own."""
    from .real import find_webui
    from .tiny_checkpoints import __file__ as script

    host, python = find_webui()
    models = real_webui.data / "models" / "Stable-diffusion"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    offline = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([str(python), script, str(models), "sd2", "sdxl"], cwd=host, env=environment | offline, check=True, capture_output=True, timeout=600)
    real_webui.ask("/sdapi/v1/refresh-checkpoints", {})
    yield real_webui
    real_webui.picture(PROMPT, checkpoint="base.safetensors", steps=1)


LONG = ", ".join(["a red circle on a white background"] * 20)


@pytest.mark.webui
@pytest.mark.parametrize(("checkpoint", "base_model", "prediction"), [
    ("base.safetensors", "sd_v1", "eps"), ("sd2.safetensors", "sd_v2", "v"), ("sdxl.safetensors", "sdxl_base_v1-0", "eps")])
def test_the_model_is_asked_as_the_host_asks_it(architectures, checkpoint, base_model, prediction):
    architectures.picture(PROMPT, checkpoint=checkpoint, steps=1)
    told = architectures.ask("/probe/v1/backbone", {"texts": [PROMPT, LONG], "size": [96, 64]})
    assert (told["base model"], told["prediction"]) == (base_model, prediction)
    for what, (difference, largest) in told["found"].items():
        assert largest > 0 and difference <= 1e-4 * max(1.0, largest), (what, difference, largest)


@pytest.mark.webui
@pytest.mark.parametrize(("checkpoint", "prefixes"), [
    ("sd2.safetensors", ("lora_unet_", "lora_te_")), ("sdxl.safetensors", ("lora_unet_", "lora_te1_", "lora_te2_"))])
def test_sd2_and_sdxl_are_trained_and_left_as_they_were(architectures, folder, checkpoint, prefixes):
    from safetensors import safe_open

    before, model = architectures.picture(PROMPT, checkpoint=checkpoint), architectures.model()
    name = checkpoint.partition(".")[0]
    assert finished(architectures, config(folder, f"of {name}", data={"batch_size": 2, "caption_dropout": 0.3}))["phase"] == "done"
    assert architectures.picture(PROMPT).pictures == before.pictures
    assert architectures.model() == model
    with safe_open(str(architectures.networks / f"of {name}.safetensors"), "pt") as file:
        keys = list(file.keys())
    assert all(any(key.startswith(prefix) for key in keys) for prefix in prefixes)
    assert architectures.picture(f"{PROMPT} <lyco:of {name}:1>").pictures != before.pictures
