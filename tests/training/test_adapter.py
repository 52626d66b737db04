"""T2I-Adapters in training: what is added to the model and what is not, from control pictures to the file, resumed, killed and in two processes."""

from __future__ import annotations

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.adapters import read_adapter_facts
from lib_lycoris.files.metadata import HELD, HELD_BY_ADAPTERS
from lib_lycoris.files.safetensors import read_metadata, read_tensors
from lib_lycoris.library.adapters import open_adapter
from lib_lycoris.patching.features import FeatureSession
from lib_lycoris.training.adapter import AdapterMethod, count_adapter, make_adapter_method
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.draws import cubic_step, draw
from lib_lycoris.training.dropout import Dropout
from lib_lycoris.training.loop import train
from lib_lycoris.training.material import PlainMaterial
from lib_lycoris.training.objective import Objective
from lib_lycoris.training.preflight import check_training

from .guided import GuidedBackbone, make_guided_pictures

KINDS = ("full", "light")


def config_of(folder, **changes):
    values = {
        "data.folders": [str(folder / "data")], "data.resolution": 64, "data.batch_size": 2, "network.kind": "adapter", "adapter.kind": "light",
        "training.steps": 8, "training.learning_rate": 0.003, "training.seed": 3, "output.folder": str(folder / "out"), "output.name": "edges",
        "output.dtype": "fp32", "output.save_every": 4, **{key.replace("__", "."): value for key, value in changes.items()},
    }
    sections = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    return TrainConfig.from_dict(sections)


def made(folder, **changes):
    if not (folder / "data").is_dir():
        make_guided_pictures(folder / "data")
    return config_of(folder, **changes)


def losses_of(config, backbone=None, **rest):
    losses = []
    result = train(config, backbone or GuidedBackbone(), on_step=lambda report: losses.append(report.loss), **rest)
    return losses, result


def answer(backbone, x=None):
    with torch.no_grad():
        x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)) if x is None else x
        backbone.in_training = True
        return backbone.predict(x, torch.full((len(x),), 700), backbone.encode_captions(["a wall"] * len(x)))


# ---------------------------------------------------------------- what is learned


@pytest.mark.parametrize(("kind", "prediction", "layout"), [("full", "eps", "sd"), ("light", "v", "sd"), ("full", "eps", "sdxl"), ("light", "eps", "sdxl")])
def test_what_the_map_alone_says_is_learned_and_the_file_gives_it_again(tmp_path, kind, prediction, layout):
    backbone = GuidedBackbone(prediction, layout)
    before, weights = answer(backbone), copy.deepcopy(backbone.unet.state_dict())
    config = made(tmp_path, adapter__kind=kind, training__steps=60, training__learning_rate=0.01, data__batch_size=4, validation__folder=str(tmp_path / "data"),
                  validation__every=60)
    result = train(config, backbone)
    (_, first), (_, last) = result.validation
    assert last < 0.98 * first
    assert torch.equal(answer(backbone), before) and not backbone.unet._forward_pre_hooks
    assert all(torch.equal(value, weights[name]) for name, value in backbone.unet.state_dict().items())

    adapter = open_adapter(result.path)
    assert (adapter.kind, adapter.layout, adapter.in_channels) == (kind, layout, 3)
    maps = adapter(torch.stack([side(0), side(1)]))
    with FeatureSession(backbone.unet) as session:
        session.set(maps)
        left, right = answer(backbone, torch.zeros(2, 4, 8, 8))
    assert not torch.allclose(left, right, atol=1e-3)
    assert torch.equal(answer(backbone), before)


def side(number):
    bright = torch.zeros(3, 64, 64)
    bright[:, :, 32:] = 1
    return bright if number % 2 else bright.flip(-1)


