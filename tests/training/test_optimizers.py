from __future__ import annotations

import math
import sys

import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.training.config import OPTIMIZERS, TrainingSettings
from lib_lycoris.training.loop import train
from lib_lycoris.training.optimizers import make_optimizer, odd_about_rates
from lib_lycoris.training.schedules import rate_factor
from lib_lycoris.training.trainer import NotFiniteError

from .fake import FakeBackbone
from .rig import config_of, material_of, numbers, rig, same
from .test_loop import losses_of, make_config

MODULES = {"adamw8bit": "bitsandbytes", "lion": "lion_pytorch", "prodigy": "prodigyopt", "schedule_free": "schedulefree"}
RATES = {"lion": 0.002, "prodigy": 1.0}
every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def settings_of(name, **changes):
    if name in MODULES:
        pytest.importorskip(MODULES[name])
    larger = {"network.rank": 16, "network.alpha": 8.0} if name == "adamw8bit" else {}  # small vectors it keeps in 32 bits
    return {"training.optimizer": name, "training.learning_rate": RATES.get(name, 0.01), **larger, **changes}


@pytest.mark.parametrize("name", MODULES)
def test_a_missing_package_is_one_line_that_says_what_to_install_before_anything_is_encoded(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, MODULES[name], None)
    backbone = FakeBackbone()
    backbone.encode_pictures = lambda *arguments: pytest.fail("encoded")
    with pytest.raises(ConfigError, match=rf'training\.optimizer = "{name}": the package .* is missing; pip install --no-deps ') as caught:
        train(make_config(tmp_path, training__optimizer=name), backbone)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@every_optimizer
def test_the_loss_falls(tmp_path, name):
    losses, result = losses_of(make_config(tmp_path, **{**settings_of(name), "training.steps": 80, "output.save_every": 0}))
    assert sum(losses[-20:]) < 0.97 * sum(losses[:20]) and result.steps == 80


@every_optimizer
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, name):
    extra = {"training.warmup_steps": 4, "training.text_encoder_learning_rate": None if name == "prodigy" else 0.003}
    whole, straight = losses_of(make_config(tmp_path / "a", **settings_of(name, **extra)))
    count = iter(range(100))
    config = make_config(tmp_path / "b", **settings_of(name, **extra))
    first, _ = losses_of(config, should_stop=lambda: next(count) == 7)
    second, resumed = losses_of(config, resume=True)
    assert first + second == whole and straight.path.read_bytes()[-4096:] == resumed.path.read_bytes()[-4096:]


@every_optimizer
def test_a_nan_leaves_parameters_and_state_as_they_were(name):
    config = config_of(**settings_of(name))
    backbone = FakeBackbone()
    with rig(config, backbone) as trainer:
        for step in range(3):
            trainer.step(step)
        before = numbers(trainer), trainer.state()
        backbone.poison_at = len(backbone.inputs)
        with pytest.raises(NotFiniteError, match="the loss of step 4 is nan"):
            trainer.step(3)
        after = trainer.state()
        assert same(before[0], numbers(trainer)) and same(before[1][0], after[0]) and before[1][1] == after[1]


def test_adamw_is_its_formula():
    value = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer([{"params": [value], "lr": 0.1}], TrainingSettings(weight_decay=0.5))
    first, second, expected = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64), value.detach().double()
    for step in range(1, 6):
        gradient = torch.tensor([0.3 * step, -1.0 / step], dtype=torch.float64)
        value.grad = gradient.float()
        optimizer.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    torch.testing.assert_close(value.detach(), expected.float())


