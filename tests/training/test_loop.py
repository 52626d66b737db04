from __future__ import annotations

import hashlib
import json
import signal
import threading
from pathlib import Path

import pytest
import torch

from lib_lycoris.errors import ConfigError, DatasetError, LycoError, TrainingError
from lib_lycoris.files.safetensors import read_header, read_tensors
from lib_lycoris.library.catalogue import EXTENSIONS
from lib_lycoris.library.load import open_network
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training import checkpoint, export
from lib_lycoris.training.backbone import Backbone
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train
from lib_lycoris.training.methods import create_layer
from lib_lycoris.training.selection import select_targets
from lib_lycoris.training.stop import stop_on_interrupt

from .fake import FakeBackbone, make_pictures


@pytest.fixture
def config(tmp_path):
    return make_config(tmp_path)


def make_config(folder, **changes):
    make_pictures(folder / "data", 3)
    values = {
        "data.folders": [str(folder / "data")], "data.resolution": 64, "data.batch_size": 2, "training.steps": 12, "training.learning_rate": 0.01,
        "network.rank": 4, "network.alpha": 2, "output.folder": str(folder / "out"), "output.name": "net", "output.save_every": 4, "output.dtype": "fp32",
    }
    return change(TrainConfig(), **{**values, **{key.replace("__", "."): value for key, value in changes.items()}})


def change(config, **values):
    for key, value in values.items():
        config = config.set(key.replace("__", "."), value)
    return config


def photograph(backbone):
    """Everything of the models that a training might leave changed."""
    modules = [backbone.unet, *backbone.text_encoders]
    return (
        [(name, id(value), value.detach().clone(), value.requires_grad, value.grad) for module in modules for name, value in module.named_parameters()],
        [(part.training, len(part._forward_hooks), len(part._forward_pre_hooks)) for module in modules for part in module.modules()],
    )


def assert_as_before(backbone, before):
    after = photograph(backbone)
    assert before[1] == after[1]
    for (name, identity, value, flag, grad), (name2, identity2, value2, flag2, grad2) in zip(before[0], after[0], strict=True):
        assert (name, identity, flag, grad) == (name2, identity2, flag2, grad2) and torch.equal(value, value2)


def losses_of(config, backbone=None, **options):
    losses = []
    result = train(config, backbone or FakeBackbone(), on_step=lambda report: losses.append(report.loss), **options)
    return losses, result


def assert_equal_files(one, two):
    first, second = read_tensors(one), read_tensors(two)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_fake_fulfils_the_contract():
    assert isinstance(FakeBackbone(), Backbone)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_loss_falls(config, prediction):
    losses, result = losses_of(change(config, training__steps=100), FakeBackbone(prediction))
    assert sum(losses[-30:]) < 0.8 * sum(losses[:30])
    assert result.steps == 100 and not result.stopped and result.path.name == "net.safetensors"


def test_the_same_seed_gives_the_same_network_bit_for_bit_and_another_seed_another(tmp_path):
    losses, results = zip(*(losses_of(make_config(tmp_path / str(n), training__seed=min(n, 1))) for n in (1, 2, 0)), strict=True)
    assert losses[0] == losses[1] != losses[2]
    assert_equal_files(results[0].path, results[1].path)


def test_reports_tell_steps_losses_rate_and_time(config):
    reports = []
    result = train(change(config, training__schedule="linear"), FakeBackbone(), on_step=reports.append)
    assert [report.step for report in reports] == list(range(1, 13)) and {report.steps for report in reports} == {12}
    assert reports[-1].seconds_left == 0 and reports[0].seconds_left > 0 and reports[0].smoothed_loss == pytest.approx(reports[0].loss)
    assert reports[6].learning_rate == pytest.approx(0.01 * 0.5) and result.loss == reports[-1].smoothed_loss


