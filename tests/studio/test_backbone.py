import numpy as np
import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.studio.backbone import StudioBackbone
from lib_lycoris.studio.generate import GenerateSettings, generate
from lib_lycoris.training.backbone import Backbone


@pytest.fixture
def backbone(model):
    return StudioBackbone(model)


def test_it_fulfils_the_backbone_contract(backbone, model):
    assert isinstance(backbone, Backbone)
    assert backbone.alphas_cumprod.shape == (1000,) and backbone.alphas_cumprod.dtype == torch.float32
    assert (backbone.base_model, backbone.prediction, backbone.checkpoint_name, backbone.checkpoint_hash) == ("sd_v1", "eps", "tiny", model.sha256)


def test_the_prediction_can_be_said_and_the_model_stays_as_it_is(model):
    assert StudioBackbone(model, prediction="v").prediction == "v"
    assert model.prediction == "eps"


def test_latents_are_drawn_from_the_posterior_and_scaled(backbone, model):
    pictures = torch.rand(2, 3, 64, 64) * 2 - 1
    found = backbone.encode_pictures(pictures, torch.Generator().manual_seed(3))
    posterior = model.vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found, (posterior.mean + posterior.std * noise) * 0.18215)
    assert not found.requires_grad


def test_predictions_pass_gradients_to_the_captions_and_the_unet(backbone, model):
    captions = backbone.encode_captions(["a red circle", "a dot"])
    assert captions.shape == (2, 77, 32)
    out = backbone.predict(torch.randn(2, 4, 8, 8), torch.tensor([1, 900]), captions)
    out.square().mean().backward()
    assert out.shape == (2, 4, 8, 8)
    assert model.text_encoder.encoder.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
    assert model.unet.conv_in.weight.grad.abs().max() > 0


def test_a_batch_is_predicted_like_its_members(backbone, model):
    model.unet.double(), model.text_encoder.double()
    x, t, captions = torch.randn(2, 4, 16, 16).double(), torch.tensor([1, 900]), backbone.encode_captions(["a red circle", "a dot"])
    with torch.no_grad():
        alone = [backbone.predict(x[i:i + 1], t[i:i + 1], captions[i:i + 1]) for i in range(2)]
        torch.testing.assert_close(backbone.predict(x, t, captions), torch.cat(alone), rtol=1e-4, atol=1e-6)


def state_of(model):
    modules = (model.unet, model.vae, model.text_encoder)
    parameters = [(id(p), p.requires_grad, p.dtype, p.detach().clone()) for m in modules for p in m.parameters()]
    return parameters, [s.training for m in modules for s in m.modules()]


def same(before, after):
    return before[1] == after[1] and all(a[:3] == b[:3] and torch.equal(a[3], b[3]) for a, b in zip(before[0], after[0], strict=True))


@pytest.mark.parametrize("fails", [False, True])
def test_training_freezes_everything_and_puts_everything_back(backbone, model, fails):
    model.unet.half()
    model.unet.conv_in.weight.requires_grad_(False)
    model.text_encoder.train()
    before = state_of(model)
    try:
        with backbone.training():
            parameters = [*model.unet.parameters(), *model.vae.parameters(), *model.text_encoder.parameters()]
            assert not any(p.requires_grad for p in parameters) and {p.dtype for p in parameters} == {torch.float32}
            assert not any(module.training for module in (model.unet, model.text_encoder))
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert same(before, state_of(model))


def test_a_preview_is_the_picture_that_generating_gives(backbone, model):
    preview = backbone.preview("a red circle", 5, steps=3)
    (picture,) = generate(model, GenerateSettings(prompt="a red circle", seed=5, steps=3, width=64, height=64))
    assert np.array_equal(preview, picture.pixels)


def test_a_clip_skip_deeper_than_the_text_encoder_is_refused(model):
    with pytest.raises(ConfigError, match="clip_skip 9"):
        StudioBackbone(model, clip_skip=9)
