"""The library's actions: each by its record, long ones in the background, nothing outside of the folders; command line and README have the same."""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from lib_lycoris.cli import library as command
from lib_lycoris.cli.main import main
from lib_lycoris.errors import BusyError, ConfigError, LycoError
from lib_lycoris.files.embeddings import write_embedding, write_legacy_embedding
from lib_lycoris.files.safetensors import read_header, write_tensors
from lib_lycoris.files.sidecar import KEYS
from lib_lycoris.library.adapters import write_adapter
from lib_lycoris.library.load import open_network
from lib_lycoris.networks.adapters.light import LightAdapter
from lib_lycoris.tools.actions import ACTIONS
from lib_lycoris.tools.compare import compare, inner_product
from lib_lycoris.tools.jobs import Jobs
from lib_lycoris.tools.library import measure

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
TEXT = "lora_te_text_model_encoder_layers_0_mlp_fc1"


def put(path, seed=0, names=(CROSS, TEXT), size=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in names:
        tensors[f"{name}.lora_up.weight"] = size * torch.randn(16, 4, generator=generator)
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, 24, generator=generator)
        tensors[f"{name}.alpha"] = torch.tensor(4.0)
    write_tensors(path, tensors, {"ss_steps": str(seed)})
    return path


@pytest.fixture
def nets(tmp_path):
    put(tmp_path / "nets" / "cat.safetensors")
    put(tmp_path / "nets" / "sub" / "dog.safetensors", seed=1)
    return tmp_path / "nets"


@pytest.fixture
def library(nets):
    return command.make_library([str(nets)])


def ended(library, given):
    """The job's state at its end."""
    return library.jobs.wait(given["job"]["id"], 60)


def test_figures_are_those_of_the_networks_own_deltas(nets, library):
    state = ended(library, library.run("measure", {"name": "cat"}))
    assert (state["phase"], state["done"]) == ("done", state["total"])
    layers = open_network(nets / "cat.safetensors").layers
    deltas = {"IN04": layers[CROSS].delta(torch.zeros(16, 24)), "TE1": layers[TEXT].delta(torch.zeros(16, 24))}
    for block, delta in deltas.items():
        assert state["result"]["norms"][block] == pytest.approx(delta.norm().item(), rel=1e-4)
        assert state["result"]["spectra"][block] == pytest.approx(torch.linalg.svdvals(delta)[:4].tolist(), rel=1e-3)
    assert library.describe("cat")["measured"]["norms"] == state["result"]["norms"]
    put(nets / "cat.safetensors", seed=7)
    assert library.describe("cat")["measured"] is None


def test_what_is_measured_once_is_not_read_again(nets, library, monkeypatch):
    first = ended(library, library.run("measure", {"name": "cat"}))["result"]
    monkeypatch.setattr("lib_lycoris.tools.library.measure", lambda *arguments: pytest.fail("read again"))
    assert ended(library, library.run("measure", {"name": "cat"}))["result"] == first


def test_alikeness_is_the_cosine_of_the_dense_deltas(nets):
    first, second = nets / "cat.safetensors", nets / "sub" / "dog.safetensors"
    found = compare(first, second)
    left, right = (open_network(path).layers for path in (first, second))
    for block, name in (("IN04", CROSS), ("TE1", TEXT)):
        deltas = [layers[name].delta(torch.zeros(16, 24)).flatten() for layers in (left, right)]
        assert found.alikeness[block] == pytest.approx(torch.nn.functional.cosine_similarity(*deltas, dim=0).item(), abs=1e-5)
    assert (found.common, found.only_first, found.only_second) == (2, 0, 0)
    assert found.training["ss_steps"] == ("0", "1")
    assert compare(first, first).alikeness == pytest.approx({"TE1": 1.0, "IN04": 1.0})


def test_layers_that_one_network_has_alone_are_counted(nets):
    put(nets / "te.safetensors", names=(TEXT,))
    found = compare(nets / "cat.safetensors", nets / "te.safetensors")
    assert (found.common, found.only_first, found.only_second) == (1, 1, 0) and set(found.alikeness) == {"TE1"}