@pytest.mark.parametrize("modes", [(True, True), (False, False)])
def test_the_model_is_as_before_after_training(config, modes):
    backbone = FakeBackbone()
    backbone.unet.train(modes[0]).requires_grad_(modes[1])
    backbone.unet.conv_in.weight.requires_grad_(not modes[1])
    before = photograph(backbone)
    train(config, backbone)
    assert_as_before(backbone, before)
    assert not backbone.in_training


@pytest.mark.parametrize("where", ["step", "prepare", "interrupt"])
def test_the_model_is_as_before_after_an_exception(config, where):
    backbone = FakeBackbone()
    backbone.unet.train()
    before = photograph(backbone)
    error = KeyboardInterrupt if where == "interrupt" else ZeroDivisionError

    def fail(*arguments):
        raise error

    if where == "prepare":
        backbone.encode_pictures = fail
    with pytest.raises(error):
        train(config, backbone, on_step=fail)
    assert_as_before(backbone, before)
    assert not backbone.in_training


def test_training_works_where_the_caller_has_gradients_off(tmp_path):
    expected, _ = losses_of(make_config(tmp_path / "a"))
    with torch.no_grad():
        quiet, _ = losses_of(make_config(tmp_path / "b"))
    assert quiet == expected


def test_dropout_of_the_model_is_off_in_training(tmp_path):
    backbone = FakeBackbone()
    backbone.unet.train()
    assert losses_of(make_config(tmp_path / "a"), backbone)[0] == losses_of(make_config(tmp_path / "b"))[0]


@pytest.mark.parametrize("text_encoder", [True, False])
def test_resuming_goes_on_bit_for_bit(tmp_path, text_encoder):
    options = {"training__schedule": "cosine", "training__warmup_steps": 3, "network__text_encoder": text_encoder, "training__min_snr_gamma": 5}
    whole, result = losses_of(make_config(tmp_path / "whole", **options))
    config = make_config(tmp_path / "parts", **options)
    first, stopped = losses_of(config, should_stop=iter([False] * 5 + [True]).__next__)
    assert stopped.stopped and stopped.steps == 5 and stopped.path.name == "net-step00000005.safetensors" and stopped.state.exists()
    second, resumed = losses_of(config, resume=True)
    assert first + second == whole and resumed.steps == 12 and not resumed.stopped
    assert resumed.loss == result.loss
    assert_equal_files(resumed.path, result.path)


def test_states_are_kept_in_a_rolling_set_without_leftovers(config):
    folder = Path(config.output.folder) / "net-states"
    train(change(config, output__save_every=2, output__keep=3), FakeBackbone())
    names = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    assert [name[:13] for name in names] == ["step-00000008", "step-00000010", "step-00000012"]
    (folder / ".step-00000004-aa.safetensors.0000.tmp").write_bytes(b"half")
    result = train(config, FakeBackbone())
    assert "an earlier training net" in result.problems[0]
    later = {path.name for path in folder.iterdir() if path.name != ".lock"}
    assert len(later) == 2 and not later & set(names)


def test_states_with_the_first_ending_are_still_gone_on_from(tmp_path):
    whole, _ = losses_of(make_config(tmp_path / "whole"))
    config = make_config(tmp_path / "parts")
    first, stopped = losses_of(config, should_stop=iter([False] * 5 + [True]).__next__)
    stopped.state.rename(stopped.state.with_suffix(".safetensors"))
    rest, result = losses_of(config, resume=True)
    assert first + rest == whole and result.state.suffix == ".state"