@pytest.mark.parametrize(("prediction", "layout"), [("eps", "sd"), ("v", "sd"), ("eps", "sdxl")])
def test_the_loss_and_its_gradient_are_those_of_maps_added_by_hand(prediction, layout):
    """Against plain hooks of this test's own on the blocks' outputs, and the velocity as its paper has it, not as a difference of pictures."""
    backbone, generator = GuidedBackbone(prediction, layout), torch.Generator().manual_seed(4)
    config = TrainConfig.from_dict({"network": {"kind": "adapter"}, "adapter": {"kind": "full"}})
    method = make_adapter_method(config, backbone)
    with torch.no_grad():
        for parameter in method.adapter.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    for parameter in backbone.unet.parameters():
        parameter.requires_grad_(False)
    latents, controls = torch.randn(2, 4, 8, 8, generator=generator), [torch.rand(3, 64, 64, generator=generator) for _ in range(2)]
    draws = [draw(1, 0, row, latents.shape[1:], time_sampling="cubic") for row in range(2)]
    material, backbone.in_training = PlainMaterial(list(latents), ["a", "b"], controls), True

    class Texts:
        def encode(self, captions):
            return backbone.encode_captions(captions).detach()

    with method.attached({}, Dropout(config.network, 0)):
        loss = Objective(config, backbone, Texts(), method.around).loss_of(material, [(0, 0), (0, 1)], latents, draws)
        loss.backward()
    found = {name: value.grad.clone() for name, value in method.adapter.named_parameters() if value.grad is not None}

    method.adapter.zero_grad()
    maps, places = method.adapter(torch.stack(controls)), {"sd": (2, 5, 8, 11), "sdxl": (3, 5, 8)}[layout]
    blocks = [backbone.unet.input_blocks[place] for place in places] + ([backbone.unet.middle_block] if layout == "sdxl" else [])
    handles = [block.register_forward_hook(lambda module, args, output, one=one: output + one) for block, one in zip(blocks, maps, strict=True)]
    t, noise = torch.tensor([one.t for one in draws]), torch.stack([one.noise for one in draws])
    alphas = backbone.alphas_cumprod[t][:, None, None, None]
    predicted = backbone.predict(alphas.sqrt() * latents + (1 - alphas).sqrt() * noise, t, Texts().encode(["a", "b"]))
    wanted = noise if prediction == "eps" else alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    theirs = (predicted - wanted).square().mean()
    theirs.backward()
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(loss, theirs, rtol=1e-5, atol=1e-6)
    assert found.keys() == {name for name, value in method.adapter.named_parameters() if value.grad is not None}
    for name, value in method.adapter.named_parameters():
        if value.grad is not None:
            torch.testing.assert_close(found[name], value.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_fresh_adapter_adds_nothing_and_every_number_of_it_can_learn():
    backbone = GuidedBackbone()
    for kind in KINDS:
        config = TrainConfig.from_dict({"network": {"kind": "adapter"}, "adapter": {"kind": kind}})
        method = make_adapter_method(config, backbone)
        before = answer(backbone)
        with method.attached({}, Dropout(config.network, 0)), method.following(torch.rand(2, 3, 64, 64)):
            assert torch.equal(answer(backbone), before)
        assert count_adapter(config, backbone) == sum(value.numel() for value in method.adapter.parameters())
        again = make_adapter_method(config, backbone)
        assert all(torch.equal(one, two) for one, two in zip(method.adapter.parameters(), again.adapter.parameters(), strict=True))


def test_gradient_checkpointing_gives_the_same_training(tmp_path):
    plain, one = losses_of(made(tmp_path))
    less, two = losses_of(made(tmp_path, output__name="again", training__gradient_checkpointing=True))
    np.testing.assert_allclose(plain, less, rtol=1e-5)
    for name, value in read_tensors(one.path).items():
        torch.testing.assert_close(read_tensors(two.path)[name], value, rtol=1e-4, atol=1e-5)


def test_captions_are_left_away_as_often_as_asked(tmp_path):
    backbone = GuidedBackbone()
    train(made(tmp_path, data__caption_dropout=1.0, output__save_every=0), backbone)
    assert backbone.captions.count("") and not answer(backbone).isnan().any()


# ---------------------------------------------------------------- time steps


def test_the_cubic_sampling_is_the_papers_and_never_past_the_schedule():
    assert [cubic_step(share) for share in (0.0, 0.5, 1.0)] == [999, 875, 0]
    drawn = np.array([draw(1, 0, sample, torch.Size((1, 1, 1)), time_sampling="cubic").t for sample in range(4000)])
    uniform = np.array([draw(1, 0, sample, torch.Size((1, 1, 1))).t for sample in range(4000)])
    assert drawn.min() >= 0 and drawn.max() == 999
    # mean T·(1 - 1/4); P(t ≥ 900) = P(u³ ≤ 0.1), P(t < 500) = P(u³ > 0.5); each within four standard errors
    assert abs(drawn.mean() - 750) < 18 and abs((drawn >= 900).mean() - 0.1 ** (1 / 3)) < 0.032 and abs((drawn < 500).mean() - (1 - 0.5 ** (1 / 3))) < 0.026
    assert abs(uniform.mean() - 499.5) < 19


def test_it_is_the_adapters_own_and_may_be_chosen(tmp_path):
    assert made(tmp_path).time_sampling == "cubic" and TrainConfig().time_sampling == "uniform"
    assert made(tmp_path, training__time_sampling="uniform").time_sampling == "uniform"
    seen = {}
    for way in ("cubic", "uniform"):
        backbone = GuidedBackbone()
        train(made(tmp_path, training__time_sampling=way, training__steps=20, output__save_every=0, output__name=way), backbone)
        seen[way] = torch.cat([t for _, t in backbone.inputs]).float().mean()
    assert seen["cubic"] > 640 > seen["uniform"]


# ---------------------------------------------------------------- never losing work


def test_stopped_and_resumed_it_is_the_same_training_bit_for_bit(tmp_path):
    options = {"training__ema": 0.9, "data__flip": True, "training__schedule": "cosine"}
    whole, one = losses_of(made(tmp_path, **options))
    first, stopped = losses_of(made(tmp_path, output__name="parts", **options), should_stop=iter([False] * 5 + [True]).__next__)
    rest, two = losses_of(made(tmp_path, output__name="parts", **options), resume=True)
    assert stopped.path.name == "parts-step00000005.safetensors" and first + rest == whole
    tensors = read_tensors(two.path)
    assert all(torch.equal(tensors[name], value) for name, value in read_tensors(one.path).items())


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL and no fork")
def test_killed_it_goes_on_bit_for_bit(tmp_path):
    from . import children

    whole, one = losses_of(made(tmp_path, training__ema=0.9))
    config, told = made(tmp_path, output__name="killed", training__ema=0.9), tmp_path / "told"
    for moment, number in (("any", 5), ("half written", 1), (None, 0)):
        child = children.start(children.train_and_tell, config.to_dict(), str(told), told.exists(), moment, number, 0, GuidedBackbone)
        child.join(120)
        assert child.exitcode == (0 if moment is None else -signal.SIGKILL)
    seen = [json.loads(line) for line in told.read_text().splitlines()]
    assert all(loss == whole[step - 1] for step, loss in seen) and {step for step, _ in seen} == set(range(1, 9))
    tensors = read_tensors(tmp_path / "out/killed.safetensors")
    assert all(torch.equal(tensors[name], value) for name, value in read_tensors(one.path).items())


def test_two_processes_train_what_one_trains(tmp_path):
    pytest.importorskip("accelerate")
    from . import children

    options = {"data__flip": True, "output__save_every": 0}
    expected, result = losses_of(made(tmp_path, data__batch_size=4, **options))
    told = children.train_on(2, made(tmp_path, data__batch_size=2, output__name="two", **options).to_dict(), tmp_path / "told", make=GuidedBackbone)
    (first, tensors), (second, others) = told
    assert first["losses"] == second["losses"] == pytest.approx(expected, rel=2e-4)
    assert tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)
    alone, together = read_tensors(result.path), read_tensors(first["path"])
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-2, atol=2e-4)


