from dataclasses import replace

import pytest
import torch

from lib_lycoris.studio.guidance import Guidance
from lib_lycoris.studio.schedule import NoiseLevels, alphas_cumprod


@pytest.fixture
def levels():
    return NoiseLevels(alphas_cumprod())


def slow_denoise(model, x, t, text):
    """At a whole t, in the words of DDPM: x0 from x_t and the model's answer."""
    alpha = alphas_cumprod().double()[t]
    x_t = x * alpha ** 0.5
    answer = torch.cat([model.unet(row[None], t, text).sample for row in x_t])
    if model.prediction == "v":
        return alpha ** 0.5 * x_t - (1 - alpha) ** 0.5 * answer
    return (x_t - (1 - alpha) ** 0.5 * answer) / alpha ** 0.5


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("negative_chunks", [1, 2])
@torch.no_grad()
def test_guidance_is_the_formula_over_single_calls(model, levels, prediction, negative_chunks):
    # double precision: a network of random weights magnifies roundings
    model = replace(model, unet=model.unet.double(), prediction=prediction)
    draw = torch.Generator().manual_seed(0)
    x, *prompts, negative = (torch.randn(shape, generator=draw, dtype=torch.float64)
                             for shape in ((2, 4, 16, 16), (1, 77, 32), (1, 77, 32), (1, 77 * negative_chunks, 32)))
    found = Guidance(model, levels, [(prompts[0], 1.0), (prompts[1], 0.3)], negative, 4.0)(x, levels.sigmas[600])
    unwanted = slow_denoise(model, x, 600, negative)
    first, second = (slow_denoise(model, x, 600, text) for text in prompts)
    torch.testing.assert_close(found, unwanted + 4 * (first - unwanted) + 1.2 * (second - unwanted), rtol=1e-3, atol=1e-4)