def test_in_a_folder_of_networks_only_networks_look_like_one(tmp_path):
    config = make_config(tmp_path, data__cache="disk", output__save_every=5)
    result = train(config, FakeBackbone())
    assert result.state.is_file() and list(Path(config.output.folder).rglob("*.cached"))
    assert [path for path in Path(config.output.folder).rglob("*") if path.suffix in EXTENSIONS] == [result.path]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, damage):
    whole, _ = losses_of(make_config(tmp_path / "whole"))
    config = make_config(tmp_path / "parts")
    train(config, FakeBackbone(), should_stop=iter([False] * 10 + [True]).__next__)
    newest = max((tmp_path / "parts/out/net-states").iterdir())
    data = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    newest.write_bytes({"truncated": data[:-50], "flipped": data, "empty": b""}[damage])
    rest, result = losses_of(config, resume=True)
    assert rest == whole[8:] and newest.name in result.problems[0]


def test_resuming_where_every_state_is_damaged_is_an_error_that_names_one(config):
    train(config, FakeBackbone())
    for path in (Path(config.output.folder) / "net-states").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(TrainingError, match=r"no state in .*step-0000") as caught:
        train(config, FakeBackbone(), resume=True)
    assert "\n" not in str(caught.value)


def test_resuming_without_a_state_begins_at_the_start_and_says_so(tmp_path):
    expected, _ = losses_of(make_config(tmp_path / "a"))
    losses, result = losses_of(make_config(tmp_path / "b"), resume=True)
    assert losses == expected and "no saved state" in result.problems[0]


def test_a_finished_training_can_be_extended(tmp_path):
    whole, _ = losses_of(make_config(tmp_path / "a", training__steps=20))
    config = make_config(tmp_path / "b")
    first, _ = losses_of(config)
    second, result = losses_of(change(config, training__steps=20), resume=True)
    assert first + second == whole and result.problems == ("resumed with another training.steps: 20, before 12",)


def test_resuming_what_has_come_to_its_end_says_that_nothing_is_left(tmp_path, caplog):
    config = make_config(tmp_path)
    train(config, FakeBackbone())
    losses, result = losses_of(config, resume=True)
    words = "the saved state has 12 of 12 steps already: nothing is left to train; a larger training.steps goes on"
    assert losses == [] and result.problems == (words,) and words in caplog.text


def test_resuming_with_another_network_is_an_error_that_names_the_key(config):
    train(config, FakeBackbone())
    with pytest.raises(ConfigError, match=r"network\.rank = 2: the saved state was trained with 4"):
        train(change(config, network__rank=2), FakeBackbone(), resume=True)


def test_resuming_on_another_checkpoint_is_told(config):
    train(config, FakeBackbone())
    backbone = FakeBackbone()
    backbone.checkpoint_hash = "cd" * 32
    result = train(change(config, training__steps=13), backbone, resume=True)
    assert any("another checkpoint" in problem for problem in result.problems)


def test_nan_stops_with_the_reason_and_keeps_the_last_good_state(tmp_path):
    whole, _ = losses_of(make_config(tmp_path / "whole"))
    config = make_config(tmp_path / "parts")
    backbone = FakeBackbone()
    backbone.poison_at = 6
    before = photograph(backbone)
    with pytest.raises(TrainingError, match=r"the loss of step 7 is nan: lower training\.learning_rate") as caught:
        train(config, backbone)
    assert "\n" not in str(caught.value) and "step-00000006" in str(caught.value)
    assert_as_before(backbone, before)
    rest, _ = losses_of(config, resume=True)
    assert rest == whole[6:]


def test_a_rate_that_is_far_too_high_ends_in_an_error_not_in_a_file(tmp_path):
    with pytest.raises(TrainingError, match="learning_rate"):
        train(make_config(tmp_path, training__learning_rate=10, training__max_grad_norm=0, network__alpha=1e30, training__steps=300), FakeBackbone())
    assert not (tmp_path / "out/net.safetensors").exists()


def fill_disk(monkeypatch, module, after):
    """From the given write on the disk is full."""
    real, count = module.write_tensors, iter(range(1000))

    def write(path, tensors, metadata=None):
        if next(count) >= after:
            Path(path).with_name(".half.tmp").write_bytes(b"")
            Path(path).with_name(".half.tmp").unlink()
            raise LycoError(f"{path} could not be written: No space left on device; free some space or choose another folder")
        real(path, tensors, metadata)

    monkeypatch.setattr(module, "write_tensors", write)