def test_schedule_frees_own_warmup_is_ours_and_what_is_used_is_its_average():
    free = pytest.importorskip("schedulefree")
    config = config_of(training__optimizer="schedule_free", training__warmup_steps=4, training__max_grad_norm=0.0, training__weight_decay=0.0)
    with rig(config) as trainer:
        flat = trainer._stepper._vectors[0]
        twin = torch.nn.Parameter(flat.detach().clone())
        own = free.AdamWScheduleFree([twin], lr=0.01, warmup_steps=4, weight_decay=0.0)
        own.train()
        real = trainer._stepper._optimizer.step

        def both():
            twin.grad = flat.grad.clone()  # the step itself writes into it
            own.step()
            real()

        trainer._stepper._optimizer.step = both
        for step in range(8):
            trainer.step(step)
            torch.testing.assert_close(flat.detach(), twin.detach())
        trained = flat.detach().clone()
        own.eval()
        trainer._stepper._optimizer.step = real
        with trainer.used():
            torch.testing.assert_close(flat.detach(), twin.detach())
            assert not torch.equal(flat.detach(), trained)
        assert torch.equal(flat.detach(), trained)
        trainer.step(8)  # in train mode again, or it would raise


def test_schedule_free_takes_no_schedule_no_average_and_no_max_norm(tmp_path):
    pytest.importorskip("schedulefree")
    for changes, words in (({"training.schedule": "cosine"}, "takes the place of a schedule"), ({"network.max_norm": 1.0}, "max_norm = 1")):
        with pytest.raises(ConfigError, match=words):
            train(make_config(tmp_path, **{"training.optimizer": "schedule_free", **changes}), FakeBackbone())
    with pytest.raises(ConfigError, match="averages the steps itself"):
        config_of(training__optimizer="schedule_free", training__ema=0.9)


def test_prodigy_has_one_rate_prints_nothing_and_a_small_factor_is_told(capsys):
    pytest.importorskip("prodigyopt")
    with rig(config_of(training__optimizer="prodigy", training__learning_rate=1.0)) as trainer:
        trainer.step(0)
        assert {group["weight_decay"] for group in trainer._stepper._optimizer.param_groups} == {0.01}
    assert capsys.readouterr().out == ""
    two = config_of(training__optimizer="prodigy", training__text_encoder_learning_rate=0.5)
    with pytest.raises(ConfigError, match="finds one rate for all layers"), rig(two):
        pass
    assert "1 is usual" in odd_about_rates(TrainingSettings(optimizer="prodigy"))[0] and odd_about_rates(TrainingSettings()) == []


def test_another_optimiser_or_other_groups_of_rates_cannot_take_up_a_state():
    with rig(config_of()) as trainer:
        trainer.step(0)
        state = trainer.state()
    for changes in ({"training.text_encoder_learning_rate": 0.002}, *([{"training.optimizer": "lion"}] if "lion_pytorch" in sys.modules else [])):
        with rig(config_of(**changes)) as other, pytest.raises(Exception, match=r"set training\.optimizer and the rates back"):
            other.load(*state)


def test_weight_decay_can_be_changed_for_a_resumed_run():
    with rig(config_of()) as trainer:
        trainer.step(0)
        state = trainer.state()
    with rig(config_of(training__weight_decay=0.5)) as other:
        other.load(*state)
        assert other._stepper._optimizer.param_groups[0]["weight_decay"] == 0.5


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "cosine_restarts", "polynomial"])
def test_every_schedule_rises_over_the_warmup_and_is_its_formula_after(schedule):
    steps, warmup, restarts = 25, 5, 4
    for step in range(steps):
        done = (step - warmup) / (steps - warmup)
        expected = {
            "constant": 1.0, "linear": 1 - done, "polynomial": (1 - done) ** 2, "cosine": 0.5 + 0.5 * math.cos(math.pi * done),
            "cosine_restarts": 0.5 + 0.5 * math.cos(math.pi * ((step - warmup) % 5) / 5),
        }[schedule]
        assert rate_factor(schedule, step, steps, warmup, restarts) == pytest.approx((step + 1) / warmup if step < warmup else expected, abs=1e-12)


def test_the_rate_of_a_step_is_the_schedules_for_every_group():
    config = config_of(training__schedule="linear", training__text_encoder_learning_rate=0.002, training__block_learning_rates=["down_blocks_0*=0.5"])
    with rig(config, material=material_of(4)) as trainer:
        for step in range(6):
            trainer.step(step)
        found = sorted(group["lr"] for group in trainer._stepper._optimizer.param_groups)
        assert found == pytest.approx([0.002 * 7 / 12, 0.005 * 7 / 12, 0.01 * 7 / 12])