def test_a_state_of_another_adapter_is_not_gone_on_from(tmp_path):
    train(made(tmp_path), GuidedBackbone(), should_stop=iter([False] * 5 + [True]).__next__)
    with pytest.raises(ConfigError, match=r"adapter\.kind = full: the saved state was trained with light"):
        train(made(tmp_path, adapter__kind="full"), GuidedBackbone(), resume=True)


# ---------------------------------------------------------------- from one file to the next


def test_the_file_is_tencents_and_says_what_its_tensors_leave_open(tmp_path):
    config = made(tmp_path, adapter__kind="full", adapter__in_channels=1, data__preprocessor="canny", data__preprocessor_values=["low=50", "high=99"],
                  output__dtype="fp16", training__steps=2)
    result = train(config, GuidedBackbone())
    facts, metadata, tensors = read_adapter_facts(result.path), read_metadata(result.path), read_tensors(result.path)
    assert (facts.kind, facts.layout, facts.base_model, facts.in_channels, facts.downscale) == ("full", "sd", "sd_v1", 1, 8)
    assert (facts.preprocessor, facts.resolution) == ("canny", 64) and metadata["lyco_adapter_preprocessor_values"] == "low=50, high=99"
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/t2i-adapter" and metadata["ss_steps"] == "2" and "ss_network_module" not in metadata
    assert {name.split(".")[0] for name in tensors} == {"conv_in", "body"} and "body.2.in_conv.weight" in tensors
    assert {value.dtype for value in tensors.values()} == {torch.float16} and set(metadata) <= {*HELD, *HELD_BY_ADAPTERS}
    assert not any(str(tmp_path) in value for value in metadata.values())
    minimal = train(made(tmp_path, output__metadata="minimal", output__name="small", training__steps=1), GuidedBackbone())
    assert not any(key.startswith("ss_s") for key in read_metadata(minimal.path)) and read_adapter_facts(minimal.path).base_model == "sd_v1"


def test_it_goes_on_from_a_file_and_refuses_one_for_another_model(tmp_path):
    first = train(made(tmp_path, adapter__kind="full", adapter__in_channels=1, adapter__blocks=1), GuidedBackbone())
    start = {"network__start_from": str(first.path), "output__name": "more", "training__steps": 1, "training__learning_rate": 1e-9, "adapter__kind": "full"}
    more = train(made(tmp_path, **start), GuidedBackbone())
    after = read_tensors(more.path)
    for name, value in read_tensors(first.path).items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
    assert open_adapter(more.path).in_channels == 1
    with pytest.raises(ConfigError, match=r"its blocks is 1, adapter\.blocks says 2"):
        train(made(tmp_path, **start, adapter__blocks=2), GuidedBackbone())
    with pytest.raises(ConfigError, match=r"start_from.*its maps have \[4, 8, 8, 8\] channels as sd"):
        train(made(tmp_path, **start), GuidedBackbone(layout="sdxl"))
    with pytest.raises(ConfigError, match=r"network\.start_from"):
        train(made(tmp_path, **{**start, "network__start_from": str(tmp_path / "nowhere.safetensors")}), GuidedBackbone())