def test_a_full_disk_stops_with_one_line_and_the_state_before_is_good(tmp_path, monkeypatch):
    whole, _ = losses_of(make_config(tmp_path / "whole"))
    config = make_config(tmp_path / "parts")
    with monkeypatch.context() as patch:
        fill_disk(patch, checkpoint, after=1)
        with pytest.raises(TrainingError, match=r"after step 8 could not be saved.*No space left.*step-00000004") as caught:
            train(config, FakeBackbone())
    kept = tmp_path / "parts/out/net-step00000008.safetensors"
    assert "\n" not in str(caught.value) and f"the network after step 8 is saved as {kept}" in str(caught.value) and open_network(kept).layers
    rest, _ = losses_of(config, resume=True)
    assert rest == whole[4:]


def test_a_disk_that_fills_up_at_the_very_end_keeps_the_older_network_and_the_state(tmp_path, monkeypatch):
    config = make_config(tmp_path)
    first = train(change(config, training__seed=5), FakeBackbone()).path
    before = hashlib.sha256(first.read_bytes()).hexdigest()
    with monkeypatch.context() as patch:
        fill_disk(patch, export, after=0)
        with pytest.raises(TrainingError, match=r"the network could not be saved.*resuming it saves the network again"):
            train(config, FakeBackbone())
    assert hashlib.sha256(first.read_bytes()).hexdigest() == before
    losses, result = losses_of(config, resume=True)
    assert losses == [] and hashlib.sha256(result.path.read_bytes()).hexdigest() != before


def test_a_real_write_error_of_the_system_becomes_one_line(config, monkeypatch):
    monkeypatch.setattr("lib_lycoris.files.safetensors.os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(TrainingError, match="No space left on device") as caught:
        train(config, FakeBackbone())
    assert "\n" not in str(caught.value)
    assert [path.name for path in (Path(config.output.folder) / "net-states").iterdir()] == [".lock"]


def test_an_output_folder_that_is_a_file_is_told_before_anything_is_encoded(tmp_path, config):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"output\.folder"):
        train(change(config, output__folder=str(tmp_path / "file")), FakeBackbone())


def test_a_bad_dataset_leaves_the_model_untouched(tmp_path, config):
    with pytest.raises(DatasetError):
        train(change(config, data__folders=[str(tmp_path / "missing")]), FakeBackbone())


def test_fp16_on_a_cpu_is_refused_with_what_to_use(config):
    with pytest.raises(ConfigError, match=r'use "fp32" or "bf16"'):
        train(change(config, training__precision="fp16"), FakeBackbone())


def test_bf16_trains_fp32_parameters(config):
    losses, result = losses_of(change(config, training__precision="bf16", training__steps=60))
    assert sum(losses[-30:]) < sum(losses[:30])
    tensors = read_tensors(result.path)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert not all(torch.equal(tensor, tensor.bfloat16().float()) for tensor in tensors.values())


def test_stopping_before_the_first_step_writes_no_network(config):
    result = train(config, FakeBackbone(), should_stop=lambda: True)
    assert result.stopped and result.path is None and result.steps == 0 and not (Path(config.output.folder) / "net.safetensors").exists()


