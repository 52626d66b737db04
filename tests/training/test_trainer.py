"""One step: what enters the loss, what happens to the gradients, and what the parameters are used as."""

from __future__ import annotations

import math

import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.safetensors import read_tensors
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training import stepper
from lib_lycoris.training.draws import draw
from lib_lycoris.training.loss import add_noise, errors, zero_terminal_snr
from lib_lycoris.training.material import PlainMaterial
from lib_lycoris.training.max_norm import delta_norm
from lib_lycoris.training.trainer import NotFiniteError

from .fake import FakeBackbone
from .rig import config_of, gradients, material_of, numbers, rig, same
from .test_loop import losses_of, make_config
from .test_methods import METHODS


def loss_by_hand(backbone, material, rows, seed, weigh=lambda alpha: 1.0, wanted="eps", noise_offset=0.0, kind=None):
    """The mean over rows of each row's mean error, in plain arithmetic."""
    total = 0.0
    for epoch, sample in rows:
        latents = material.latents(sample, epoch)
        drawn = draw(seed, epoch, sample, latents.shape, noise_offset=noise_offset)
        alpha = backbone.alphas_cumprod[drawn.t].item()
        x_t = math.sqrt(alpha) * latents + math.sqrt(1 - alpha) * drawn.noise
        with torch.no_grad():
            answer = backbone.predict(x_t[None], torch.tensor([drawn.t]), backbone.encode_captions([material.caption(sample, epoch)]))[0]
        aim = drawn.noise if wanted == "eps" else math.sqrt(alpha) * drawn.noise - math.sqrt(1 - alpha) * latents
        wrong = (answer - aim).double()
        error = wrong**2 if kind is None else kind(wrong)
        total += error.mean().item() * weigh(alpha)
    return total / len(rows)


@pytest.mark.parametrize("prior_weight", [0.0, 1.0, 0.25])
def test_the_prior_loss_enters_with_its_weight(prior_weight):
    material, prior = material_of(4), material_of(3, seed=5)
    config = config_of(training__prior_weight=prior_weight, training__max_grad_norm=0.0)
    backbone = FakeBackbone()
    with rig(config, backbone, material, prior) as trainer:
        own = loss_by_hand(backbone, material, trainer._order.batch(0), 0)
        of_prior = loss_by_hand(backbone, prior, trainer._prior_order.batch(0), 1)
        assert trainer.step(0) == pytest.approx(own + prior_weight * of_prior, rel=1e-5)
        both = gradients(trainer)
    layers, parts = fresh_numbers(config), []
    for own_material, seed in ((material, 0), (prior, 1)):
        with rig(config_of(training__seed=seed, training__max_grad_norm=0.0), material=own_material) as trainer:
            with torch.no_grad():  # the same layers as above: fresh ones follow from the seed
                for name, value in trainer.parameters.items():
                    value.copy_(layers[name])
            trainer.step(0)
            parts.append(gradients(trainer))
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, parts[0][name] + prior_weight * parts[1][name], rtol=1e-4, atol=1e-7)


def fresh_numbers(config):
    with rig(config) as trainer:
        return numbers(trainer)


def test_a_prior_changes_the_network_and_its_weight_counts():
    found = []
    for prior, weight in ((None, 1.0), (material_of(3, seed=5), 0.0), (material_of(3, seed=5), 1.0)):
        with rig(config_of(training__prior_weight=weight), prior=prior) as trainer:
            for step in range(3):
                trainer.step(step)
            found.append(numbers(trainer))
    assert same(found[0], found[1]) and not same(found[0], found[2])


@pytest.mark.parametrize("kind", ["locon", "adalora"])
def test_accumulated_parts_are_a_batch_of_the_product_size(kind):
    found = []
    for batch, parts in ((4, 1), (1, 4), (2, 2)):
        extra = {"network.kind": kind, **({"network.interval": 1, "network.alpha": None} if kind == "adalora" else {})}
        config = config_of(data__batch_size=batch, training__gradient_accumulation=parts, training__optimizer="adamw", **extra)
        with rig(config) as trainer:
            losses = [trainer.step(step) for step in range(3)]
            found.append((losses, gradients(trainer)))
    for losses, gradient in found[1:]:
        assert losses == pytest.approx(found[0][0], rel=1e-4)
        for name, value in gradient.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=2e-3, atol=1e-6)


