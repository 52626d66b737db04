"""What is said before a training is what then comes true."""

from __future__ import annotations

import itertools
import json
import sys
import types

import pytest
import torch
from PIL import Image

from lib_lycoris.errors import ConfigError, DatasetError
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.loop import train
from lib_lycoris.training.memory import estimate_memory, kept_bytes
from lib_lycoris.training.methods import create_layer
from lib_lycoris.training.preflight import check_training
from lib_lycoris.training.selection import select_targets
from lib_lycoris.training.trainer import Trainer

from .fake import FakeBackbone, Level, make_pictures


def config_for(folder, out, **network):
    return TrainConfig.from_dict({
        "data": {"folders": [str(folder)], "resolution": 64}, "network": {"rank": 2, **network}, "training": {"steps": 4},
        "output": {"name": "net", "folder": str(out)},
    })


@pytest.mark.parametrize("network", [{}, {"kind": "lora"}, {"conv_rank": 3}, {"text_encoder": False}, {"targets": ["q", "io"]}])
def test_layers_and_numbers_are_those_that_a_training_makes(network, tmp_path):
    make_pictures(tmp_path / "pictures")
    config, backbone = config_for(tmp_path / "pictures", tmp_path, **network), FakeBackbone()
    found = check_training(config, backbone)
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network)
    layers = {key: create_layer(target, config.network, 0) for key, target in targets.items()}
    assert found.unet_layers + found.text_encoder_layers == len(layers)
    assert found.parameters == sum(value.numel() for layer in layers.values() for value in layer.parameters())


def test_the_file_becomes_about_as_large_as_was_said(tmp_path):
    make_pictures(tmp_path / "pictures")
    config, backbone = config_for(tmp_path / "pictures", tmp_path), FakeBackbone()
    found = check_training(config, backbone)
    size = train(config, backbone).path.stat().st_size
    assert found.file_bytes / 2 < size < found.file_bytes * 2


def test_steps_words_and_doubts_are_told(tmp_path):
    make_pictures(tmp_path / "pictures", count=3)
    for number, path in enumerate(sorted((tmp_path / "pictures").glob("*.txt"))):
        path.write_text(f"a zorb, {number}", encoding="utf-8")
    found = check_training(config_for(tmp_path / "pictures", tmp_path, rank=512, kind="lora"), FakeBackbone(), side=512)
    text = "\n".join(found.lines())
    for words in ("3 pictures.", "4 steps", "zorb (3)", "only 3 pictures", "network.rank = 512 is more than", "made for pictures of 512 pixels"):
        assert words in text