def test_the_first_ctrl_c_ends_the_step_and_saves_and_the_old_handler_comes_back(config):
    before = signal.getsignal(signal.SIGINT)

    def press(report):
        if report.step == 3:
            signal.raise_signal(signal.SIGINT)

    with stop_on_interrupt() as should_stop:
        result = train(config, FakeBackbone(), on_step=press, should_stop=should_stop)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert result.stopped and result.steps == 3 and result.state.name.startswith("step-00000003")
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_stopping_by_ctrl_c_is_left_alone():
    seen = []

    def work():
        with stop_on_interrupt() as should_stop:
            seen.append((should_stop(), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_what_is_drawn_for_a_sample_does_not_depend_on_the_batch_size(tmp_path):
    seen = []
    for batch_size in (1, 3):
        backbone = FakeBackbone()
        train(make_config(tmp_path / str(batch_size), data__batch_size=batch_size, training__steps=12 // batch_size), backbone)
        seen.append([row for x_t, t in backbone.inputs for row in zip(x_t, t, strict=True)])
    assert len(seen[0]) == len(seen[1]) == 12
    assert all(torch.equal(x1, x2) and t1 == t2 for (x1, t1), (x2, t2) in zip(*seen, strict=True))


def test_dropped_captions_are_really_left_away(tmp_path):
    shares = {}
    for share in (0.0, 0.5, 1.0):
        backbone = FakeBackbone()
        train(make_config(tmp_path / str(share), data__caption_dropout=share, training__steps=16), backbone)
        shares[share] = sum(caption == "" for caption in backbone.captions) / len(backbone.captions)
    assert shares[0.0] == 0 and shares[1.0] == 1 and 0.25 < shares[0.5] < 0.75


def test_captions_are_encoded_once_where_the_text_encoder_is_not_trained(config):
    backbone = FakeBackbone()
    train(change(config, network__text_encoder=False), backbone)
    assert sorted(backbone.captions) == ["colour 0, plain", "colour 1, plain", "colour 2, plain"]


def test_the_text_encoder_has_its_own_rate(tmp_path):
    def movement(**rates):
        result = train(make_config(tmp_path / str(len(list(tmp_path.iterdir()))), training__weight_decay=0, **rates), FakeBackbone())
        ups = {key: tensor.abs().max().item() for key, tensor in read_tensors(result.path).items() if key.endswith("lora_up.weight")}
        return max(value for key, value in ups.items() if "_te_" in key), max(value for key, value in ups.items() if "_unet_" in key)

    equal, slow = movement(), movement(training__text_encoder_learning_rate=1e-5)
    assert slow[0] < equal[0] / 100 and slow[1] > equal[1] / 10


def test_gradient_clipping_bounds_the_gradient(config, monkeypatch):
    norms = []
    real = torch.optim.AdamW.step

    def step(self, *arguments):
        grads = [value.grad for group in self.param_groups for value in group["params"] if value.grad is not None]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        return real(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    train(change(config, training__max_grad_norm=1e-3), FakeBackbone())
    assert max(norms) <= 1.001e-3
    norms.clear()
    train(change(config, training__max_grad_norm=0), FakeBackbone())
    assert max(norms) > 2e-3


def test_locon_trains_the_convolutions_and_lora_only_attention():
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    locon = select_targets(targets, TrainConfig().network)
    lora = select_targets(targets, TrainConfig().set("network.kind", "lora").network)
    attention = {"attn2_to_q", "attn2_to_k", "attn2_to_v", "attn2_to_out_0", "proj_in", "proj_out"}
    assert {key for key in lora if key[0] == "unet"} == {
        ("unet", f"{side}_blocks_0_attentions_0_{'transformer_blocks_0_' if 'attn' in name else ''}{name}") for side in ("down", "up") for name in attention}
    assert {key for key in locon if key[0] == "unet"} - set(lora) == {
        ("unet", f"{side}_blocks_0_resnets_0_{name}") for side in ("down", "up") for name in ("conv1", "conv2", "time_emb_proj")}
    text = {*(f"self_attn_{name}_proj" for name in ("q", "k", "v", "out")), "mlp_fc1", "mlp_fc2"}
    assert {name for component, name in locon if component == "te1"} == {f"text_model_encoder_layers_0_{name}" for name in text}


def test_groups_choose_layers_and_a_group_that_the_model_lacks_is_told():
    backbone = FakeBackbone()
    targets = find_targets(backbone.unet, backbone.text_encoders)
    network = TrainConfig().set("network.targets", "q,io").set("network.text_encoder", False).network
    assert {name.rpartition("_")[2] for _, name in select_targets(targets, network)} == {"q", "in", "out"}
    with pytest.raises(ConfigError, match=r"network\.targets = \['sampler'\]"):
        select_targets(targets, TrainConfig().set("network.targets", "sampler").network)
    with pytest.raises(ConfigError, match=r"network\.text_encoder = true"):
        select_targets(find_targets(backbone.unet, ()), TrainConfig().network)


def test_ranks_and_alphas_go_where_they_belong_and_a_layers_start_depends_on_its_name_alone():
    backbone = FakeBackbone()
    network = change(TrainConfig(), network__rank=4, network__alpha=2, network__conv_rank=3, network__conv_alpha=1).network
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), network)
    layers = {key: create_layer(target, network, 7) for key, target in targets.items()}
    for key, layer in layers.items():
        assert (layer.rank, layer.alpha) == ((3, 1) if key[1].endswith(("conv1", "conv2")) else (4, 2))
    key = list(targets)[3]
    assert torch.equal(create_layer(targets[key], network, 7).lora_down.weight, layers[key].lora_down.weight)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_file_holds_what_was_trained_up_to_the_dtypes_rounding(config, dtype):
    exact = train(config, FakeBackbone())
    rounded = train(change(config, output__dtype=dtype, output__name="rounded"), FakeBackbone())
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    truth = read_tensors(exact.path)
    for key, tensor in read_tensors(rounded.path).items():
        assert torch.equal(tensor, truth[key] if key.endswith("alpha") else truth[key].to(kind))
    network = open_network(rounded.path)
    assert set(network.targets.values()) == set(select_targets(find_targets(FakeBackbone().unet, FakeBackbone().text_encoders), config.network))


def test_the_opened_file_gives_the_delta_that_was_trained(config, monkeypatch):
    kept = {}
    real = export.network_tensors
    monkeypatch.setattr(export, "network_tensors", lambda layers, *rest, **named: kept.update(layers) or real(layers, *rest, **named))
    backbone = FakeBackbone()
    network = open_network(train(config, backbone).path)
    targets = find_targets(backbone.unet, backbone.text_encoders)
    assert len(network.layers) == len(kept) > 10
    for name, layer in network.layers.items():
        key = network.targets[name]
        weight = targets[key].module.weight
        assert torch.equal(layer.delta(weight), kept[key].delta(weight).detach()) and layer.delta(weight).abs().max() > 0


def test_the_metadata_tells_the_training_but_no_path_and_no_user(tmp_path):
    config = make_config(tmp_path / "home-of-somebody", output__dtype="fp16")
    result = train(config, FakeBackbone())
    metadata = read_header(result.path).metadata
    assert metadata["ss_network_module"] == "networks.lora" and metadata["ss_network_dim"] == "4" and metadata["ss_steps"] == "12"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "4", "conv_alpha": "2.0"}
    assert metadata["ss_output_name"] == metadata["modelspec.title"] == "net" and metadata["ss_sd_model_name"] == "tiny.safetensors"
    assert json.loads(metadata["ss_tag_frequency"])["captions"] == {"plain": 3, "colour 0": 1, "colour 1": 1, "colour 2": 1}
    text = json.dumps(metadata)
    assert "somebody" not in text and "private" not in text and str(tmp_path) not in text
    small = read_header(train(change(config, output__metadata="minimal"), FakeBackbone()).path).metadata
    assert set(small) <= {"ss_v2", "ss_base_model_version", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args"}


def test_the_hash_in_the_metadata_is_that_of_the_file(config):
    from lib_lycoris.files.hashes import model_hash

    path = train(config, FakeBackbone()).path
    assert read_header(path).metadata["sshs_model_hash"] == model_hash(path)
