"""Textual inversion in the real WebUI: its own text encoders take the new word, of SDXL both, and everything of the host is as it was afterwards."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .test_training import PROMPT, ROUTE, architectures, config, finished, folder, refused, until, wait  # noqa: F401

pytestmark = pytest.mark.webui
BASES = {
    "base.safetensors": ("sd_v1", {"emb_params"}), "sd2.safetensors": ("sd_v2", {"emb_params"}), "sdxl.safetensors": ("sdxl_base_v1-0", {"clip_l", "clip_g"}),
}


def word_config(folder, name, **sections):  # noqa: F811
    """A short training of a word of two vectors."""
    more = {"network": {"kind": "embedding", "rank": 16}, "embedding": {"vectors": 2, "learning_rate": 0.05}}
    return config(folder, name, **{section: {**more.get(section, {}), **sections.get(section, {})} for section in {*more, *sections}})


def embeddings(webui):
    """The host's list: {name: vectors}."""
    return {name: about["vectors"] for name, about in webui.ask("/sdapi/v1/embeddings")["loaded"].items()}


@pytest.mark.parametrize("checkpoint", BASES)
def test_a_word_is_trained_on_the_hosts_own_text_encoders_and_nothing_else_changes(architectures, folder, checkpoint):  # noqa: F811
    webui, (base, names) = architectures, BASES[checkpoint]
    before = webui.picture(PROMPT, checkpoint=checkpoint)
    model, listed, name = webui.model(), embeddings(webui), f"zorb {checkpoint.partition('.')[0]}"
    lone = webui.picture(name)
    state = finished(webui, word_config(folder, name, embedding={"init_text": "a red circle"}, data={"caption_dropout": 0.2, "batch_size": 2}))
    assert state["phase"] == "done" and state["tag"] == name and state["path"] == str(webui.data / "embeddings" / f"{name}.safetensors")
    assert webui.picture(PROMPT).pictures == before.pictures
    assert webui.model() == model
    with safe_open(state["path"], "pt") as file:
        assert set(file.keys()) == names and file.metadata()["ss_base_model_version"] == base and file.metadata()["ss_steps"] == "3"
    assert embeddings(webui) == {**listed, name: 2}  # the host has found and loaded it itself
    assert webui.picture(name).pictures != lone.pictures


@pytest.mark.parametrize("checkpoint", BASES)
def test_what_a_word_starts_from_is_the_hosts_own_token_table(architectures, folder, checkpoint):  # noqa: F811
    """The first vectors, saved after a step too small to be seen, are those that the host's own way of making an embedding gives."""
    webui = architectures
    webui.picture(PROMPT, checkpoint=checkpoint, steps=1)
    name = f"start {checkpoint.partition('.')[0]}"
    tiny = {"training": {"steps": 1}, "embedding": {"vectors": 4, "init_text": "a red", "learning_rate": 1e-12}}
    vectors = load_file(finished(webui, word_config(folder, name, **tiny))["path"])
    for encoder, value in vectors.items():
        assert value.shape[0] == 4 and (value[0] - value[1]).abs().max() < 1e-9 and (value[2] - value[3]).abs().max() < 1e-9, encoder
        assert (value[0] - value[2]).abs().max() > 1e-4
    if "sdxl" not in checkpoint:
        made = webui.ask("/sdapi/v1/create/embedding", {"name": f"theirs {name}", "num_vectors_per_token": 4, "init_text": "a red", "overwrite_old": True})
        assert "info" in made
        import torch

        theirs = torch.load(webui.data / "embeddings" / f"theirs {name}.pt", weights_only=True)["string_to_param"]["*"]
        torch.testing.assert_close(vectors["emb_params"], theirs.float().cpu(), rtol=0, atol=1e-6)


