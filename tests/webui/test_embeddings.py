"""Embeddings in the WebUI: ours stand in the host's own database, those packed with networks only while their tag is there."""

from __future__ import annotations

import base64
import io
import json
import urllib.error
import urllib.request

import pytest
import torch

from lib_lycoris.files.embeddings import pack_embeddings, write_embedding, write_embedding_picture, write_legacy_embedding
from lib_lycoris.files.safetensors import write_tensors

from .reply import distance

TABLE = ("te1", "text_model_embeddings_token_embedding")
PROMPT = "a red zorbix circle"


def vectors(webui, count=3, seed=0, more=0):
    return 2 * torch.randn(count, webui.shapes[TABLE][1] + more, generator=torch.Generator().manual_seed(seed))


def known(webui):
    return webui.ask("/probe/v1/embeddings")


def silent_network(webui):
    """A LoRA that adds nothing."""
    return {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(webui.shapes["te1", "text_model_encoder_layers_0_mlp_fc1"][0], 1),
            "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(1, webui.shapes["te1", "text_model_encoder_layers_0_mlp_fc1"][1])}


@pytest.fixture
def folders(webui):
    """Both folders, empty before and after."""
    yield webui.embeddings, webui.host_embeddings
    for folder in (webui.embeddings, webui.host_embeddings):
        for path in folder.iterdir():
            if path.is_file():  # the trash stays
                path.unlink()
    for name in ("packed", "odd", "wrong"):
        (webui.networks / f"{name}.safetensors").unlink(missing_ok=True)
    webui.picture("a")


@pytest.fixture
def plain(webui, folders):
    return webui.picture(PROMPT)


def test_a_word_of_our_folder_changes_the_picture_and_leaves_nothing(webui, folders, plain):
    before = webui.model()
    write_embedding(webui.embeddings / "Zorbix.safetensors", {"clip_l": vectors(webui)})
    used = webui.picture(PROMPT)
    assert distance(used, plain) > 5 and not used.comments and known(webui)["words"] == {"Zorbix": "ours"}
    assert distance(webui.picture(PROMPT, negative_prompt="zorbix"), used) > 2
    write_embedding(webui.embeddings / "Zorbix.safetensors", {"clip_l": vectors(webui, 1, 5)})
    assert distance(webui.picture(PROMPT), used) > 2, "the changed file counts"
    (webui.embeddings / "Zorbix.safetensors").unlink()
    assert distance(webui.picture(PROMPT), plain) == 0 and known(webui) == {"words": {}, "skipped": {}, "tokens": 0} and webui.model() == before


def test_the_hosts_own_folder_goes_on_being_the_hosts_and_what_it_can_t_read_is_ours(webui, folders, plain):
    write_embedding(webui.host_embeddings / "zorbix.safetensors", {"clip_l": vectors(webui)})
    wanted = webui.picture(PROMPT)
    assert known(webui)["words"] == {"zorbix": "theirs"} and distance(wanted, plain) > 5
    (webui.host_embeddings / "zorbix.safetensors").unlink()
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(webui)}, "name": "x"}, webui.host_embeddings / "zorbix.pt")
    found = webui.picture(PROMPT)
    assert distance(found, wanted) == 0
    if torch.__version__ >= "2.13":
        assert known(webui)["words"] == {"zorbix": "ours"}


def test_a_word_that_the_host_knows_stays_the_hosts(webui, folders, plain):
    write_embedding(webui.host_embeddings / "zorbix.safetensors", {"clip_l": vectors(webui)})
    wanted = webui.picture(PROMPT)
    write_embedding(webui.embeddings / "zorbix.safetensors", {"clip_l": vectors(webui, 1, 8)})
    write_tensors(webui.networks / "packed.safetensors", {**silent_network(webui), **pack_embeddings({"zorbix": {"clip_l": vectors(webui, 1, 9)}})})
    assert distance(webui.picture(PROMPT), wanted) == 0 and distance(webui.picture(PROMPT + " <lyco:packed:1>"), wanted) == 0
    assert known(webui)["words"] == {"zorbix": "theirs"}


def test_a_word_packed_with_a_network_counts_while_its_tag_is_there(webui, folders, plain):
    write_embedding(webui.embeddings / "zorbix.safetensors", {"clip_l": vectors(webui)})
    wanted = webui.picture(PROMPT)
    (webui.embeddings / "zorbix.safetensors").unlink()
    write_tensors(webui.networks / "packed.safetensors", {**silent_network(webui), **pack_embeddings({"zorbix": {"clip_l": vectors(webui)}})})
    before = webui.model()
    for _ in range(2):
        used = webui.picture(PROMPT + " <lyco:packed:1>")
        assert distance(used, wanted) == 0 and not used.comments
        assert known(webui)["words"] == {} and distance(webui.picture(PROMPT), plain) == 0
    webui.break_at(1, "exception", next(name for name in before["hooks"] or {"": 0}) if before["hooks"] else "unet.out.0")
    webui.failing_picture(PROMPT + " <lyco:packed:1>")
    assert known(webui) == {"words": {}, "skipped": {}, "tokens": 0} and distance(webui.picture(PROMPT), plain) == 0
    assert webui.model() == before