def cpu_scaler(monkeypatch, scale, growth=2000):
    scalers = getattr(torch.amp, "GradScaler", None)
    if scalers is None:
        pytest.skip("this torch scales losses on a GPU only")
    made = scalers("cpu", init_scale=scale, growth_interval=growth)
    monkeypatch.setattr(stepper, "_make_scaler", lambda precision, device: made)
    return made


@pytest.mark.parametrize("limit", [0.0, 1e-3])
def test_clipping_comes_after_unscaling(monkeypatch, limit):
    found = []
    for scale in (None, 2.0**12):
        if scale is not None:
            cpu_scaler(monkeypatch, scale)
        with rig(config_of(training__max_grad_norm=limit)) as trainer:
            trainer.step(0)
            found.append(gradients(trainer))
    norm = math.sqrt(sum(float(value.square().sum()) for value in found[1].values()))
    assert norm == pytest.approx(limit, rel=1e-3) if limit else norm > 1e-3
    for name, value in found[1].items():
        torch.testing.assert_close(value, found[0][name], rtol=1e-4, atol=1e-9)


def test_a_step_whose_scaled_gradients_overflow_moves_nothing_and_lowers_the_scale(monkeypatch):
    scaler = cpu_scaler(monkeypatch, 2.0**127)
    extra = {"network.kind": "adalora", "network.interval": 1, "network.warmup": 0, "network.final": 4, "network.alpha": None, "training.ema": 0.9}
    loud = PlainMaterial([100 * latents for latents in material_of(4)._latents], ["a thing"] * 4)  # the scaled loss is beyond float32
    with rig(config_of(**extra), material=loud) as trainer:
        before, average = numbers(trainer), [value.clone() for value in trainer._stepper._average.values]
        skipped = 0
        while scaler.get_scale() >= 2.0**110 and same(before, numbers(trainer)):
            trainer.step(skipped)
            skipped += 1
        assert skipped > 1 and trainer._stepper._average.updates == 1 and not same(before, numbers(trainer))
        assert not all(torch.equal(one, two) for one, two in zip(average, trainer._stepper._average.values, strict=True))


def test_skipped_steps_leave_optimiser_average_and_allocator_alone_and_are_not_endless(monkeypatch):
    scaler = cpu_scaler(monkeypatch, 1.0)
    extra = {"network.kind": "adalora", "network.interval": 1, "network.warmup": 0, "network.final": 4, "network.alpha": None, "training.ema": 0.9}
    with rig(config_of(**extra)) as trainer:
        trainer.step(0)
        before = trainer.state()
        real = trainer._stepper.backward
        trainer._stepper.backward = lambda loss: (real(loss), trainer._stepper._vectors[0].grad.fill_(math.inf))
        trainer.step(1)
        after = trainer.state()
        assert same(before[0], after[0]) and after[1]["averaged"] == 1 and scaler.get_scale() == 0.5
        with pytest.raises(NotFiniteError, match="not finite in 31 steps in a row"):
            for step in range(2, 40):
                trainer.step(step)


def test_a_gradient_that_is_not_finite_stops_without_a_scaler():
    with rig(config_of()) as trainer:
        before = numbers(trainer)
        real = trainer._stepper.backward
        trainer._stepper.backward = lambda loss: (real(loss), trainer._stepper._vectors[0].grad.fill_(math.nan))
        with pytest.raises(NotFiniteError, match="step 1: the gradient is not finite"):
            trainer.step(0)
        assert same(before, numbers(trainer))


def test_bf16_computes_in_half_and_keeps_parameters_and_gradients_whole():
    backbone = FakeBackbone()
    seen = []
    backbone.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with rig(config_of(training__precision="bf16"), backbone) as trainer:
        trainer.step(0)
        assert set(seen) == {torch.bfloat16}
        assert {value.dtype for value in trainer.parameters.values()} == {value.grad.dtype for value in trainer.parameters.values()} == {torch.float32}


SNR_WEIGHTS = {
    "plain": ({}, "eps", lambda alpha: 1.0),
    "min-SNR": ({"training.min_snr_gamma": 5.0}, "eps", lambda alpha: min(alpha / (1 - alpha), 5) / (alpha / (1 - alpha))),
    "min-SNR, v": ({"training.min_snr_gamma": 5.0, "model.v_prediction": "true"}, "v", lambda alpha: min(alpha / (1 - alpha), 5) / (alpha / (1 - alpha) + 1)),
    "debiased": ({"training.debiased": True}, "eps", lambda alpha: 1 / math.sqrt(min(max(alpha / (1 - alpha), 1e-3), 1e3))),
    "v": ({"model.v_prediction": "true"}, "v", lambda alpha: 1.0),
}


