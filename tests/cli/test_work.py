"""The verbs do their work: train, generate with what was trained, stop in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib_lycoris.cli import main
from lib_lycoris.files.adapters import read_adapter_facts
from lib_lycoris.files.safetensors import read_header

ROOT = Path(__file__).resolve().parents[2]


def test_check_says_in_words_what_would_happen_and_writes_nothing(config_file, capsys):
    assert main.main(["train", str(config_file), "--check"]) == 0
    text = capsys.readouterr().out
    assert "6 pictures." in text
    assert "3 steps" in text
    assert "zorb (6)" in text
    assert not (config_file.parent / "outputs").exists()
    assert main.main(["train", str(config_file), "--check", "--set", "model.vae=none.safetensors"]) == 1
    assert "error: model.vae = none.safetensors: checkpoint none.safetensors: does not exist" in capsys.readouterr().err


def test_what_train_saves_generate_uses(config_file, tiny_checkpoint, tmp_path, capsys):
    from PIL import Image

    assert main.main(["train", str(config_file), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    steps = [line for line in lines if "phase" not in line][:-1]
    assert [line["step"] for line in steps] == [1, 2, 3]
    assert all({"step", "loss", "lr", "seconds"} <= set(line) for line in steps)
    network = tmp_path / "outputs" / "zorb.safetensors"
    assert (lines[-1]["done"]["path"], lines[-1]["done"]["steps"], lines[-1]["done"]["stopped"]) == (str(network), 3, False)

    assert main.main(["train", str(config_file), "--resume"]) == 0  # has come to its end: saves the network again
    told = capsys.readouterr()
    assert f"use it with <lyco:zorb:1> in a prompt (generate and studio find it with --networks {network.parent})" in told.out

    def draw(prompt, out, *more):
        arguments = ["generate", "--prompt", prompt, "--checkpoint", tiny_checkpoint, "--networks", network.parent, "--seed", "3", "--steps", "2", "--out", out]
        return main.main([str(argument) for argument in (*arguments, *more)])

    assert draw("a zorb", tmp_path / "plain.png") == 0
    assert draw("a zorb <lyco:zorb:1> <lyco:nope:1>", tmp_path / "pictures" / "with.png", "--batch", "2", "--size", "64x72") == 0
    told = capsys.readouterr()
    assert "no network is called 'nope'" in told.err
    written = sorted(path.name for path in (tmp_path / "pictures").iterdir())
    assert written == ["with-1.png", "with-2.png"]
    assert all(name in told.out for name in written)
    with Image.open(tmp_path / "pictures" / "with-1.png") as picture:
        assert picture.size == (64, 72)
        assert picture.info["parameters"].startswith("a zorb <lyco:zorb:1>")
    with Image.open(tmp_path / "plain.png") as picture:
        assert picture.size == (64, 64)


def read_until_step(stream):
    """The first line that tells of a step; a slow machine tells of its preparations before."""
    return next(line for line in map(json.loads, stream) if "step" in line)["step"]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_or_a_clusters_sigterm_ends_with_130_after_saving_and_resume_goes_on(config_file, number):
    command = [sys.executable, "-m", "lib_lycoris", "train", str(config_file), "--json", "--set", "validation.share=0.3", "--set", "validation.every=1",
               "--set", "training.steps=100000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert read_until_step(process.stdout) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    done = json.loads(out.splitlines()[-1])["done"]
    assert done["stopped"]
    assert Path(done["path"]).is_file()
    assert f"interrupted: saved {done['path']} after {done['steps']} steps" in err
    assert "Traceback" not in err
    if number == signal.SIGTERM:
        return
    command[-1] = f"training.steps={done['steps'] + 1}"
    more = subprocess.run([*command, "--resume"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)
    assert more.returncode == 0, more.stderr
    first = next(line for line in map(json.loads, more.stdout.splitlines()) if "step" in line)
    assert first["step"] == done["steps"] + 1
    assert first["validation"] == json.loads(more.stdout.splitlines()[-1])["done"]["validation"][-1][1]


def test_two_processes_that_accelerate_launched_train_one_network(config_file, tmp_path):
    pytest.importorskip("accelerate")
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
               "--dynamo_backend", "no", "--main_process_port", "0", "-m", "lib_lycoris", "train", str(config_file), "--json"]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, encoding="utf-8", check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = [line for line in map(json.loads, done.stdout.splitlines()) if "phase" not in line]
    assert [line.get("step") for line in lines] == [1, 2, 3, None]  # the second says nothing
    assert lines[-1]["done"]["path"] == str(tmp_path / "outputs" / "zorb.safetensors")
    assert json.loads(read_header(lines[-1]["done"]["state"]).metadata["lyco_state"])["numbers"]["processes"] == 2


def test_an_adapter_is_trained_from_the_command_line(config_file, tmp_path, capsys):
    pytest.importorskip("cv2", reason="OpenCV is not here; the WebUI has it")
    asked = [argument for value in ("network.kind=adapter", "network.rank=16", "data.preprocessor=canny") for argument in ("--set", value)]
    assert main.main(["train", str(config_file), *asked]) == 0
    assert "use it as an adapter, with a control picture" in capsys.readouterr().out
    facts = read_adapter_facts(tmp_path / "outputs" / "zorb.safetensors")
    assert (facts.base_model, facts.preprocessor) == ("sd_v1", "canny")