def test_a_bad_dataset_is_an_error_as_in_the_training_itself(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        check_training(config_for(tmp_path / "none", tmp_path), FakeBackbone())


def said(config):
    return "\n".join(check_training(config, FakeBackbone()).lines())


def test_what_would_fail_in_the_training_fails_in_the_check(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", types.ModuleType("prodigyopt"))
    folder = make_pictures(tmp_path / "pictures", 3)
    config = config_for(folder, tmp_path)
    (tmp_path / "classes").mkdir()
    (tmp_path / "classes" / "x.png").write_bytes(b"no picture")
    (tmp_path / "loha.safetensors").write_bytes(train(config_for(folder, tmp_path / "out", kind="loha"), FakeBackbone()).path.read_bytes())
    for key, value, words in (
        ("data.prior_folder", tmp_path / "none", "check data.prior_folder"), ("data.prior_folder", tmp_path / "classes", "x.png can't be read"),
        ("validation.folder", tmp_path / "none", "check validation.folder"), ("output.folder", folder / "0.png" / "deeper", "0.png is a file"),
        ("training.optimizer", "prodigy", "one rate for all layers"), ("network.kind", "adalora", "leave none of the 4 steps"),
        ("network.start_from", tmp_path / "none", "does not exist"), ("network.start_from", tmp_path / "loha.safetensors", "is of kind loha"),
    ):
        also = {"prodigy": {"training.text_encoder_learning_rate": "0.5"}, "adalora": {"network.warmup": "9"}}.get(value, {})
        for work in (check_training, train):
            with pytest.raises((DatasetError, ConfigError)) as caught:
                work(config.change({key: str(value), **also}), FakeBackbone())
            assert words in str(caught.value) or (work is train and key == "output.folder"), key


def test_settings_that_may_not_be_meant_are_told(tmp_path):
    config = config_for(make_pictures(tmp_path / "pictures", 3), tmp_path, block_ranks=["nowhere=4", "down_blocks=1"])
    text = said(config.change({"training.optimizer": "adamw", "data.batch_size": "5", "training.block_learning_rates": '["nix=0.5", "down_blocks=0"]'}))
    for words in ("network.block_ranks = nowhere=4: no layer's name has that pattern", "training.block_learning_rates = nix=0.5: no layer's",
                  "data.batch_size = 5: more than the 3 pictures"):
        assert words in text, words
    assert "= down_blocks" not in text and "replaced" not in text
    train(config, FakeBackbone())
    assert "net.safetensors is there already and will be replaced" in said(config)


def test_repeated_pictures_are_seen_more_often_than_there_are_epochs(tmp_path):
    config = config_for(make_pictures(tmp_path / "5_cat", 2), tmp_path)
    assert "20 steps: 2 epochs, in which a picture is seen about 10 times" in said(config.set("training.steps", 20))
    assert "fewer training.steps may do" in said(config.set("training.steps", 1010))
    plain = make_pictures(tmp_path / "plain", 2)
    assert "1 step: every picture is seen about 0.5 times" in said(config.change({"training.steps": 1, "data.folders": [str(plain)]}))


def test_class_pictures_that_are_learned_too_are_told(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 3)
    config = config_for(folder, tmp_path).set("data.prior_folder", str(folder))
    words = f"3 class pictures are among those to learn, too, byte for byte, as {folder / '0.png'}"
    assert words in said(config) and any(words in problem for problem in train(config, FakeBackbone()).problems)


def test_validation_pictures_that_are_trained_on_are_told(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 3)
    config = config_for(folder, tmp_path).set("validation.folder", str(folder))
    words = f"3 of 3 pictures in validation.folder are trained on, too, byte for byte, as {folder / '0.png'}"
    assert words in said(config) and any(words in problem for problem in train(config, FakeBackbone()).problems)


def test_a_text_encoder_alone_is_told(tmp_path):
    text = said(config_for(make_pictures(tmp_path / "pictures", 3), tmp_path, only=["text_model"]))
    assert "layers of the text encoder, the UNet is left as it is: " in text and "layers of the UNet" not in text


def test_sizes_crops_and_what_is_scaled_up_are_told_by_name(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 3)
    Image.new("RGB", (400, 64)).save(folder / "banner.png")
    (folder / "banner.txt").write_text("a banner")
    Image.new("RGB", (16, 16)).save(folder / "tiny.png")
    (folder / "tiny.txt").write_text("tiny")
    found = check_training(config_for(folder, tmp_path), FakeBackbone())
    assert found.sizes == ((64, 64, 5),) and found.framed[0].path.endswith("banner.png") and found.framed[0].cropped == pytest.approx(1 - 64 / 400)
    text = "\n".join(found.lines())
    for words in ("Trained at 64×64 (5) pixels.", "banner.png from 400×64 to 64×64, scaled by 1.00, 84% cut off", "Scaled up: 1 of 5", "tiny.png from 16×16",
                  "1 picture loses more than 25% to cropping", "1 picture is scaled up more than 2 times", "A caption as it is trained: colour 0, plain"):
        assert words in text, words
    assert json.loads(json.dumps(found.to_dict()))["sizes"] == [[64, 64, 5]] and not list(tmp_path.glob("*/class*"))


def test_pictures_kept_back_class_pictures_and_long_captions_are_counted(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 4)
    config = config_for(folder, tmp_path)
    for key, value in {"validation.share": "0.25", "data.prior_prompt": "a thing", "data.prior_pictures": "7", "training.gradient_accumulation": "3"}.items():
        config = config.set(key, value)
    backbone = FakeBackbone()
    backbone.count_tokens = lambda caption: 80 if "0" in caption else 5
    found = check_training(config, backbone)
    assert (found.kept_back, found.draws, found.class_missing, found.long_captions, found.epochs) == (1, 3, 7, 1, 4.0)
    assert "4 pictures, 1 of them kept back to judge by." in found.lines()
    assert "0 class pictures for prior preservation, 7 more are made by the model first." in found.lines()


def test_a_word_that_the_model_reads_in_pieces_is_told_unless_it_is_the_word_that_is_trained(tmp_path):
    folder = make_pictures(tmp_path / "pictures", 3)
    for path in folder.glob("*.txt"):
        path.write_text("a Zorb", encoding="utf-8")
    config, backbone = config_for(folder, tmp_path), FakeBackbone()
    backbone.count_tokens = lambda text: 3 if "zorb" in text.lower() else 1
    assert check_training(config, backbone).pieces == (("zorb", 3),)
    assert check_training(config.set("embedding.word", "Zorb"), backbone).pieces == ()


@pytest.mark.parametrize("text_encoder", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_memory_of_a_step_is_estimated_as_one_of_full_size_needs_it(tmp_path, text_encoder, batch):
    make_pictures(tmp_path / "pictures", 3, size=(320, 256))
    config = config_for(tmp_path / "pictures", tmp_path, text_encoder=text_encoder).set("data.resolution", "320").set("data.batch_size", str(batch))
    backbone, measured = FakeBackbone(), []
    found = check_training(config, backbone, measure=True)
    weights = {value.data_ptr() for value in (*backbone.unet.parameters(), *backbone.text_encoders[0].parameters())}
    predict = backbone.predict

    def counted(x_t, t, conditioning):
        with kept_bytes(weights=weights) as count:
            output = predict(x_t, t, conditioning)
        measured.append((x_t.shape, count()))
        return output

    backbone.predict = counted
    train(config.set("training.steps", "1"), backbone)
    assert measured[0][0][0] == batch and measured[0][1] * 0.8 < found.memory["step"] < measured[0][1] * 1.25
    assert found.memory["trained"] == found.parameters * 16 and found.memory["total"] == sum(found.memory[part] for part in ("model", "trained", "step"))
    assert any("GiB of memory, an estimate" in line for line in found.lines())


def test_checkpointed_blocks_need_less_and_the_model_is_left_as_it_was(tmp_path):
    backbone = FakeBackbone()
    backbone.unet.down_blocks = torch.nn.ModuleList(Level() for _ in range(6))
    before = [(name, value.clone(), value.requires_grad) for name, value in backbone.unet.named_parameters()]
    config = config_for(tmp_path, tmp_path, kind="lora")
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), config.network)
    plain, less = (estimate_memory(config.set("training.gradient_checkpointing", said), backbone, targets, 10, (512, 512)).step for said in ("false", "true"))
    assert less < plain * 0.8
    after = list(backbone.unet.named_parameters())
    assert all(torch.equal(value, now) and flag == now.requires_grad for (_, value, flag), (_, now) in zip(before, after, strict=True))
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in backbone.unet.modules())


@pytest.mark.parametrize(("checkpointing", "dora"), [(False, False), (True, False), (True, True)])
def test_memory_of_a_step_is_what_a_profiler_sees_or_somewhat_more(tmp_path, checkpointing, dora):
    backbone = FakeBackbone()
    backbone.unet.down_blocks = torch.nn.ModuleList(Level() for _ in range(6))
    folder = make_pictures(tmp_path / "pictures", 1, size=(192, 192))
    config = config_for(folder, tmp_path, kind="locon", rank=2, dora=dora, text_encoder=False).set("data.resolution", "192")
    config = config.set("training.gradient_checkpointing", str(checkpointing).lower()).set("training.steps", "2")
    found = check_training(config, backbone, measure=True)
    peaks, real = [], Trainer.step

    def measured(self, step):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            loss = real(self, step)
        sizes = [event.nbytes() for event in sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns()) if event.name() == "[memory]"]
        peaks.append(max(itertools.accumulate(sizes)))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", measured)
        train(config, backbone)
    assert 0.85 * peaks[1] < found.memory["step"] < 1.5 * peaks[1]
