from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.safetensors import read_header
from lib_lycoris.training.config import ValidationSettings
from lib_lycoris.training.draws import make_generator
from lib_lycoris.training.loop import train
from lib_lycoris.training.progress import StepReport, render_progress
from lib_lycoris.training.validation import keep_back, spread_time_steps

from .fake import FakeBackbone, make_pictures
from .rig import config_of, material_of, numbers, rig, same
from .test_loop import assert_equal_files, losses_of, make_config


def test_time_steps_are_spread_evenly():
    assert spread_time_steps(4, 1000) == [125, 375, 625, 875] and spread_time_steps(1, 1000) == [500]


def test_it_is_the_mean_loss_at_fixed_noise_and_time_steps_and_repeats():
    held, backbone = material_of(3, seed=8), FakeBackbone()
    with rig(config_of(validation__time_steps=3, data__batch_size=2), backbone) as trainer:
        validation = trainer.validation(held)
        backbone.inputs.clear()
        found = validation.loss()
        first = list(backbone.inputs)
        expected = []
        for sample in range(3):
            for t in (166, 500, 833):
                noise = torch.randn(4, 8, 8, generator=make_generator(0, "validation", sample, t))
                alpha = backbone.alphas_cumprod[t].item()
                x_t = math.sqrt(alpha) * held.latents(sample, 0) + math.sqrt(1 - alpha) * noise
                with torch.no_grad():
                    answer = backbone.predict(x_t[None], torch.tensor([t]), backbone.encode_captions([held.caption(sample, 0)]))[0]
                expected.append((answer - noise).square().mean().item())
        assert found == pytest.approx(sum(expected) / 9, rel=1e-5) and validation.loss() == found
        again = backbone.inputs[-len(first) :]
        assert all(torch.equal(one[0], two[0]) and torch.equal(one[1], two[1]) for one, two in zip(first, again, strict=True))
        assert max(len(x_t) for x_t, _ in first) == 2


def test_it_changes_neither_random_numbers_nor_parameters_nor_gradients():
    extra = {"network.dropout": 0.3, "network.module_dropout": 0.5, "training.ema": 0.9}
    with rig(config_of(**extra)) as trainer:
        trainer.step(0)
        state, before = torch.get_rng_state(), numbers(trainer)
        with trainer.used():
            values = {trainer.validation(material_of(3, seed=8)).loss() for _ in range(3)}
        assert torch.equal(state, torch.get_rng_state()) and same(before, numbers(trainer)) and len(values) == 1


class Share:
    """One of two processes; the mean with the other is computed by the test."""

    count = 2

    def __init__(self, rank):
        self.rank, self.seen = rank, []

    def mean_(self, tensor):
        self.seen.append(tensor.clone())


def test_processes_judge_shares_that_add_up():
    held = material_of(5, seed=8)
    with rig(config_of()) as trainer:
        whole = trainer.validation(held).loss()
    seen = []
    for rank in range(2):
        share = Share(rank)
        with rig(config_of(), processes=share) as trainer:
            trainer.validation(held).loss()
            seen.append(share.seen[-1])
    total = seen[0] + seen[1]
    assert float(total[0] / total[1]) == pytest.approx(whole, rel=1e-6) and seen[0][1] != seen[1][1]


@settings(max_examples=50)
@given(pictures=st.integers(2, 60), share=st.floats(0.001, 0.5), seed=st.integers(0, 9))
def test_some_are_kept_back_and_some_are_left(pictures, share, seed):
    kept = keep_back(pictures, share, seed)
    assert kept == sorted(set(kept)) == keep_back(pictures, share, seed) and set(kept) < set(range(pictures))
    assert len(kept) == min(max(1, round(pictures * share)), pictures - 1)


@pytest.mark.parametrize("way", ["share", "folder"])
def test_a_training_reports_it_and_what_is_judged_on_is_not_learned_from(tmp_path, way):
    extra = {"validation__share": 0.34} if way == "share" else {"validation__folder": str(make_pictures(tmp_path / "judged", 2))}
    config, reports = make_config(tmp_path, validation__every=5, **extra), []
    result = train(config, FakeBackbone(), on_step=reports.append)
    assert [report.step for report in reports if report.validation_loss is not None] == [5, 10, 12]
    assert [step for step, _ in result.validation] == [0, 5, 10, 12] and result.validation[-1][1] == reports[-1].validation_loss
    assert float(read_header(result.path).metadata["ss_validation_loss"]) == reports[-1].validation_loss
    kept = keep_back(3, 0.34, 0)
    assert len(kept) == 1
    backbone = FakeBackbone()
    train(make_config(tmp_path / "quiet", **({"validation__share": 0.34} if way == "share" else {}), validation__every=100_000, training__steps=40), backbone)
    learned = set(backbone.captions[4:-4])  # without those of the validations before and after
    assert (f"colour {kept[0]}, plain" in learned) == (way == "folder") and len(learned) == (2 if way == "share" else 3)


def test_with_a_folder_the_network_is_bit_for_bit_that_of_a_training_without(tmp_path):
    folder = make_pictures(tmp_path / "judged", 2)
    plain, one = losses_of(make_config(tmp_path / "a", training__ema=0.9))
    judged, two = losses_of(make_config(tmp_path / "b", training__ema=0.9, validation__folder=str(folder), validation__every=2))
    assert plain == judged
    assert_equal_files(one.path, two.path)


def test_validations_are_kept_over_a_pause(tmp_path):
    config = make_config(tmp_path, validation__share=0.34, validation__every=3)
    whole = train(make_config(tmp_path / "whole", validation__share=0.34, validation__every=3), FakeBackbone()).validation
    count = iter(range(100))
    train(config, FakeBackbone(), should_stop=lambda: next(count) == 7)
    assert train(config, FakeBackbone(), resume=True).validation == whole


def test_of_one_picture_none_can_be_kept_back(tmp_path):
    config = make_config(tmp_path, data__folders=[str(make_pictures(tmp_path / "one", 1))], validation__share=0.5)
    with pytest.raises(ConfigError, match="of one picture none can be kept back"):
        train(config, FakeBackbone())


def test_it_is_on_with_a_folder_or_a_share_and_shown_in_the_progress():
    assert not ValidationSettings().on and ValidationSettings(share=0.1).on and ValidationSettings(folder="x").on
    assert "loss 0.1250, validation 0.2500, 1:05 gone" in render_progress(StepReport(30, 120, 0.5, 0.125, 1e-4, 65, 7205, 0.25))