# ---------------------------------------------------------------- what a user sees


def test_previews_follow_pictures_that_are_kept_back_beside_what_comes_without(tmp_path):
    make_guided_pictures(tmp_path / "kept", 2, (80, 64))
    config = made(tmp_path, validation__folder=str(tmp_path / "kept"), output__preview_every=4, training__learning_rate=0.05)
    backbone = GuidedBackbone()
    assert train(config, backbone).problems == ()
    folder = tmp_path / "out/edges-previews"
    shown = {path.stem: np.array(Image.open(path)) for path in folder.iterdir()}
    steps = [f"step{step:08}-{number}" for step in (0, 4, 8) for number in (0, 1)]
    assert sorted(shown) == ["control-0", "control-1", "grid", *steps, "without-0", "without-1"]
    assert np.array_equal(shown["control-1"], np.array(Image.open(tmp_path / "kept/1.cond.png").crop((8, 0, 72, 64))))
    assert np.array_equal(shown["without-0"], backbone.preview("a wall, 0", 0)) and shown["without-0"].shape == (64, 64, 3)
    adapter = open_adapter(tmp_path / "out/edges.safetensors")
    control = torch.from_numpy(np.array(Image.open(tmp_path / "kept/1.cond.png").crop((8, 0, 72, 64)))).permute(2, 0, 1)[None] / 255
    with FeatureSession(backbone.unet) as session, torch.no_grad():
        session.set(adapter(control))
        expected = backbone.preview("a wall, 1", 0).astype(int)
    assert np.abs(shown["step00000008-1"] - expected).max() <= 1 and not np.array_equal(shown["step00000008-1"], shown["without-1"])
    plain, _ = losses_of(made(tmp_path, validation__folder=str(tmp_path / "kept"), training__learning_rate=0.05, output__name="plain"))
    shown_too, _ = losses_of(made(tmp_path, validation__folder=str(tmp_path / "kept"), training__learning_rate=0.05, output__preview_every=1))
    assert plain == shown_too  # they change nothing of the training


def test_previews_may_have_prompts_of_their_own(tmp_path):
    train(made(tmp_path, output__preview_every=8, output__preview_prompts=["one", "two", "three", "four", "five"]), GuidedBackbone())
    assert len(list((tmp_path / "out/edges-previews").glob("step00000008-*.png"))) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_check_tells_what_would_be_trained(tmp_path, kind):
    found = check_training(made(tmp_path, adapter__kind=kind), GuidedBackbone(), measure=True)
    words = "\n".join(found.lines())
    assert f"A {kind} adapter, fresh: {found.parameters:,} numbers are trained on the colours of control pictures" in words
    assert "control pictures are files beside them" in words and "0 layers" not in words
    assert found.memory["trained"] == 16 * found.parameters and found.memory["step"] > 0
    result = train(made(tmp_path, adapter__kind=kind, training__steps=1), GuidedBackbone())
    assert abs(result.path.stat().st_size - found.file_bytes) < 30_000


@pytest.mark.parametrize(("changes", "words"), [
    ({"network__targets": ["q"]}, "trains no layers"), ({"network__dora": True}, "knows no dora"), ({"network__max_norm": 1.0}, "trains no layers"),
    ({"data__prior_prompt": "a wall"}, "class pictures have no control pictures"), ({"output__form": "peft"}, "PEFT has no form"),
    ({"training__block_learning_rates": ["mid=0.5"]}, "block_learning_rates"), ({"data__preprocessor": "canny", "data__control_folder": "x"}, "one of the two"),
])
def test_settings_that_say_nothing_of_an_adapter_are_refused(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        made(tmp_path, **changes)


def test_an_unknown_preprocessor_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match="did you mean canny"):
        train(config_of(tmp_path, data__preprocessor="cany"), GuidedBackbone())


def test_the_method_leaves_no_hook_after_an_error(tmp_path):
    backbone = GuidedBackbone()
    method = make_adapter_method(made(tmp_path), backbone)
    assert isinstance(method, AdapterMethod)
    with pytest.raises(RuntimeError, match="away"), method.attached({}, Dropout(made(tmp_path).network, 0)), method.following(torch.rand(1, 3, 64, 64)):
        raise RuntimeError("away")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.unet.modules())
