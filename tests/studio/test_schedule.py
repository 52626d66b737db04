import numpy as np
import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.studio.schedule import NoiseLevels, alphas_cumprod, ddim_sigmas, make_sigmas


@pytest.fixture(scope="module")
def levels():
    return NoiseLevels(alphas_cumprod())


def test_the_schedule_is_diffusers_scaled_linear_one():
    from diffusers import DDPMScheduler
    other = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    assert alphas_cumprod().dtype == torch.float32
    torch.testing.assert_close(alphas_cumprod(), other, rtol=1e-4, atol=0)


def test_t_between_the_whole_ones_is_interpolated_in_the_logarithm(levels):
    sigmas = torch.tensor([0.01, 0.0292, 0.5, 1.0, 3.3, 14.6, 20.0])
    slow = np.interp(np.log(sigmas.numpy().astype(float)), np.log(levels.sigmas.numpy().astype(float)), np.arange(1000))
    np.testing.assert_allclose(levels.sigma_to_t(sigmas).numpy(), slow, atol=2e-3)


def test_whole_t_come_back_exactly(levels):
    t = torch.tensor([0, 1, 500, 998, 999])
    assert torch.equal(levels.sigma_to_t(levels.sigmas[t]), t.float())


def test_sigma_and_t_are_inverse(levels):
    t = torch.linspace(0, 999, 77)
    torch.testing.assert_close(levels.sigma_to_t(levels.t_to_sigma(t)), t, atol=5e-3, rtol=0)


@pytest.mark.parametrize("scheduler", ["uniform", "karras", "exponential"])
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_sigmas_fall_from_the_largest_to_the_smallest_and_zero(levels, scheduler, steps):
    sigmas = make_sigmas(levels, scheduler, steps)
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0 and (sigmas.diff() < 0).all()
    torch.testing.assert_close(sigmas[0], levels.sigmas[-1], rtol=1e-4, atol=0)
    if steps > 1:
        torch.testing.assert_close(sigmas[-2], levels.sigmas[0], rtol=1e-4, atol=0)


def test_spacings_are_even_in_their_own_measure(levels):
    for scheduler, measure in (("uniform", levels.sigma_to_t), ("karras", lambda s: s ** (1 / 7)), ("exponential", torch.log)):
        steps = measure(make_sigmas(levels, scheduler, 9)[:-1]).diff()
        torch.testing.assert_close(steps, steps.mean().expand(8), rtol=2e-3, atol=0)


def test_ddim_visits_evenly_spaced_whole_t_down_to_one(levels):
    t = levels.sigma_to_t(ddim_sigmas(levels, 4))
    assert t.tolist() == [751, 501, 251, 1]


def test_an_unknown_scheduler_is_named(levels):
    with pytest.raises(ConfigError, match="'magic'"):
        make_sigmas(levels, "magic", 3)
