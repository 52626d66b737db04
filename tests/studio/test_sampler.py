import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.studio import sampler
from lib_lycoris.studio.schedule import NoiseLevels, alphas_cumprod, ddim_sigmas, make_sigmas

MEAN, SPREAD = 0.7, 0.5


@pytest.fixture(scope="module")
def levels():
    return NoiseLevels(alphas_cumprod())


def gaussian(x, sigma):
    """The ideal denoiser for pictures whose values are normally distributed."""
    return (x * SPREAD ** 2 + MEAN * sigma ** 2) / (SPREAD ** 2 + sigma ** 2)


def exact(x, sigma_from, sigma_to):
    """Where the probability flow carries x under that denoiser."""
    return MEAN + (x - MEAN) * ((SPREAD ** 2 + sigma_to ** 2) / (SPREAD ** 2 + sigma_from ** 2)) ** 0.5


def nothing(*_):
    return None


def error_of(run, levels, steps):
    sigmas = make_sigmas(levels, "karras", steps).double()[:-1]
    start = torch.linspace(-20, 20, 41, dtype=torch.float64)
    return (run(gaussian, start, sigmas, nothing, nothing) - exact(start, sigmas[0], sigmas[-1])).abs().max().item()


@pytest.mark.parametrize(("run", "order"), [(sampler.euler, 1), (sampler.heun, 2), (sampler.dpm_plus_plus_2m, 2)])
def test_samplers_come_to_the_exact_solution_with_their_order(levels, run, order):
    coarse, fine = error_of(run, levels, 200), error_of(run, levels, 400)
    assert fine < 0.02
    assert coarse / fine == pytest.approx(2 ** order, rel=0.1)


@pytest.mark.parametrize("run", [sampler.euler, sampler.euler_ancestral, sampler.heun, sampler.dpm_plus_plus_2m])
def test_the_last_step_is_the_picture_without_noise(levels, run):
    x, sigma = torch.tensor([3.0, -1.0]), levels.sigmas[0]
    torch.testing.assert_close(run(gaussian, x, torch.stack([sigma, torch.tensor(0.0)]), nothing, nothing), gaussian(x, sigma))


def test_an_ancestral_step_is_the_posterior_of_ddpm(levels):
    sigmas = make_sigmas(levels, "uniform", 5)
    x, noise = torch.randn(3, generator=torch.Generator().manual_seed(0)), torch.randn(3, generator=torch.Generator().manual_seed(1))
    found = sampler.euler_ancestral(gaussian, x, sigmas[:2], lambda: noise, nothing)
    keep = sigmas[1] ** 2 / sigmas[0] ** 2
    expected = keep * x + (1 - keep) * gaussian(x, sigmas[0]) + (sigmas[1] ** 2 * (1 - keep)) ** 0.5 * noise
    torch.testing.assert_close(found, expected)


def test_an_ancestral_sampling_draws_noise_for_all_steps_but_the_last(levels):
    drawn = []
    sampler.euler_ancestral(gaussian, torch.zeros(2), make_sigmas(levels, "uniform", 5), lambda: drawn.append(1) or torch.zeros(2), nothing)
    assert len(drawn) == 4


def test_ddim_is_the_formula_in_latents_of_unit_variance(levels):
    alphas, start = alphas_cumprod().double(), torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    times, x = [751, 501, 251, 1], start
    for t, following in zip(times, [*times[1:], None], strict=True):
        if following is None:
            break
        sigma = ((1 - alphas[t]) / alphas[t]) ** 0.5
        picture = gaussian(x / alphas[t] ** 0.5, sigma)
        noise = (x - alphas[t] ** 0.5 * picture) / (1 - alphas[t]) ** 0.5
        x = alphas[following] ** 0.5 * picture + (1 - alphas[following]) ** 0.5 * noise
    found = sampler.sample(levels, gaussian, lambda: start, "DDIM", "automatic", 4, nothing)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)
    assert len(ddim_sigmas(levels, 4)) == 4


@pytest.mark.parametrize("name", list(sampler.SAMPLERS))
def test_every_sampler_reports_its_steps_in_order_and_starts_from_the_first_noise(levels, name):
    steps, first = [], []
    noise = iter([torch.full((1, 1, 1, 1), 3.0)] + [torch.zeros(1, 1, 1, 1)] * 10)

    def denoise(x, sigma):
        first.append((x, sigma))
        return gaussian(x, sigma)

    sampler.sample(levels, denoise, lambda: next(noise), name, "automatic", 5, lambda step, _: steps.append(step))
    assert steps == list(range(len(steps))) and len(steps) == (5 - 1 if name == "DDIM" else 5)
    x, sigma = first[0]
    assert x.item() == pytest.approx(3 * ((sigma ** 2 + 1) ** 0.5 if name == "DDIM" else sigma).item())


def test_names_of_samplers_and_schedulers_are_found_in_any_case():
    assert sampler.find_sampler("euler A") == ("Euler a", "automatic")
    assert sampler.find_sampler("DPM++ 2M Karras") == ("DPM++ 2M", "karras")
    assert sampler.find_sampler("Heun", "Exponential") == ("Heun", "exponential")


@pytest.mark.parametrize(("name", "scheduler", "says"), [("Eule", "automatic", "'Eule'"), ("Euler", "beta", "'beta'")])
def test_unknown_names_are_told_with_the_known_ones(name, scheduler, says):
    with pytest.raises(ConfigError, match=f"{says} is not known; use one of .*"):
        sampler.find_sampler(name, scheduler)
