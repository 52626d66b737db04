from __future__ import annotations

import math

import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loss import add_noise, debiased_weight, min_snr_weight, target, weighted_loss
from lib_lycoris.training.progress import SmoothedLoss, StepReport, render_progress
from lib_lycoris.training.schedules import rate_factor

ALPHAS = torch.tensor([0.999, 0.5, 0.01])


def test_noise_and_latents_come_back_from_what_is_predicted():
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    x_t = add_noise(latents, noise, ALPHAS)
    for row, alpha in enumerate(ALPHAS.tolist()):
        signal, spread = math.sqrt(alpha), math.sqrt(1 - alpha)
        v = target(latents, noise, ALPHAS, "v")[row]
        torch.testing.assert_close(signal * x_t[row] - spread * v, latents[row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(spread * x_t[row] + signal * v, noise[row], atol=1e-5, rtol=1e-4)
    assert torch.equal(target(latents, noise, ALPHAS, "eps"), noise)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_min_snr_is_its_formula(prediction):
    for weight, alpha in zip(min_snr_weight(ALPHAS, 5.0, prediction).tolist(), ALPHAS.tolist(), strict=True):
        snr = alpha / (1 - alpha)
        assert weight == pytest.approx(min(snr, 5) / (snr if prediction == "eps" else snr + 1), rel=1e-4)


def test_min_snr_is_finite_without_any_signal():
    assert min_snr_weight(torch.zeros(1), 5.0, "eps").item() == 1 and min_snr_weight(torch.zeros(1), 5.0, "v").item() == 0


def test_the_loss_weighs_samples_not_pixels():
    predicted, wanted = torch.tensor([1.0, 2.0])[:, None, None, None].expand(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)
    assert weighted_loss(predicted, wanted).item() == 2.5
    assert weighted_loss(predicted, wanted, torch.tensor([1.0, 0.5])).item() == 1.5


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_a_schedule_rises_over_the_warmup_and_never_above_one(schedule):
    factors = [rate_factor(schedule, step, 20, 5) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0]) and max(factors) == 1.0
    falling = factors[5:]
    assert falling == sorted(falling, reverse=True) and (falling[-1] == 1.0 if schedule == "constant" else 0 < falling[-1] < 0.2)


def test_cosine_and_linear_meet_in_the_middle():
    assert rate_factor("cosine", 10, 20) == pytest.approx(0.5) and rate_factor("linear", 10, 20) == pytest.approx(0.5)


def test_the_smoothed_loss_of_equal_losses_is_that_loss_from_the_first_step():
    smoothed = SmoothedLoss()
    assert math.isnan(smoothed.value)
    assert [smoothed.add(0.25) for _ in range(5)] == pytest.approx([0.25] * 5)


def test_progress_is_one_line_with_loss_and_time_left():
    line = render_progress(StepReport(30, 120, 0.5, 0.125, 1e-4, 65, 7205))
    assert line == "[######------------------] 30/120 steps, loss 0.1250, 1:05 gone, 2:00:05 left"


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_debiased_weights_are_their_formula_and_finite_at_both_ends(prediction):
    for weight, alpha in zip(debiased_weight(ALPHAS, prediction).tolist(), ALPHAS.tolist(), strict=True):
        snr = min(max(alpha / (1 - alpha), 1e-3), 1e3)
        assert weight == pytest.approx(snr ** -0.5 if prediction == "eps" else 1 / (snr + 1), rel=1e-5)
    assert torch.isfinite(debiased_weight(torch.tensor([0.0, 1.0]), prediction)).all()


def test_debiased_and_min_snr_together_are_refused():
    with pytest.raises(ConfigError, match="give one of the two"):
        TrainConfig.from_dict({"training": {"debiased": True, "min_snr_gamma": 5.0}})