def test_layers_of_unlike_shapes_have_nothing_in_common(nets):
    write_tensors(nets / "wide.safetensors", {f"{CROSS}.lora_up.weight": torch.ones(16, 2), f"{CROSS}.lora_down.weight": torch.ones(2, 32)}, {})
    layers = [open_network(nets / name).layers[CROSS] for name in ("cat.safetensors", "wide.safetensors")]
    assert inner_product(*layers) == 0.0


@pytest.mark.parametrize(("action", "values", "name"), [
    ("convert", {"name": "cat", "to": "diffusers"}, "cat-diffusers.safetensors"),
    ("convert", {"name": "cat", "to": "locon", "out": "mine"}, "mine.safetensors"),
    ("resize", {"name": "cat", "rank": 2}, "cat-2.safetensors"), ("resize", {"name": "cat"}, "cat-0.99.safetensors"),
    ("merge", {"parts": ["cat:0.5", "dog:-1"], "out": "both"}, "both.safetensors"), ("merge", {"parts": ["cat"]}, "merged-cat.safetensors"),
])
def test_a_new_file_lies_beside_its_source_and_is_listed(nets, library, action, values, name):
    state = ended(library, library.run(action, values))
    assert state["phase"] == "done", state["error"]
    assert Path(state["result"]["file"]) == nets / name and (nets / name).stat().st_size >= state["result"]["bytes"] > 0
    assert state["result"]["name"] in {row["name"] for row in library.rows()}
    with pytest.raises(LycoError, match="is there already"):
        library.run(action, values)


def test_a_peft_folder_is_written_read_and_converted_back(nets, library):
    state = ended(library, library.run("convert", {"name": "cat", "to": "peft", "out": "folder"}))
    assert state["phase"] == "done", state["error"]
    assert (nets / "folder").is_dir()
    assert any(row["name"].startswith("folder") or "folder" in row["file"] for row in library.rows())


