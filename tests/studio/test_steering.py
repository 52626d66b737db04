"""Networks that act on single rows or change with the steps, in whole pictures: against a slow loop that makes one row of one step at a time."""
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.library.load import open_network
from lib_lycoris.patching.session import Session
from lib_lycoris.studio import steering
from lib_lycoris.studio.conditioning import encode_prompt
from lib_lycoris.studio.generate import GenerateSettings, generate
from lib_lycoris.studio.noise import PictureNoise
from lib_lycoris.studio.schedule import NoiseLevels, alphas_cumprod, make_sigmas

PROMPT, NEGATIVE, SEED, STEPS, CFG = "a red circle", "blue dots", 5, 4, 3.0
PLACES = {
    "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn2_to_k": "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn2.to_k",
    "lora_unet_up_blocks_2_resnets_0_conv1": "unet.up_blocks.2.resnets.0.conv1",
    "lora_unet_mid_block_attentions_0_proj_in": "unet.mid_block.attentions.0.proj_in",
    "lora_te_text_model_encoder_layers_1_self_attn_q_proj": "text_encoder.encoder.layers.1.self_attn.q_proj",
    "lora_te_text_model_encoder_layers_2_mlp_fc2": "text_encoder.encoder.layers.2.mlp.fc2",
}


def weight_of(model, path):
    part, _, name = path.partition(".")
    return getattr(model, part).get_submodule(name).weight


@pytest.fixture
def folder(model, tmp_path):
    draw = torch.Generator().manual_seed(3)
    lora, full = {}, {}
    for name, path in PLACES.items():
        shape = weight_of(model, path).shape
        lora[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=draw) * 0.8
        lora[f"{name}.lora_down.weight"] = torch.randn(2, *shape[1:], generator=draw) * 0.8
        full[f"{name}.diff"] = torch.randn(shape, generator=draw) * (0.3 if name.startswith("lora_unet") else 1.5)
    save_file(lora, tmp_path / "lora.safetensors")
    save_file(full, tmp_path / "full.safetensors")
    return tmp_path


@pytest.fixture
def networks(model, folder):
    return Generation(Catalogue([folder]), NetworkCache(10 ** 8), Session(model.unet, (model.text_encoder,)))


@torch.no_grad()
def guided_answer(model, folder, x, sigma, strengths, prompt, negative):
    """The model's answer for [1,4,h,w] under guidance, one row at a time; strengths(negative) → {name: (te, unet)} is merged for the row and its text."""
    levels, answers = NoiseLevels(alphas_cumprod(model.betas)), []
    for is_negative, text in ((False, prompt), (True, negative)):
        with Session(model.unet, (model.text_encoder,)) as session:
            session.apply([(open_network(folder / f"{name}.safetensors"), strength) for name, strength in strengths(is_negative).items()])
            vectors = encode_prompt(model, text)
            answers.append(model.unet(x / (sigma ** 2 + 1) ** 0.5, levels.sigma_to_t(sigma).expand(1), vectors).sample)
    return answers[1] + CFG * (answers[0] - answers[1])


def differences(model, folder, denoised, strengths, prompt=PROMPT, negative=NEGATIVE):
    """For each step (how far the model's guided answer is from the slow one, how far from that without networks), both relative to the slow one.

    Args:
        denoised: of each step, as fast_steps gives it; from it and the noise follows what Euler's method handed to the model.
        strengths: (step, negative) → {name: (te, unet)}.
    """
    sigmas = make_sigmas(NoiseLevels(alphas_cumprod(model.betas)), "uniform", STEPS)
    x, found = PictureNoise([SEED], (4, 8, 8), model.device).draw() * sigmas[0], []
    for step, (sigma, following) in enumerate(pairwise(sigmas)):
        answer = (x - denoised[step]) / sigma
        slow = guided_answer(model, folder, x, sigma, lambda is_negative, step=step: strengths(step, is_negative), prompt, negative)
        plain = guided_answer(model, folder, x, sigma, lambda is_negative: {}, prompt, negative)
        found.append(tuple(float((answer - other).norm() / slow.norm()) for other in (slow, plain)))
        x = x + answer * (following - sigma)
    return found


def fast_steps(model, networks, tags="", negative_tags="", batch=1, **more):
    """For each step the first picture of a batch without noise, and the problems."""
    settings = {"prompt": PROMPT + tags, "negative": NEGATIVE + negative_tags, "width": 64, "height": 64, "steps": STEPS, "seed": SEED, "cfg": CFG,
                "sampler": "Euler", "batch": batch}
    seen = []
    pictures = generate(model, GenerateSettings(**{**settings, **more}), networks, on_step=lambda step, count, denoised: seen.append(denoised[:1].clone()))
    return seen, pictures[0].problems