def test_what_can_t_be_used_is_told_in_a_line_when_a_prompt_names_it(webui, folders, plain):
    write_embedding(webui.embeddings / "zorbix.safetensors", {"clip_l": vectors(webui, more=1)})
    torch.save({"emb_params": torch.full((1, 8), float("nan"))}, webui.embeddings / "spoiltword.pt")
    write_tensors(webui.networks / "odd.safetensors", {**silent_network(webui), "bundle_emb.oddword.clip_g": torch.ones(1, 1280)})
    used = webui.picture(PROMPT)
    assert distance(used, plain) == 0 and len(used.comments) == 1 and "zorbix" in used.comments[0] and "plain words" in used.comments[0]
    assert "zorbix" in used.problems
    (line,) = webui.picture("a spoiltword").comments
    assert "not finite" in line and "\n" not in line
    (line,) = webui.picture("a oddword <lyco:odd:1>").comments
    assert "oddword" in line and "\n" not in line
    assert not webui.picture("a circle").comments


def test_embeddings_come_back_after_another_checkpoint_and_reload_ui(webui, folders, plain):
    write_embedding(webui.embeddings / "zorbix.safetensors", {"clip_l": vectors(webui)})
    wanted = webui.picture(PROMPT)
    webui.picture(PROMPT, checkpoint=webui.own_config)
    assert known(webui)["words"] == {"zorbix": "ours"}
    assert distance(webui.picture(PROMPT, checkpoint=webui.base), wanted) == 0
    if webui.kind == "stand-in":
        webui.reload_ui()
        assert distance(webui.picture(PROMPT), wanted) == 0 and known(webui)["tokens"] == 1


def test_the_routes_list_and_look_into_embeddings(webui, folders):
    write_embedding(webui.embeddings / "my word.safetensors", {"clip_l": vectors(webui)}, {"ss_steps": "9"})
    (row,) = webui.ask("/lycoris/v1/embeddings")["embeddings"]
    assert (row["name"], row["kind"], row["vectors"], row["step"], row["problem"]) == ("my word", "embedding", 3, 9, None)
    seen = webui.ask("/lycoris/v1/embeddings/my%20word")
    assert seen["metadata"]["ss_steps"] == "9" and len(seen["norms"]["clip_l"]) == 3 and seen["remarks"] == {}


def request(webui, method, name, body=None):
    """(status, JSON) of a request."""
    authorisation = "Basic " + base64.b64encode(b"tester:a secret").decode()
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{webui._url}/lycoris/v1/embeddings/{name}", data, {"Authorization": authorisation}, method=method)
    try:
        with webui._opener.open(asked, timeout=600) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.webui
def test_an_embedding_is_remarked_on_and_deleted_of_the_hosts_folder_too(real_webui):
    for folder, whose in ((real_webui.embeddings, "ours"), (real_webui.host_embeddings, "theirs")):
        write_embedding(folder / "zorbix.safetensors", {"clip_l": vectors(real_webui)})
        real_webui.picture(PROMPT)
        assert known(real_webui)["words"] == {"zorbix": whose}
        status, remarked = request(real_webui, "PATCH", "zorbix", {"notes": "good"})
        assert status == 200 and json.loads((folder / "zorbix.json").read_text()) == remarked["remarks"]
        assert request(real_webui, "PATCH", "zorbix", {"note": "x"})[0] == 400
        status, deleted = request(real_webui, "DELETE", "zorbix")
        assert status == 200 and set(deleted["deleted"]) == {"zorbix.safetensors", "zorbix.json"}
        assert known(real_webui) == {"words": {}, "skipped": {}, "tokens": 0}
        assert request(real_webui, "DELETE", "zorbix")[0] == request(real_webui, "GET", "zorbix")[0] == 404


@pytest.mark.webui
def test_the_host_itself_reads_every_form_that_is_written_here(real_webui):
    import numpy as np

    folder, wide = real_webui.host_embeddings, {"clip_l": vectors(real_webui)}
    try:
        write_embedding(folder / "zorbixa.safetensors", wide, {"ss_steps": "1"})
        write_legacy_embedding(folder / "zorbixb.pt", "b", wide, 7)
        write_embedding_picture(folder / "shared.png", np.full((128, 128, 3), 120, np.uint8), "zorbixc", wide, 7)
        from PIL import Image

        write_embedding_picture(folder / "d.png", np.full((128, 128, 3), 120, np.uint8), "zorbixd", wide, 7)
        bare = Image.open(io.BytesIO((folder / "d.png").read_bytes())).convert("RGB")
        bare.save(folder / "d.png")
        pictures = [real_webui.picture(f"a red zorbix{letter} circle") for letter in "abcd"]
        assert known(real_webui)["words"] == {f"zorbix{letter}": "theirs" for letter in "abcd"}
        assert all(distance(other, pictures[0]) == 0 for other in pictures[1:]) and distance(pictures[0], real_webui.picture("a red zorbixe circle")) > 5
        assert "TI hashes" in pictures[0].infotext and "zorbixa" in pictures[0].infotext
    finally:
        for path in folder.iterdir():
            if path.is_file():  # not the trash that a test before this one made
                path.unlink()
        real_webui.picture("a")


