"""Verbs, exit codes, and one line for whatever goes wrong."""

from __future__ import annotations

import pytest

from lib_lycoris.cli import generate, main, train
from lib_lycoris.cli.arguments import whole_number
from lib_lycoris.cli.interrupt import InterruptedWork
from lib_lycoris.errors import ConfigError, DatasetError

VERBS = ("studio", "demo", "train", "generate", "inspect", "convert", "merge", "extract", "resize")


def run(*arguments):
    """The exit code, also where argparse leaves by SystemExit."""
    try:
        return main.main([str(argument) for argument in arguments])
    except SystemExit as leave:
        return leave.code


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_examples(verb, capsys):
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    assert f"examples:\n  python -m lib_lycoris {verb}" in text
    assert "--debug" in text


def test_the_program_lists_its_verbs_and_exit_codes(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(f"\n    {verb} " in text for verb in VERBS)
    assert "130 interrupted" in text


@pytest.mark.parametrize("arguments", [
    [], ["paint"], ["train"], ["generate", "--prompt", "a"], ["demo", "--steps", "0"], ["demo", "--steps", "x"], ["studio", "--port", "70000"],
    ["train", "no-such.toml"], ["generate", "--prompt", "a", "--out", "a.jpg"], ["generate", "--prompt", "a", "--out", "a.png", "--size", "big"],
])
def test_bad_arguments_are_a_2(arguments, capsys):
    assert run(*arguments) == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize(("change", "words"), [
    ("training.step=5", "did you mean training.steps"), ("training.steps=none of them", "training.steps"), ("training.steps", "section.key=value"),
])
def test_a_bad_set_is_a_2_and_one_line_that_names_it(change, words, tmp_path, capsys):
    (tmp_path / "a.toml").write_text("", encoding="utf-8")
    assert run("train", tmp_path / "a.toml", "--set", change) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert words in lines[0]


@pytest.mark.parametrize(("error", "code", "line"), [
    (ConfigError("a.b = 1: too much"), 2, "error: a.b = 1: too much"),
    (DatasetError("folder x: holds no picture"), 1, "error: folder x: holds no picture"),
    (InterruptedWork("interrupted: saved x"), 130, "interrupted: saved x"),
    (KeyboardInterrupt(), 130, "interrupted: nothing more was saved"),
    (OSError(28, "No space left on device", "x.safetensors"), 1, "error: No space left on device: x.safetensors"),
    (ModuleNotFoundError("No module named 'gradio'", name="gradio"), 1, "error: the package 'gradio' is missing"),
    (MemoryError(), 1, "error: out of memory"),
    (ZeroDivisionError("one\ntwo"), 1, "error: unexpected ZeroDivisionError: one two"),
])
def test_whatever_goes_wrong_is_one_line_and_its_own_exit_code(error, code, line, capsys, monkeypatch):
    def fail(arguments):
        raise error

    monkeypatch.setattr(train, "run", fail)
    assert run("train", "a.toml") == code
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(line)
    assert run("train", "a.toml", "--debug") == code
    assert "Traceback" in capsys.readouterr().err


def test_a_whole_number_has_a_range():
    assert whole_number(1, 9)("9") == 9
    for text in ("0", "10", "x", "1.5"):
        with pytest.raises(Exception, match=text):
            whole_number(1, 9)(text)


def test_sizes_and_file_names():
    from pathlib import Path

    assert generate.read_size("512x768") == (512, 768)
    assert generate.output_paths(Path("a/b.png"), 1) == [Path("a/b.png")]
    assert generate.output_paths(Path("a/b.png"), 2) == [Path("a/b-1.png"), Path("a/b-2.png")]
