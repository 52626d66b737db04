import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.studio import conditioning

from .tiny import TEXT


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_clip_skip_is_a_shallower_text_encoder(model, skip):
    from transformers import CLIPTextConfig, CLIPTextModel
    shallow = CLIPTextModel(CLIPTextConfig(**{**TEXT, "num_hidden_layers": TEXT["num_hidden_layers"] - skip + 1})).eval()
    shallow.load_state_dict(model.text_encoder.state_dict(), strict=False)
    chunks = conditioning.prompt_chunks(model, "a red circle")
    tokens = torch.tensor([chunk.tokens for chunk in chunks])
    with torch.no_grad():
        torch.testing.assert_close(conditioning.encode_chunks(model, chunks, skip), shallow(input_ids=tokens).last_hidden_state)


@pytest.mark.parametrize("skip", [0, 4])
def test_a_clip_skip_beyond_the_layers_is_refused(model, skip):
    with pytest.raises(ConfigError, match=rf"clip_skip {skip} is not in 1\.\.3"):
        conditioning.check_clip_skip(model, skip)


def test_weights_scale_their_tokens_and_keep_the_mean():
    vectors = torch.rand(1, 77, 8)
    weighed = conditioning.weigh(vectors, [1.0] * 10 + [1.5] + [1.0] * 66)
    torch.testing.assert_close(weighed.mean(), vectors.mean())
    ratio = weighed / vectors
    torch.testing.assert_close(ratio[0, 10] / ratio[0, 9], torch.full((8,), 1.5))


@torch.no_grad()
def test_emphasis_is_per_chunk_and_break_joins_chunks(model):
    both = conditioning.encode_prompt(model, "a (red:1.3) circle BREAK on green")
    alone = [conditioning.encode_prompt(model, part) for part in ("a (red:1.3) circle", "on green")]
    torch.testing.assert_close(both, torch.cat(alone, dim=1))
    assert not torch.allclose(alone[0], conditioning.encode_prompt(model, "a red circle"))


@torch.no_grad()
def test_more_than_75_tokens_give_more_chunks(model):
    assert conditioning.encode_prompt(model, "cat " * 80).shape == (1, 154, 32)


@torch.no_grad()
def test_the_texts_of_a_composition_have_one_length(model):
    (long, one), (short, other) = conditioning.encode_composition(model, "cat " * 80 + "AND dog :0.5")
    assert long.shape == short.shape == (1, 154, 32) and (one, other) == (1.0, 0.5)
    torch.testing.assert_close(short[:, 77:], short[:, 76:77].expand(-1, 77, -1))


@torch.no_grad()
def test_captions_are_literal_and_shorter_ones_are_filled_up(model):
    vectors = conditioning.encode_captions(model, ["a (red) circle BREAK", "cat " * 80])
    assert vectors.shape == (2, 154, 32)
    torch.testing.assert_close(vectors[0, 77:], conditioning.encode_prompt(model, "")[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(vectors[0, :77], conditioning.encode_prompt(model, "a (red) circle")[0], atol=1e-3)


def test_gradients_of_captions_reach_the_text_encoder(model):
    weight = model.text_encoder.encoder.layers[0].mlp.fc1.weight.requires_grad_(True)
    conditioning.encode_captions(model, ["a red circle"]).square().sum().backward()
    assert weight.grad.abs().max() > 0


def test_gradients_stop_at_the_skipped_layers(model):
    skipped = model.text_encoder.encoder.layers[2].mlp.fc1.weight.requires_grad_(True)
    conditioning.encode_captions(model, ["a red circle"], clip_skip=2).square().sum().backward()
    assert skipped.grad is None