@pytest.mark.parametrize("name", SNR_WEIGHTS)
def test_the_steps_loss_is_the_written_out_formula(name):
    changes, wanted, weigh = SNR_WEIGHTS[name]
    material, backbone = material_of(6), FakeBackbone()
    with rig(config_of(data__batch_size=6, **changes), backbone, material) as trainer:
        expected = loss_by_hand(backbone, material, trainer._order.batch(0), 0, weigh, wanted)
        assert trainer.step(0) == pytest.approx(expected, rel=1e-4)


def test_huber_and_noise_offset_enter_as_written():
    c = 0.3
    forms = {"huber": lambda d: 2 * c * ((d**2 + c**2).sqrt() - c), "smooth_l1": lambda d: 2 * ((d**2 + c**2).sqrt() - c)}
    material = material_of(4)
    for kind, form in forms.items():
        backbone = FakeBackbone()
        with rig(config_of(training__loss=kind, training__huber_c=c, training__noise_offset=0.1), backbone, material) as trainer:
            expected = loss_by_hand(backbone, material, trainer._order.batch(0), 0, noise_offset=0.1, kind=form)
            assert trainer.step(0) == pytest.approx(expected, rel=1e-5)
    assert errors(torch.tensor([2.0]), torch.tensor([0.5])).item() == 2.25


def test_a_noise_offset_is_one_number_for_each_channel_of_its_strength():
    plain, moved = draw(3, 0, 1, torch.Size((4, 16, 16))).noise, draw(3, 0, 1, torch.Size((4, 16, 16)), noise_offset=0.5).noise
    shift = moved - plain
    torch.testing.assert_close(shift, shift[:, :1, :1].expand_as(shift), atol=1e-6, rtol=0)
    size = torch.Size((4, 1, 1))
    many = torch.stack([draw(0, 0, sample, size, noise_offset=0.5).noise - draw(0, 0, sample, size).noise for sample in range(500)])
    assert many.std().item() == pytest.approx(0.5, rel=0.1)


def test_a_zero_terminal_schedule_ends_without_signal_begins_as_before_and_is_for_v():
    alphas = FakeBackbone().alphas_cumprod
    found = zero_terminal_snr(alphas)
    assert found[-1] == 0 and found[0].item() == pytest.approx(alphas[0].item()) and bool((found.diff() < 0).all())
    roots = alphas.double().sqrt()
    torch.testing.assert_close(found.double(), ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(zero_terminal_snr(found), found)
    with pytest.raises(ConfigError, match="it is for models with v-prediction"), rig(config_of(model__zero_terminal_snr=True)):
        pass
    backbone = FakeBackbone("v")
    with rig(config_of(model__zero_terminal_snr=True), backbone, material_of(60), started=False) as trainer:
        trainer.step(0)
        x_t, _ = backbone.inputs[-1]
        rows = trainer._order.batch(0)
        drawn = draw(0, *rows[0], torch.Size((4, 8, 8)))
        expected = add_noise(material_of(60).latents(rows[0][1], 0)[None], drawn.noise[None], found[drawn.t : drawn.t + 1])
        torch.testing.assert_close(x_t[:1], expected)


def test_a_zero_terminal_schedule_on_an_eps_model_is_told_before_anything_is_encoded(tmp_path):
    backbone = FakeBackbone()
    backbone.encode_pictures = lambda *arguments: pytest.fail("encoded")
    with pytest.raises(ConfigError, match="zero_terminal_snr"):
        losses_of(make_config(tmp_path, model__zero_terminal_snr=True), backbone)


def test_the_average_is_its_formula_is_swapped_exactly_and_is_what_is_saved(tmp_path):
    with rig(config_of(training__ema=0.9)) as trainer:
        expected = {name: value.double() for name, value in numbers(trainer).items()}
        for n in range(1, 31):
            trainer.step(n - 1)
            decay = min(0.9, (1 + n) / (10 + n))
            expected = {name: decay * expected[name] + (1 - decay) * value.double() for name, value in numbers(trainer).items()}
        before = numbers(trainer)
        with trainer.used():
            for name, value in numbers(trainer).items():
                torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)
        assert same(before, numbers(trainer))
    saved = {}
    for ema in (0.0, 0.9):
        _, result = losses_of(make_config(tmp_path / str(ema), training__ema=ema))
        saved[ema] = read_tensors(result.path)
    assert any(not torch.equal(saved[0.0][key], saved[0.9][key]) for key in saved[0.0])