def test_an_embedding_that_is_made_meanwhile_neither_disturbs_the_training_nor_is_disturbed(architectures, folder):  # noqa: F811
    webui = architectures
    webui.picture(PROMPT, checkpoint=webui.base)
    finished(webui, word_config(folder, "alone", training={"steps": 12}, output={"folder": str(webui.networks)}, embedding={"word": "zorbix"}))
    alone = load_file(str(webui.data / "embeddings" / "zorbix.safetensors"))["emb_params"]
    (webui.data / "embeddings" / "zorbix.safetensors").unlink()
    webui.ask(ROUTE, word_config(folder, "alone", training={"steps": 12}, embedding={"word": "zorbix"}))
    until(webui, lambda state: state["step"] >= 1)
    save_file({"emb_params": alone[:1] * 3}, str(webui.data / "embeddings" / "zorbix.safetensors"))  # one of the same name, as an older training leaves it
    reloads = 0
    while webui.ask(ROUTE)["phase"] not in ("done", "failed"):  # as the page's Refresh and Create do, which ask for no turn
        webui.ask("/probe/v1/reload-embeddings", {})
        reloads += 1
    assert wait(webui, "done")["step"] == 12 and reloads > 1
    assert (load_file(str(webui.data / "embeddings" / "zorbix.safetensors"))["emb_params"] == alone).all()
    webui.picture(PROMPT)  # which lets the host look into its folder
    assert embeddings(webui)["zorbix"] == 2


def test_with_medvram_the_same_word_comes_out_and_pictures_stay(real_webui, medvram_webui, folder):  # noqa: F811
    values = {"data": {"caption_dropout": 0.4, "batch_size": 2}, "training": {"steps": 4}, "embedding": {"word": "zorbus", "init_text": "red"}}
    before = medvram_webui.picture(PROMPT)
    made = []
    for webui in (real_webui, medvram_webui):
        output = {"preview_prompts": ["a zorbus"], "preview_every": 2}
        webui.picture(PROMPT, checkpoint=webui.base, steps=1)
        state = finished(webui, word_config(folder, "usual", output=output, **values))
        assert state["phase"] == "done" and not [line for line in state["log"] if "preview" in line], state["log"]
        made.append(load_file(state["path"])["emb_params"])
    assert (made[0] == made[1]).all()
    assert medvram_webui.picture(PROMPT).pictures == before.pictures


def test_a_network_and_a_word_are_trained_together_and_their_one_file_brings_both(architectures, folder):  # noqa: F811
    webui = architectures
    before, model = webui.picture("a zorbo", checkpoint=webui.base), webui.model()
    values = config(folder, "pivot", embedding={"word": "zorbo", "vectors": 2}, output={"preview_prompts": ["a zorbo"], "preview_every": 3})
    state = finished(webui, values)
    assert state["tag"] == "<lyco:pivot:1> zorbo" and not [line for line in state["log"] if "preview" in line], state["log"]
    assert webui.picture("a zorbo").pictures == before.pictures and webui.model() == model
    with safe_open(state["path"], "pt") as file:
        keys = set(file.keys())
    assert "bundle_emb.zorbo.string_to_param.*" in keys and any(key.startswith("lora_unet_") for key in keys)
    tensors = load_file(state["path"])
    save_file(tensors, str(webui.data / "models" / "Lora" / "brought.safetensors"))
    save_file({key: value for key, value in tensors.items() if not key.startswith("bundle_emb.")}, str(webui.data / "models" / "Lora" / "bare.safetensors"))
    webui.ask("/sdapi/v1/refresh-loras", {})
    for prompt, same in (("a zorbo", False), ("a circle", True)):  # the built-in extension's word, only where it is named
        assert (webui.picture(f"{prompt} <lora:brought:1>").pictures == webui.picture(f"{prompt} <lora:bare:1>").pictures) == same


def test_a_word_that_cannot_be_trained_is_told_in_one_line(architectures, folder, tmp_path):  # noqa: F811
    webui = architectures
    webui.picture(PROMPT, checkpoint=webui.base, steps=1)
    other = tmp_path / "wide.safetensors"
    import torch

    save_file({"clip_l": torch.zeros(1, 768) + 0.1, "clip_g": torch.zeros(1, 1280) + 0.1}, str(other))
    for settings, words in (({"word": "circle"}, "one of the model's own words"), ({"start_from": str(other)}, "another base model")):
        webui.ask(ROUTE, word_config(folder, "bad-one", embedding=settings))
        state = until(webui, lambda state: state["phase"] in ("failed", "done"))
        assert state["phase"] == "failed" and words in state["error"] and "\n" not in state["error"], state
    status, error = refused(webui, ROUTE, word_config(folder, "bad", embedding={"vectors": 0}))
    assert status == 400 and "embedding.vectors = 0" in error
