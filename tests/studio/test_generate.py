import numpy as np
import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.prompt.schedule import as_schedule
from lib_lycoris.studio.generate import GenerateSettings, generate
from lib_lycoris.studio.steering import NoNetworks

SMALL = {"width": 64, "height": 64, "steps": 3, "seed": 5}


def picture(model, **settings):
    (only,) = generate(model, GenerateSettings(**{"prompt": "a red circle", **SMALL, **settings}))
    return only


class FakeNetworks(NoNetworks):
    """Shifts a bias of the UNet while it is on, as a network would."""

    def __init__(self, model, fails=False):
        self._bias, self._fails = model.unet.conv_out.bias, fails
        self.before, self.requests, self.restored = self._bias.detach().clone(), None, 0

    def apply_pictures(self, positive, negative):
        self.requests, self.negative = positive[0], negative[0]
        assert positive == [self.requests] * len(positive) and negative == [self.negative] * len(positive)
        with torch.no_grad():
            self._bias += 0.5 * len(self.requests)
        if self._fails:
            raise RuntimeError("in the middle")
        return [f"{request.name} half fits" for request in self.requests]

    def restore(self):
        self.restored += 1
        with torch.no_grad():
            self._bias.copy_(self.before)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(model):
    one = picture(model)
    assert one.pixels.shape == (64, 64, 3) and one.pixels.dtype == np.uint8 and one.pixels.std() > 5
    assert np.array_equal(one.pixels, picture(model).pixels)
    assert not np.array_equal(one.pixels, picture(model, seed=6).pixels)


def test_width_and_height_are_those_of_the_picture(model):
    assert picture(model, width=128, height=64).pixels.shape == (64, 128, 3)


def test_a_batch_is_the_pictures_of_its_seeds(model):
    batch = generate(model, GenerateSettings(prompt="a red circle", **{**SMALL, "batch": 2}))
    assert [one.seed for one in batch] == [5, 6]
    for one in batch:
        alone = picture(model, seed=one.seed)
        assert np.abs(one.pixels.astype(int) - alone.pixels).max() <= 2
        assert one.infotext == alone.infotext


def test_a_negative_seed_draws_one_that_repeats_the_picture(model):
    drawn = picture(model, seed=-1)
    assert np.array_equal(picture(model, seed=drawn.seed).pixels, drawn.pixels)


@pytest.mark.parametrize("change", [{"prompt": "a (red:1.5) circle"}, {"negative": "blue"}, {"cfg": 3}, {"clip_skip": 2}, {"sampler": "Heun"},
                                    {"scheduler": "karras"}, {"steps": 4}, {"prompt": "a red circle AND dots"}])
def test_every_setting_changes_the_picture(model, change):
    assert not np.array_equal(picture(model).pixels, picture(model, **change).pixels)


def test_networks_are_on_while_drawing_and_off_afterwards(model):
    plain, networks = picture(model), FakeNetworks(model)
    (changed,) = generate(model, GenerateSettings(prompt="a red circle<lyco:blob:0.5>", **SMALL), networks)
    assert [(request.name, request.unet) for request in networks.requests] == [("blob", as_schedule(0.5))]
    assert changed.problems == ("blob half fits",) and "<lyco:blob:0.5>" in changed.infotext
    assert not np.array_equal(plain.pixels, changed.pixels)
    assert networks.restored == 1 and np.array_equal(picture(model).pixels, plain.pixels)


def test_networks_are_taken_off_after_an_exception(model):
    networks = FakeNetworks(model, fails=True)
    with pytest.raises(RuntimeError):
        generate(model, GenerateSettings(prompt="<lyco:blob:1>", **SMALL), networks)
    assert networks.restored == 1 and torch.equal(model.unet.conv_out.bias, networks.before)


def test_a_tag_without_a_network_folder_is_told_and_is_no_part_of_the_prompt(model):
    tagged = picture(model, prompt="a red circle<lyco:blob:1>")
    assert "blob" in tagged.problems[0]
    assert np.array_equal(tagged.pixels, picture(model).pixels)


def test_a_tag_in_the_negative_prompt_is_handed_on_and_is_no_part_of_the_text(model):
    networks = FakeNetworks(model)
    (tagged,) = generate(model, GenerateSettings(prompt="a red circle", negative="blue<lyco:blob:0.5>", **SMALL), networks)
    assert [(request.name, request.unet) for request in networks.negative] == [("blob", as_schedule(0.5))] and networks.requests == []
    assert np.array_equal(tagged.pixels, picture(model, negative="blue").pixels) and "blue<lyco:blob:0.5>" in tagged.infotext
    assert "blob" in picture(model, negative="<lyco:blob:1>").problems[0]


def test_an_interrupted_picture_is_as_far_as_it_had_come(model):
    steps = []
    (stopped,) = generate(model, GenerateSettings(prompt="a red circle", **{**SMALL, "steps": 50}),
                          on_step=lambda step, count, _: steps.append((step, count)), should_stop=lambda: len(steps) == 2)
    assert steps == [(0, 50), (1, 50)] and stopped.interrupted and stopped.pixels.shape == (64, 64, 3)
    assert not picture(model).interrupted


def test_values_that_are_not_finite_are_told(model):
    with torch.no_grad():
        model.unet.conv_out.bias[0] = float("nan")
    broken = picture(model)
    assert "finite" in broken.problems[0] and broken.pixels.shape == (64, 64, 3)


def test_a_clip_skip_deeper_than_the_text_encoder_is_refused(model):
    with pytest.raises(ConfigError, match="clip_skip 5"):
        picture(model, clip_skip=5)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"width": 100}, {"height": 0}, {"batch": 0}, {"cfg": -1}, {"cfg": float("nan")}, {"seed": -2},
                                   {"sampler": "Magic"}, {"scheduler": "magic"}, {"clip_skip": 0}, {"sampler": "DDIM", "steps": 1}, {"prompt": 3}])
def test_a_wrong_setting_is_named_when_the_record_is_made(wrong):
    name, value = next(iter(wrong.items()))
    with pytest.raises(ConfigError) as caught:
        GenerateSettings(**wrong)
    assert (name in str(caught.value) and str(value).lower() in str(caught.value).lower()) or "DDIM needs 2" in str(caught.value)


def test_the_infotext_is_the_hosts(model):
    made = picture(model, negative="blue", sampler="DPM++ 2M", clip_skip=2)
    assert made.infotext == ("a red circle\nNegative prompt: blue\n"
                             "Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7.0, Seed: 5, Size: 64x64, "
                             f"Model hash: {model.hash}, Model: tiny, Clip skip: 2, Version: Lyco Studio")