def test_parameters_come_back_bit_for_bit_also_after_an_exception():
    with rig(config_of(training__ema=0.9)) as trainer:
        for step in range(3):
            trainer.step(step)
        before = numbers(trainer)
        with pytest.raises(ZeroDivisionError), trainer.used():
            assert not same(before, numbers(trainer))
            raise ZeroDivisionError
        assert same(before, numbers(trainer))


def test_the_average_goes_on_bit_for_bit_after_resuming(tmp_path):
    _, straight = losses_of(make_config(tmp_path / "a", training__ema=0.9))
    config = make_config(tmp_path / "b", training__ema=0.9)
    count = iter(range(100))
    losses_of(config, should_stop=lambda: next(count) == 5)
    _, resumed = losses_of(config, resume=True)
    one, two = read_tensors(straight.path), read_tensors(resumed.path)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_rank_that_adalora_took_away_is_no_part_of_the_average():
    extra = {"network.kind": "adalora", "network.interval": 1, "network.warmup": 2, "network.final": 2, "network.alpha": None, "network.target_rank": 1}
    with rig(config_of(training__ema=0.99, **extra)) as trainer:
        for step in range(12):
            trainer.step(step)
        raw = trainer.method.figures()["ranks"]
        with trainer.used():
            assert trainer.method.figures()["ranks"] == raw and sum(raw.values()) <= len(raw)


def test_rates_are_separate_for_unet_text_encoders_and_blocks():
    config = config_of(training__text_encoder_learning_rate=1e-9, training__block_learning_rates=["down_blocks*=0.5", "down_blocks_0_resnets*=2"],
                       training__weight_decay=0.0)
    with rig(config) as trainer:
        before = numbers(trainer)
        trainer.step(0)
        moved = {name: (numbers(trainer)[name] - before[name]).abs().max().item() for name in before}
    for name, amount in moved.items():  # Adam's first step is the rate itself
        rate = 1e-9 if name.startswith("te1.") else 0.02 if "down_blocks_0_resnets" in name else 0.005 if "down_blocks" in name else 0.01
        assert amount == pytest.approx(rate, rel=0.05) or (rate < 1e-6 and amount < 1e-8)


def test_layers_with_a_rate_of_zero_are_neither_trained_nor_saved(tmp_path):
    _, result = losses_of(make_config(tmp_path, training__block_learning_rates=["down_blocks*=0"]))
    keys = read_tensors(result.path)
    assert any("up_blocks" in key for key in keys) and not any("down_blocks" in key for key in keys)
    with pytest.raises(ConfigError, match="every layer's rate is 0"):
        losses_of(make_config(tmp_path, training__block_learning_rates=["*=0"]))


KINDS = [name for name in METHODS if "DoRA" not in name]


@pytest.mark.parametrize("name", KINDS)
def test_no_delta_outgrows_the_max_norm_and_smaller_ones_stay(name):
    kind = name.partition(",")[0]
    changes = {**METHODS[name], "network.kind": kind, "network.alpha": None, "training.learning_rate": 0.02}
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    norms, limits = [], [None]
    for limit in limits:
        with rig(config_of(**changes, network__max_norm=limit)) as trainer:
            for step in range(3):
                trainer.step(step)
            layers = trainer.method.layers
            norms.append({key: layer.delta(targets[key].module.weight.detach()).norm().item() for key, layer in layers.items()})
            for key, layer in layers.items():
                with torch.no_grad():
                    assert delta_norm(layer, targets[key]).item() == pytest.approx(norms[-1][key], rel=1e-3, abs=1e-6)
        if limit is None:
            limits.append(sorted(norms[0].values())[len(norms[0]) // 2])
    limit = limits[1]
    assert max(norms[0].values()) > limit * 1.01 and max(norms[1].values()) <= limit * 1.001
    assert any(value == pytest.approx(limit, rel=1e-3) for value in norms[1].values())


def test_a_layer_within_the_max_norm_stays_bit_for_bit():
    found = []
    for limit in (None, 1e6):
        with rig(config_of(network__max_norm=limit)) as trainer:
            trainer.step(0)
            found.append(numbers(trainer))
    assert same(*found)


def test_captions_that_are_dropped_are_empty():
    backbone = FakeBackbone()
    material = PlainMaterial(material_of(2)._latents, ["one", "two"])
    with rig(config_of(data__caption_dropout=1.0), backbone, material) as trainer:
        trainer.step(0)
    assert set(backbone.captions) == {""}
