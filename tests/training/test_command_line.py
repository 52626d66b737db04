"""A config comes back from its own command line, whatever is in its texts."""

from __future__ import annotations

import shlex
import subprocess

import pytest

from lib_lycoris.cli.train import read_config
from lib_lycoris.training.command_line import to_command_line
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.presets import PRESETS

ODD = TrainConfig.from_dict({
    "data": {"folders": ['my "best" cats', "it's $HOME", "C:\\cats\\"], "caption_template": "a `photo` of {caption}, 100%"}, "network": {"targets": ["q", "k"]},
    "training": {"epochs": 3, "learning_rate": 3e-5}, "output": {"name": "ça va", "preview_prompts": ["a, b", "<lyco:x:1>"]},
})


def changes(words):
    assert words[:4] == ["python", "-m", "lib_lycoris", "train"]
    assert set(words[4::2]) <= {"--set"}
    return words[5::2]


@pytest.mark.parametrize("config", [ODD, *(preset.config() for preset in PRESETS)])
def test_it_means_the_same_config_again(config):
    assert read_config(None, changes(shlex.split(to_command_line(config, windows=False)))) == config


def test_windows_reads_its_own_quotes():
    line = to_command_line(ODD, windows=True)
    # Python itself joins and splits as the C runtime does; its join is the second implementation here.
    words = shlex.split(to_command_line(ODD, windows=False))
    assert _split_windows(line) == _split_windows(subprocess.list2cmdline(words)) == words


def _split_windows(line):
    """The rules of the C runtime, one letter at a time."""
    words, word, quoted, slashes, begun = [], "", False, 0, False
    for letter in line + " ":
        if letter == "\\":
            slashes += 1
            continue
        if letter == '"':
            word += "\\" * (slashes // 2)
            if slashes % 2:
                word += '"'
            else:
                quoted, begun = not quoted, True
        elif letter == " " and not quoted:
            word += "\\" * slashes
            if word or begun:
                words.append(word)
            word, begun = "", False
        else:
            word += "\\" * slashes + letter
        slashes = 0
    return words


def test_the_defaults_need_no_words():
    assert to_command_line(TrainConfig()) == "python -m lib_lycoris train"