CASES = {
    "negative": ("", "<lyco:lora:0.7:0.9>", lambda step, negative: {"lora": (0.7, 0.9)} if negative else {}),
    "cond": ("<lyco:full:0.5:1:on=cond>", "", lambda step, negative: {} if negative else {"full": (0.5, 1)}),
    "both": ("<lyco:lora:0.5>", "<lyco:lora:-1:-0.5><lyco:full:0>", lambda step, negative: {"lora": (-0.5, 0)} if negative else {"lora": (0.5, 0.5)}),
    "rise": ("<lyco:lora:te=0:unet=0.6@0,1.5@1:on=cond>", "", lambda step, negative: {} if negative else {"lora": (0, 0.6 + 0.3 * step)}),
    "text fade": ("<lyco:full:te=0@0,1@1:unet=0>", "", lambda step, negative: {"full": (step / (STEPS - 1), 0)}),
    "window": ("<lyco:full:start=1:stop=3>", "", lambda step, negative: {"full": (1, 1)} if 1 <= step < 3 else {}),
    "everything": ("<lyco:full:0.5@0,0@1:on=cond>", "<lyco:lora:stop=0.5>", lambda step, negative: {"lora": (1, 1)} if negative and step < 2 else
                   {} if negative else {"full": (0.5 - step / 6, 0.5 - step / 6)}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_step_is_the_one_that_is_made_row_by_row(model, folder, networks, case):
    tags, negative_tags, strengths = CASES[case]
    found, problems = fast_steps(model, networks, tags, negative_tags, batch=2)
    assert problems == ()
    for step, (rounding, effect) in enumerate(differences(model, folder, found, strengths)):
        acts = any(any(pair) for negative in (False, True) for pair in strengths(step, negative).values())
        assert rounding < 7e-4 and (effect > 2e-3 if acts else effect < 7e-4)


def test_a_longer_negative_prompt_gets_its_own_call_and_still_its_own_networks(model, folder, networks):
    longer = "dots, " * 60
    found, _ = fast_steps(model, networks, negative=longer + "<lyco:lora:0.7>")
    each = differences(model, folder, found, lambda step, negative: {"lora": (0.7, 0.7)} if negative else {}, negative=longer)
    assert all(rounding < 7e-4 < 2e-3 < effect for rounding, effect in each)


@pytest.mark.parametrize(("sampler", "expected"), [("Euler", [0, 1, 2, 3]), ("Heun", [0, 0, 1, 1, 2, 2, 3]), ("DDIM", [0, 1, 2])])
def test_each_call_of_the_denoiser_belongs_to_its_step(model, networks, monkeypatch, sampler, expected):
    steps = []
    begin = networks.begin_step
    monkeypatch.setattr(networks, "begin_step", lambda step, count, rows: steps.append((step, count, tuple(rows))) or begin(step, count, rows))
    fast_steps(model, networks, "<lyco:lora:unet=1@0,0@1>", sampler=sampler, batch=2, prompt="a red circle AND dots<lyco:lora:unet=1@0,0@1>")
    rows = ((0, False), (1, False), (0, False), (1, False), (0, True), (1, True))
    assert {entry[1:] for entry in steps} == {(STEPS, rows)}
    assert [step for step, _, _ in steps] == expected  # DDIM goes from one of its four levels to the next


def test_texts_are_encoded_once_where_nothing_changes_and_anew_at_each_change(model, networks, monkeypatch):
    encoded = []
    for name in ("encode_prompt", "encode_composition"):
        real = getattr(steering, name)
        monkeypatch.setattr(steering, name, lambda *arguments, real=real, name=name: encoded.append(name) or real(*arguments))
    fast_steps(model, networks, "<lyco:lora:te=0.5:unet=1@0,0@1>")
    assert sorted(encoded) == ["encode_composition", "encode_prompt"]
    encoded.clear()
    fast_steps(model, networks, "<lyco:lora:te=1@2,0@2:unet=1:on=cond>")
    assert sorted(encoded) == ["encode_composition", "encode_composition", "encode_prompt"]


def test_a_bad_tag_in_either_prompt_is_told_and_the_others_act(model, networks):
    good, _ = fast_steps(model, networks, "<lyco:lora:0.5>")
    found, problems = fast_steps(model, networks, "<lyco:lora:0.5><lyco:full:lbw=1,2>", "<lyco:full:start=x>")
    assert len(problems) == 2 and "2 values" in problems[0] and "start" in problems[1]
    assert all(torch.equal(one, other) for one, other in zip(found, good, strict=True))


def test_the_picture_after_one_with_dials_is_the_plain_one_bit_for_bit(model, networks):
    plain, _ = fast_steps(model, networks)
    fast_steps(model, networks, "<lyco:lora:1@0,0@1>", "<lyco:full>")
    assert all(torch.equal(one, other) for one, other in zip(plain, fast_steps(model, networks)[0], strict=True))
