"""Embeddings in the studio's prompts and captions: found by their tokens, put in for one call, gradients into the vectors alone."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.studio.backbone import StudioBackbone
from lib_lycoris.studio.bpe import tokenize
from lib_lycoris.studio.conditioning import encode_captions, encode_prompt, prompt_chunks
from lib_lycoris.studio.sdxl import SDXLBackbone

from .tiny_sd2_and_sdxl import make_sd2, make_sdxl


@pytest.fixture(scope="module")
def model(tiny_path):
    """One for all: no test here changes it, as they say themselves."""
    from lib_lycoris.studio.checkpoint import load_checkpoint

    return load_checkpoint(tiny_path, device="cpu")


def rows(count, width=32, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def slow(model, text, words):
    """The text model over a table that has the vectors as further rows, as diffusers does it: one token for each vector."""
    from transformers import CLIPTextModel

    encoder = CLIPTextModel(copy.deepcopy(model.text_encoder.config)).eval()
    encoder.load_state_dict(model.text_encoder.state_dict(), strict=False)
    table = encoder.get_input_embeddings()
    ids, extra = [49406], []
    for piece in text.split("|"):
        if piece in words:
            ids += [len(table.weight) + len(extra) + place for place in range(len(words[piece]))]
            extra += list(words[piece])
        else:
            ids += tokenize(model.tokenizer, piece)
    ids = [*ids, *[49407] * (77 - len(ids))]
    with torch.no_grad():
        table.weight = torch.nn.Parameter(torch.cat([table.weight, torch.stack(extra)]))
        return encoder(input_ids=torch.tensor([ids])).last_hidden_state


@pytest.mark.parametrize("count", [1, 4, 8])
def test_a_words_vectors_do_what_rows_added_to_the_table_would_do(model, count):
    words = {"my style": rows(count)}
    with model.words.given({"my style": {"clip_l": words["my style"]}}), torch.no_grad():
        found = encode_captions(model, ["a red circle in my style, large"])
        torch.testing.assert_close(found, slow(model, "a red circle in |my style|, large", words))
        assert not torch.equal(found, encode_captions(model, ["a red circle in mine style, large"]))


def test_names_are_found_whatever_their_case_and_the_longest_goes_first(model):
    given = {"Blue": {"clip_l": rows(1)}, "blue circle": {"clip_l": rows(2, seed=1)}}
    with model.words.given(given):
        for text, wanted in (("a BLUE circle", ["blue circle"]), ("a blue, circle", ["Blue"]), ("blueish circle", []),
                             ("Blue blue Circle", ["Blue", "blue circle"])):
            (chunk,) = prompt_chunks(model, text)
            assert [word for _, word in chunk.words] == [given[name] for name in wanted], text


def test_a_word_of_letters_that_are_no_words_is_found_too(model):
    with model.words.given({"<cat-toy>": {"clip_l": rows(1)}, "v1.5_x": {"clip_l": rows(2)}}):
        (chunk,) = prompt_chunks(model, "a photo of <cat-toy> and v1.5_X, b")
        assert [len(word["clip_l"]) for _, word in chunk.words] == [1, 2]


def test_emphasis_weighs_every_vector_of_a_word(model):
    with model.words.given({"mine": {"clip_l": rows(3)}}):
        (chunk,) = prompt_chunks(model, "a (mine:1.5) b")
    assert chunk.weights[1:6] == (1.0, 1.5, 1.5, 1.5, 1.0)


def test_later_words_go_before_earlier_ones_and_go_when_they_end(model):
    first, second = {"clip_l": rows(1)}, {"clip_l": rows(2)}
    with model.words.given({"mine": first}):
        with model.words.given({"mine": second}):
            assert prompt_chunks(model, "mine")[0].words == ((1, second),)
        assert prompt_chunks(model, "mine")[0].words == ((1, first),)
    assert prompt_chunks(model, "mine")[0].words == ()


def test_gradients_flow_into_the_vectors_alone_and_the_model_is_as_before(model):
    before = {name: value.clone() for name, value in model.text_encoder.state_dict().items()}
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.text_encoder.modules()]
    vectors = rows(2).requires_grad_()
    backbone = StudioBackbone(model)
    with backbone.training(), backbone.words({"mine": {"clip_l": vectors}}):
        conditioning = backbone.encode_captions(["a mine", "(mine)", "none"])
        backbone.predict(torch.randn(3, 4, 8, 8), torch.tensor([1, 5, 9]), conditioning).square().sum().backward()
    assert vectors.grad.abs().sum(dim=1).min() > 0
    assert all(parameter.grad is None for module in (model.unet, model.text_encoder, model.vae) for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.text_encoder.state_dict().items())
    assert hooks == [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.text_encoder.modules()]


def test_the_vectors_gradient_is_that_of_finite_differences(model):
    double = replace(model, text_encoder=copy.deepcopy(model.text_encoder).double())
    assert torch.autograd.gradcheck(lambda values: _encoded(double, values), (rows(1).double().requires_grad_(),))


def _encoded(model, values):
    with model.words.given({"mine": {"clip_l": values}}):
        return encode_captions(model, ["a mine b"])[0, 2:5, :2]


def test_nothing_stays_on_the_model_after_an_exception(model):
    def fail(*_):
        raise ValueError("stop")

    handle = model.text_encoder.register_forward_hook(fail)
    with pytest.raises(ValueError, match="stop"), model.words.given({"mine": {"clip_l": rows(1)}}):
        encode_prompt(model, "mine")
    handle.remove()
    assert not model.text_encoder.get_input_embeddings()._forward_hooks and prompt_chunks(model, "mine")[0].words == ()


@pytest.mark.parametrize(("vectors", "words"), [
    ({"clip_l": rows(1, 33)}, "33.*32 wide"), ({"clip_h": rows(1)}, "another base model"), ({"clip_l": rows(1), "clip_g": rows(1)}, "another base model"),
    ({"clip_l": rows(0)}, "0 vectors"), ({"clip_l": rows(76)}, "76 vectors"), ({"clip_l": rows(1)[0]}, "shape")])
def test_vectors_that_do_not_fit_are_an_error_or_are_told_once_and_left_out(model, vectors, words):
    with model.words.given({"mine": vectors}), pytest.raises(ConfigError, match=words) as caught:
        encode_captions(model, ["mine"])
    assert "\n" not in str(caught.value)
    told = []
    with model.words.given({"mine": vectors}, told.append):
        found = [encode_captions(model, ["a mine"]) for _ in range(2)]
    assert len(told) == 1 and "mine" in told[0] and torch.equal(found[0], encode_captions(model, ["a mine"]))


def test_a_word_without_letters_is_an_error(model):
    with pytest.raises(ConfigError, match="letter"), model.words.given({" ": {"clip_l": rows(1)}}):
        pass


def test_sd_2_calls_its_text_encoder_by_its_own_name():
    backbone = StudioBackbone(make_sd2())
    with backbone.words({"mine": {"clip_h": rows(2)}}), torch.no_grad():
        assert not torch.equal(backbone.encode_captions(["a mine"]), backbone.encode_captions(["a nine"]))
    assert list(backbone.word_rows("mine")) == list(backbone.word_statistics()) == ["clip_h"]


def test_sdxl_gives_each_text_encoder_its_own_vectors_and_gradients():
    model = make_sdxl()
    backbone = SDXLBackbone(model)
    vectors = {"clip_l": rows(2, 16).requires_grad_(), "clip_g": rows(2, 32).requires_grad_()}
    plain = backbone.encode_captions(["a mine"])
    with backbone.training(), backbone.words({"mine": vectors}):
        found = backbone.encode_captions(["a mine", "mine"])
        assert not torch.equal(found["crossattn"][0, :, :16], plain["crossattn"][0, :, :16])
        assert not torch.equal(found["crossattn"][0, :, 16:], plain["crossattn"][0, :, 16:]) and not torch.equal(found["pooled"][0], plain["pooled"][0])
        (found["crossattn"].square().sum() + found["pooled"].square().sum()).backward()
    assert all(each.grad.abs().min() > 0 for each in vectors.values())
    assert torch.equal(backbone.encode_captions(["a mine"])["crossattn"], plain["crossattn"])
    with backbone.words({"mine": {"clip_l": rows(1, 16)}}), pytest.raises(ConfigError, match="clip_l and clip_g"):
        backbone.encode_captions(["mine"])


def test_a_preview_obeys_the_words(model):
    backbone = StudioBackbone(model)
    with backbone.words({"mine": {"clip_l": 3 * rows(4)}}):
        first = backbone.preview("mine", 1, steps=2)
    assert (first != backbone.preview("mine", 1, steps=2)).any()


def test_the_tables_rows_and_statistics_are_told(model):
    backbone = StudioBackbone(model)
    table = model.text_encoder.get_input_embeddings().weight
    ids = tokenize(model.tokenizer, "a photograph of (x:1.3)")
    assert torch.equal(backbone.word_rows("a photograph of (x:1.3)")["clip_l"], table[ids]) and not backbone.word_rows("a")["clip_l"].requires_grad
    assert backbone.word_rows("")["clip_l"].shape == (0, 32)
    backbone.word_rows("a")["clip_l"].zero_()
    assert torch.equal(backbone.word_rows("a")["clip_l"], table[tokenize(model.tokenizer, "a")]), "a copy was given"
    mean, deviation, norm = backbone.word_statistics()["clip_l"]
    torch.testing.assert_close(mean, torch.stack([table.T[row].mean() for row in range(32)]))
    torch.testing.assert_close(deviation, torch.stack([table.T[row].std() for row in range(32)]))
    assert norm == pytest.approx(sorted(float(row.norm()) for row in table.detach())[(len(table) - 1) // 2], rel=1e-5)