def test_the_merged_file_does_what_both_do(nets, library):
    ended(library, library.run("merge", {"parts": ["cat:0.5", "dog:te=1,unet=-1"], "out": "both"}))
    cat, dog, both = (open_network(nets / name).layers for name in ("cat.safetensors", "sub/dog.safetensors", "both.safetensors"))
    weight = torch.zeros(16, 24)
    torch.testing.assert_close(both[CROSS].delta(weight), 0.5 * cat[CROSS].delta(weight) - dog[CROSS].delta(weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("out", ["../outside", "/tmp/outside", "a/b", "..", ".hidden", "a\\b", "x\0"])
def test_no_new_file_gets_out_of_the_folder(nets, library, out):
    before = sorted(map(str, nets.parent.rglob("*")))
    asked = (("convert", {"name": "cat", "to": "kohya"}), ("resize", {"name": "cat"}), ("merge", {"parts": ["cat"]}), ("rename", {"name": "cat"}))
    for action, values in asked:
        with pytest.raises(ConfigError):
            library.run(action, {**values, ("new" if action == "rename" else "out"): out})
    assert sorted(map(str, nets.parent.rglob("*"))) == before


@pytest.mark.parametrize("name", ["../nets/cat", "/etc/passwd", "..", "nets/../../cat"])
def test_no_name_leads_to_a_file_outside(library, name):
    for action, values in (("measure", {"name": name}), ("compare", {"name": "cat", "other": name}), ("merge", {"parts": [f"{name}:1"]})):
        with pytest.raises(LycoError):
            library.run(action, values)


def test_beside_a_file_behind_a_link_nothing_is_written(tmp_path, nets, library):
    put(tmp_path / "elsewhere" / "far.safetensors")
    (nets / "linked").symlink_to(tmp_path / "elsewhere")
    state = ended(library, library.run("resize", {"name": "far", "rank": 1}))
    assert Path(state["result"]["file"]) == nets / "far-1.safetensors"
    assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == ["far.safetensors"]


def test_a_bad_file_fails_in_words_and_leaves_nothing(nets, library):
    (nets / "broken.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    state = ended(library, library.run("resize", {"name": "broken", "rank": 2}))
    assert state["phase"] == "failed" and "damaged" in state["error"] and "\n" not in state["error"]
    assert not (nets / "broken-2.safetensors").exists()


@pytest.mark.parametrize(("action", "values", "word"), [
    ("nothing", {}, "no action"), ("rename", {"nam": "cat"}, "did you mean name"), ("rename", {"new": "x"}, "name a file"),
    ("resize", {"name": "cat", "rank": 0}, r"resize\.rank"), ("resize", {"name": "cat", "rank": 2, "energy": 0.5}, "leave one"),
    ("convert", {"name": "cat", "to": "onnx"}, r"convert\.to"), ("merge", {"parts": []}, r"merge\.parts"), ("merge", {"parts": ["cat:much"]}, "strength"),
    ("compare", {"name": "cat"}, "second"), ("restore", {}, "trash"), ("empty", {"entry": "../.."}, "trash"), ("preview", {"name": "cat"}, "picture"),
    ("preview", {"name": "cat", "image": "%%%"}, "base64"), ("delete", {"name": "cat", "shelf": "adapters"}, "adapters"),
])
def test_bad_values_are_told_at_once(library, action, values, word):
    with pytest.raises(ConfigError, match=word):
        library.run(action, values)
    assert library.jobs.states()["jobs"] == []


def test_remarks_preview_trash_and_back(nets, library):
    remarked = library.run("remark", {"name": "cat", "activation_text": "zorb", "preferred_weight": 0.5})
    assert remarked["remarks"] == {"activation text": "zorb", "preferred weight": 0.5}
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    library.run("preview", {"name": "cat", "image": base64.b64encode(file.getvalue()).decode()})
    assert library.describe("cat")["preview"] == str(nets / "cat.png")
    entry = library.run("delete", {"name": "cat"})["entry"]
    assert [each["entry"] for each in library.trash()] == [entry]
    assert set(library.run("restore", {"entry": entry})["restored"]) == {"cat.safetensors", "cat.json", "cat.png"}
    library.run("delete", {"name": "dog"})
    assert len(library.run("empty", {})["gone"]) == 1 and library.trash() == []


def test_work_is_done_one_after_the_other_and_can_be_stopped():
    jobs, gate, began = Jobs(), threading.Event(), threading.Event()

    def slow(on_step):
        began.set()
        gate.wait(30)
        on_step(1, 2)
        return {"never": True}

    first, second, third = jobs.start("first", slow), jobs.start("second", lambda on_step: {"x": 1}), jobs.start("third", lambda on_step: {"x": 2})
    assert began.wait(30)
    assert [job["phase"] for job in jobs.states()["jobs"]] == ["running", "waiting", "waiting"]
    jobs.stop(second.id)
    jobs.stop(first.id)
    gate.set()
    assert jobs.wait(first.id, 30)["phase"] == "stopped"
    assert jobs.wait(third.id, 30)["result"] == {"x": 2} and jobs.state(second.id)["phase"] == "stopped"
    with pytest.raises(ConfigError):
        jobs.stop(99)


def test_an_unforeseen_error_ends_its_own_work_alone(capsys):
    jobs = Jobs()

    def broken(on_step):
        raise ZeroDivisionError("x")

    assert "ZeroDivisionError" in jobs.wait(jobs.start("broken", broken).id, 30)["error"]
    assert jobs.wait(jobs.start("next", lambda on_step: {}).id, 30)["phase"] == "done"
    assert "Traceback" in capsys.readouterr().err


def test_too_much_waiting_work_is_refused():
    jobs, gate = Jobs(), threading.Event()
    jobs.start("first", lambda on_step: gate.wait(30) and {})
    with pytest.raises(BusyError):
        for number in range(30):
            jobs.start(str(number), lambda on_step: {})
    jobs.stop()
    gate.set()


def test_measuring_tells_how_far_it_is(nets):
    told = []
    measure(nets / "cat.safetensors", lambda done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("action", ACTIONS, ids=lambda action: action.name)
def test_command_line_and_readme_have_every_setting_of_every_action(action):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    kinds = next(each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
    flags = {each.dest for each in kinds.choices[action.name]._actions} - {"help", "networks", "embeddings", "adapters", "json"}
    assert flags == {setting.name for setting in action.settings}
    for setting in action.settings:
        assert f"`{setting.name}`" in README.split(f"| `{action.name}` |")[1].split("\n")[0], f"name {setting.name} in README's row of {action.name}"


def test_the_remarks_of_the_record_are_those_of_the_file():
    remark = next(action for action in ACTIONS if action.name == "remark")
    assert {setting.name.replace("_", " ") for setting in remark.settings} - {"name", "shelf"} == set(KEYS)


def test_the_command_line_does_what_the_page_does(nets, capsys):
    from lib_lycoris.cli.main import main

    folder = ["--networks", str(nets)]
    assert main(["library", "list", *folder]) == 0 and "cat" in capsys.readouterr().out
    assert main(["library", "rename", "cat", "tabby", *folder]) == 0
    assert main(["library", "merge", "tabby:0.5", "dog", "--out", "both", "--rank", "2", *folder]) == 0
    assert read_header(nets / "both.safetensors").metadata["lyco.recipe"] == "merge tabby:0.5 dog:1 to rank 2"
    assert main(["library", "delete", "both", *folder]) == 0
    assert main(["library", "trash", *folder]) == 0 and "both" in capsys.readouterr().out
    assert main(["library", "rename", "tabby", "../x", *folder]) == 2
    assert main(["library", "show", "nothing", *folder]) == 1


def test_what_shares_a_folder_stands_on_its_own_list_and_goes_through_one_trash(tmp_path):
    nets = tmp_path / "nets"
    put(nets / "cat.safetensors")
    write_embedding(nets / "zorb.safetensors", {"clip_l": torch.ones(2, 768)})
    write_legacy_embedding(nets / "old.pt", "old", {"clip_l": torch.ones(1, 768)})
    write_adapter(nets / "edges.safetensors", LightAdapter.create(channels=(8, 8, 8, 8)), base_model="sd_v1", preprocessor="canny")
    library = command.make_library([str(nets)], [str(nets)], [str(nets)])
    assert {shelf: [row["name"] for row in library.rows(shelf)] for shelf in library.shelves} == {
        "networks": ["cat"], "embeddings": ["old", "zorb"], "adapters": ["edges"]}
    for shelf, name in (("embeddings", "zorb"), ("adapters", "edges")):
        library.run("remark", {"shelf": shelf, "name": name, "notes": "mine"})
        assert library.run("rename", {"shelf": shelf, "name": name, "new": "other"})["name"] == "other"
        assert library.describe("other", shelf)["remarks"] == {"notes": "mine"}
        entry = library.run("delete", {"shelf": shelf, "name": "other"})["entry"]
        assert [each["entry"] for each in library.trash()].count(entry) == 1 and name not in [row["name"] for row in library.rows(shelf)]
        library.run("restore", {"entry": entry})
        assert library.describe("other", shelf)["kind"] == {"embeddings": "embedding", "adapters": "light adapter"}[shelf]
        library.run("delete", {"shelf": shelf, "name": "other"})
    assert len(library.trash()) == 2 and len(library.run("empty", {})["gone"]) == 2 and library.trash() == []


def test_the_command_line_lists_and_shows_every_kind(tmp_path, capsys):
    write_embedding(tmp_path / "zorb.safetensors", {"clip_l": torch.ones(2, 768)})
    folders = ["--networks", str(tmp_path), "--embeddings", str(tmp_path), "--adapters", str(tmp_path)]
    assert main(["library", "list", "--shelf", "embeddings", *folders]) == 0
    assert capsys.readouterr().out.startswith("zorb  embedding 2  sd_v1")
    assert main(["library", "show", "zorb", "--shelf", "embeddings", "--json", *folders]) == 0
    assert json.loads(capsys.readouterr().out)["vectors"] == 2
    assert main(["library", "rename", "zorb", "bird", "--shelf", "embeddings", *folders]) == 0 and (tmp_path / "bird.safetensors").is_file()


HOSTILE = ("it's", 'say "hi"', "<script>alert(1)</script>", "😀 \u05d0\u05d1", "x" * 200, "a & b; $(c)", "per%cent", "[1]*?")


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows has not")
def test_files_of_any_name_are_listed_shown_renamed_and_deleted(tmp_path):
    nets = tmp_path / "nets"
    for number, name in enumerate(name.replace("/", "_") for name in HOSTILE):
        put(nets / f"{name}.safetensors", seed=number)
    deep = nets.joinpath(*["deep"] * 30)
    put(deep / "bottom.safetensors")
    (nets / "folder.safetensors").mkdir()
    (nets / "empty.safetensors").write_bytes(b"")
    (nets / "loop").symlink_to(nets, target_is_directory=True)
    (nets / "self.safetensors").symlink_to(nets / "self.safetensors")
    (nets / "gone.safetensors").symlink_to(nets / "nowhere.safetensors")
    library = command.make_library([str(nets)], [str(nets)], [str(nets)])
    rows = {row["name"]: row for row in library.rows()}
    assert len(rows) == len(HOSTILE) + 2 and "bottom" in rows
    assert rows.pop("empty")["problem"] and library.rows("embeddings") == library.rows("adapters") == []
    for number, (name, row) in enumerate(rows.items()):
        assert row["problem"] is None and library.describe(name)["file"] == row["file"]
        assert library.run("rename", {"name": name, "new": f"plain {number}"})["name"] == f"plain {number}"
    library.run("delete", {"name": "empty"})
    assert sorted(row["name"] for row in library.rows()) == sorted(f"plain {number}" for number in range(len(rows)))


def test_a_damaged_file_in_a_shared_folder_is_told_of_once(tmp_path):
    nets, words = tmp_path / "nets", tmp_path / "words"
    put(nets / "cat.safetensors")
    words.mkdir()
    write_embedding(nets / "zorb.safetensors", {"clip_l": torch.ones(2, 768)})
    write_tensors(nets / "wrong.safetensors", {"emb_params": torch.full((2, 768), float("nan"))}, {})
    write_adapter(nets / "edges.safetensors", LightAdapter.create(channels=(8, 8, 8, 8)))
    for path in (nets / "broken.safetensors", words / "cut.safetensors"):
        path.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    library = command.make_library([str(nets)], [str(nets), str(words)], [str(nets), str(words)])
    listed = {shelf: [Path(row["file"]).relative_to(tmp_path).as_posix() for row in library.rows(shelf)] for shelf in library.shelves}
    assert listed == {"networks": ["nets/broken.safetensors", "nets/cat.safetensors"],
                      "embeddings": ["words/cut.safetensors", "nets/wrong.safetensors", "nets/zorb.safetensors"], "adapters": ["nets/edges.safetensors"]}


def test_a_file_that_vanished_since_it_was_listed_is_told_as_gone(nets, library):
    assert [row["name"] for row in library.rows()] == ["cat", "dog"]
    (nets / "cat.safetensors").unlink()
    with pytest.raises(LycoError, match="cat"):
        library.describe("cat")
    assert library.picture("cat") is None
    assert [row["name"] for row in library.rows()] == ["dog"]


def test_the_list_is_not_made_anew_for_each_question(nets, library, monkeypatch):
    for folder in (nets, nets / "sub"):
        os.utime(folder, (1e9, 1e9))
    first = library.rows()
    monkeypatch.setattr("lib_lycoris.library.shelf.Shelf._shelved", lambda *arguments: pytest.fail("looked at again"))
    assert library.rows() == first
    library.refresh()
    with pytest.raises(pytest.fail.Exception):
        library.rows()