@pytest.mark.webui
def test_the_built_in_lora_extension_reads_what_is_packed_here_and_both_stay_apart(real_webui):
    path = real_webui.data / "models" / "Lora" / "packed.safetensors"
    write_tensors(path, {**silent_network(real_webui), **pack_embeddings({"zorbix": {"clip_l": vectors(real_webui)}})})
    try:
        real_webui.ask("/sdapi/v1/refresh-loras", {})
        plain, theirs, ours = (real_webui.picture(PROMPT + tag) for tag in ("", " <lora:packed:1>", " <lyco:packed:1>"))
        assert distance(theirs, ours) == 0 and distance(plain, ours) > 5, "the word was still the built-in's when ours was put on"
        assert distance(real_webui.picture(PROMPT + " <lora:packed:1> <lyco:packed:1>"), ours) == 0
        assert distance(real_webui.picture(PROMPT), plain) == 0
    finally:
        path.unlink()


@pytest.mark.webui
def test_a_batch_with_the_built_ins_tag_alone_has_its_word_after_a_batch_with_ours(real_webui):
    path = real_webui.data / "models" / "Lora" / "packed.safetensors"
    write_tensors(path, {**silent_network(real_webui), **pack_embeddings({"zorbix": {"clip_l": vectors(real_webui)}})})
    try:
        for prompts in ([" <lyco:packed:1>", " <lora:packed:1>"], [" <lora:packed:1>", " <lyco:packed:1>"], [" <lyco:packed:1>", "", " <lora:packed:1>", ""]):
            real_webui.ask("/sdapi/v1/refresh-loras", {})  # reads it anew: only what it has just read it looks at
            real_webui.plan_prompts([PROMPT + each for each in prompts])
            made = real_webui.picture(PROMPT, n_iter=len(prompts)).pictures[-len(prompts):]
            for number, tag in enumerate(prompts):
                assert made[number] == real_webui.picture(PROMPT + (tag and " <lyco:packed:1>"), seed=1 + number).pictures[0], (prompts, number)
    finally:
        path.unlink()


def test_a_word_that_the_built_in_left_to_us_is_its_own_when_ours_is_gone(stand_in_webui, monkeypatch):
    import sys
    from types import SimpleNamespace

    from modules import sd_hijack

    from lib_lycoris.webui import host
    from lib_lycoris.webui.embeddings import Embeddings

    stand_in_webui.picture("a")
    db, model, words = sd_hijack.model_hijack.embedding_db, host.loaded_model(), Embeddings()
    fits, wide = (SimpleNamespace(name=name, shape=shape, loaded=None, vec=torch.zeros(1, shape)) for name, shape in (("zorbixa", db.expected_shape),
                                                                                                                      ("zorbixb", db.expected_shape + 1)))
    network = SimpleNamespace(bundle_embeddings={"zorbixa": fits, "zorbixb": wide}, name="packed")
    monkeypatch.setattr(sys.modules["networks"], "loaded_networks", [network])
    try:
        words.give_back()
        assert db.word_embeddings["zorbixa"] is fits and fits.loaded is True
        assert db.skipped_embeddings["zorbixb"] is wide and wide.loaded is False
        ours = SimpleNamespace(name="zorbixa", shape=db.expected_shape, loaded=None, vec=torch.zeros(1, db.expected_shape))
        network.bundle_embeddings = {"zorbixa": ours}
        words.give_back()
        assert db.word_embeddings["zorbixa"] is fits and ours.loaded is None
    finally:
        db.register_embedding_by_name(None, model, "zorbixa")
        del db.skipped_embeddings["zorbixb"]


@pytest.mark.webui
def test_ours_stand_on_the_hosts_cards_and_hashes_are_the_hosts(real_webui):
    write_embedding(real_webui.embeddings / "zorbix.safetensors", {"clip_l": vectors(real_webui)})
    try:
        assert "zorbix" in real_webui.picture(PROMPT).infotext.partition("TI hashes")[2]
        listed = real_webui.ask("/sdapi/v1/embeddings")
        assert "zorbix" in listed["loaded"]
    finally:
        (real_webui.embeddings / "zorbix.safetensors").unlink()
        real_webui.picture("a")
