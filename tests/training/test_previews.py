from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.files.safetensors import read_header, read_tensors
from lib_lycoris.library.load import open_network
from lib_lycoris.patching.session import patch
from lib_lycoris.training.loop import train

from .fake import FakeBackbone
from .test_loop import assert_as_before, assert_equal_files, losses_of, make_config, photograph


class Painter(FakeBackbone):
    """Its previews are the UNet's answer for fixed noise, and use random numbers of every kind on the way."""

    def preview(self, prompt, seed, **settings):
        torch.randn(7), np.random.rand(3), random.random()
        with torch.no_grad():
            noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
            answer = self.unet(noise, torch.tensor([500]), self.encode_captions([prompt]))
        return (answer[0, :3].permute(1, 2, 0) * 40 + 128).clamp(0, 255).to(torch.uint8).numpy()


def config_of(folder, **changes):
    return make_config(folder, **{"output__preview_prompts": ["colour 1", "colour 2"], "output__preview_every": 4, "output__preview_seed": 5, **changes})


def test_pictures_are_of_the_network_as_it_stands_and_in_one_grid(tmp_path):
    config = config_of(tmp_path, output__network_every=4, network__dropout=0.3, training__learning_rate=0.05)
    train(config, Painter())
    folder = tmp_path / "out/net-previews"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["grid.png", *(f"step{step:08}-{number}.png" for step in (0, 4, 8, 12) for number in (0, 1))]
    painter = Painter()
    painter.unet.eval()
    plain = painter.preview("colour 1", 5)
    assert np.array_equal(np.array(Image.open(folder / "step00000000-0.png")), plain)  # before the first step the model is as it was
    for step, name in ((4, "net-step00000004"), (8, "net-step00000008"), (12, "net")):
        with patch(painter.unet, painter.text_encoders) as session:
            assert session.apply([(open_network(tmp_path / f"out/{name}.safetensors"), 1.0)]) == []
            expected = painter.preview("colour 1", 5).astype(int)
        found = np.array(Image.open(folder / f"step{step:08}-0.png")).astype(int)
        assert np.abs(found - expected).max() <= 1 and not np.array_equal(found, plain)
    with Image.open(folder / "grid.png") as grid:
        assert grid.size[0] > 2 * 256 and grid.size[1] > 3 * 256


@pytest.mark.parametrize("extra", [{}, {"training__ema": 0.9}, {"network__dropout": 0.2, "training__gradient_checkpointing": True}])
def test_they_change_nothing_of_the_training_and_use_up_no_random_number(tmp_path, extra):
    plain, one = losses_of(make_config(tmp_path / "a", **extra))
    backbone = Painter()
    before, states = photograph(backbone), (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    shown, two = losses_of(config_of(tmp_path / "b", output__preview_every=1, **extra), backbone)
    assert plain == shown and two.problems == ()
    assert_equal_files(one.path, two.path)
    assert_as_before(backbone, before)
    assert torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1]) and states[2] == random.getstate()


def test_the_average_is_shown_where_it_is_what_is_saved(tmp_path):
    config = config_of(tmp_path, training__ema=0.95, output__preview_every=12, training__learning_rate=0.05)
    path = train(config, Painter()).path
    painter = Painter()
    painter.unet.eval()
    with patch(painter.unet, painter.text_encoders) as session:
        session.apply([(open_network(path), 1.0)])
        expected = painter.preview("colour 1", 5).astype(int)
    assert np.abs(np.array(Image.open(tmp_path / "out/net-previews/step00000012-0.png")).astype(int) - expected).max() <= 1


def test_what_fails_is_told_and_the_training_goes_on(tmp_path):
    backbone = Painter()
    backbone.preview = lambda prompt, seed: (_ for _ in ()).throw(RuntimeError("out of\nmemory"))
    result = train(config_of(tmp_path), backbone)
    assert result.steps == 12 and len(result.problems) == 8
    assert result.problems[0] == "no preview of colour 1 after step 0: RuntimeError: out of memory"


def test_a_damaged_picture_in_the_folder_costs_the_grid_alone(tmp_path):
    folder = tmp_path / "out/net-previews"
    folder.mkdir(parents=True)
    (folder / "step00000001-0.png").write_bytes(b"no picture")
    result = train(config_of(tmp_path), Painter())
    assert result.steps == 12 and all("no grid" in problem for problem in result.problems) and len(list(folder.glob("step*"))) == 9


def test_networks_on_the_way_are_those_of_trainings_that_ended_there(tmp_path):
    path = train(make_config(tmp_path / "a", output__network_every=5), FakeBackbone()).path
    names = sorted(file.name for file in path.parent.glob("*.safetensors"))
    assert names == ["net-step00000005.safetensors", "net-step00000010.safetensors", "net.safetensors"]
    assert read_header(path.with_name(names[0])).metadata["ss_steps"] == "5"
    shorter = train(make_config(tmp_path / "b", training__steps=5), FakeBackbone()).path
    assert_equal_files(path.with_name(names[0]), shorter)
    assert not all(torch.equal(tensor, read_tensors(path)[key]) for key, tensor in read_tensors(shorter).items())


def test_epochs_count_too_and_previews_come_with_each_network(tmp_path):
    # three pictures, two a step: epochs are full after steps 2 (1⅓), 3, 5, 6, …; every second one: 3, 6, 9, 12
    path = train(config_of(tmp_path, output__network_epochs=2, output__preview_every=0), Painter()).path
    assert sorted(file.stem for file in path.parent.glob("*.safetensors")) == ["net", "net-step00000003", "net-step00000006", "net-step00000009"]
    assert sorted(file.name for file in (path.parent / "net-previews").glob("*-1.png")) == [f"step{step:08}-1.png" for step in (0, 3, 6, 9, 12)]


class Onlooker:
    """Wants pictures after some steps, and remembers what it was shown."""

    def __init__(self, *steps):
        self.steps, self.asked, self.shown = steps, 0, []

    def wanted(self):
        self.asked += 1
        return self.asked in self.steps

    def show(self, step, prompt, path):
        self.shown.append((step, prompt, path))


def test_whoever_looks_on_gets_pictures_when_they_are_asked_for_of_captions_where_no_prompts_are_given(tmp_path):
    onlooker = Onlooker(3, 7)
    train(make_config(tmp_path), Painter(), viewer=onlooker)
    assert [(step, path.name) for step, _, path in onlooker.shown] == [(step, f"step{step:08}-{number}.png") for step in (3, 7) for number in (0, 1)]
    captions = {path.read_text() for path in tmp_path.rglob("*.txt")}
    assert {prompt for _, prompt, _ in onlooker.shown} <= captions and all(path.is_file() for _, _, path in onlooker.shown)


def test_whoever_looks_on_hears_of_those_that_are_due_and_of_those_before_the_first_step(tmp_path):
    onlooker = Onlooker()
    train(config_of(tmp_path), Painter(), viewer=onlooker)
    assert [step for step, _, _ in onlooker.shown] == [0, 0, 4, 4, 8, 8, 12, 12]
