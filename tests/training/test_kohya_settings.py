"""kohya's settings become ours as far as there is an equivalent, and everything else that was set is named."""

from __future__ import annotations

import json

import pytest

from lib_lycoris.errors import ConfigError
from lib_lycoris.training.config import TrainConfig
from lib_lycoris.training.kohya_settings import LARGEST, import_settings
from lib_lycoris.training.presets import nested

PAGE = {
    "LoRA_type": "LyCORIS/LoHa", "network_dim": 8, "network_alpha": 4, "conv_dim": 4, "conv_alpha": 1, "factor": -1, "learning_rate": 1e-4, "unet_lr": 2e-4,
    "text_encoder_lr": 5e-5, "lr_scheduler": "cosine", "lr_warmup": 10, "optimizer": "AdamW8bit", "train_batch_size": 2, "epoch": 10, "max_train_steps": "",
    "mixed_precision": "bf16", "save_precision": "fp16", "seed": "1234", "max_resolution": "768,768", "enable_bucket": True, "min_bucket_reso": 640,
    "max_bucket_reso": 2048, "cache_latents": True, "xformers": "xformers", "color_aug": True, "flip_aug": False, "clip_skip": 2, "min_snr_gamma": 5,
    "noise_offset": 0.05, "train_data_dir": "/data/img", "output_dir": "/out", "output_name": "cat", "v2": False, "max_grad_norm": 1,
    "gradient_checkpointing": True, "keep_tokens": "1", "shuffle_caption": True, "caption_extension": ".txt", "ip_noise_gamma": 0.1,
}
SCRIPT = """
[network_arguments]
network_module = "networks.lora"
network_dim = 16
network_alpha = 8
network_args = ["conv_dim=8", "conv_alpha=4"]
[optimizer_arguments]
optimizer_type = "Prodigy"
learning_rate = 1.0
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 3
lr_warmup_steps = 0.05
optimizer_args = ["weight_decay=0.05", "d_coef=0.8"]
[training_arguments]
max_train_steps = 1200
resolution = "1024,1024"
network_train_unet_only = true
masked_loss = true
unheard_of = 3
"""


def test_a_file_of_kohyas_page():
    found = import_settings(json.dumps(PAGE))
    config = TrainConfig.from_dict(nested(found.values))
    network, training, data = config.network, config.training, config.data
    assert (network.kind, network.rank, network.alpha, network.conv_rank, network.conv_alpha) == ("loha", 8, 4.0, 4, 1.0)
    assert (training.learning_rate, training.text_encoder_learning_rate, training.epochs, training.steps) == (2e-4, 5e-5, 10, None)
    assert (training.optimizer, training.schedule, training.precision, training.seed) == ("adamw8bit", "cosine", "bf16", 1234)
    assert (data.resolution, data.bucket_min, data.bucket_max, data.shuffle_tags, data.keep_tags) == (768, 640, 2048, True, 1)
    assert (data.folders, config.output.name, config.output.folder, config.output.dtype) == (("/data/img",), "cat", "/out", "fp16")
    assert (training.min_snr_gamma, training.noise_offset, training.gradient_checkpointing, config.model.clip_skip) == (5.0, 0.05, True, 2)
    named = [note.split(" ")[0] for note in found.notes]
    assert named == ["lr_warmup", "color_aug", "ip_noise_gamma"]


def test_a_file_for_kohyas_scripts():
    found = import_settings(SCRIPT)
    config = TrainConfig.from_dict(nested(found.values))
    assert (config.network.kind, config.network.rank, config.network.conv_rank, config.network.conv_alpha) == ("locon", 16, 8, 4.0)
    assert (config.training.optimizer, config.training.learning_rate, config.training.weight_decay) == ("prodigy", 1.0, 0.05)
    assert (config.training.schedule, config.training.restarts, config.training.steps, config.training.warmup_steps) == ("cosine_restarts", 3, 1200, 60)
    assert (config.data.resolution, config.network.text_encoder, config.data.masks) == (1024, False, "files")
    assert sorted(note.split(" ")[0] for note in found.notes) == ["optimizer_args.d_coef", "unheard_of"]


@pytest.mark.parametrize(("said", "kind"), [
    ({"LoRA_type": "Standard"}, "lora"), ({"LoRA_type": "Kohya LoCon", "conv_dim": 4}, "locon"), ({"LoRA_type": "LyCORIS/LoKr", "factor": 8}, "lokr"),
    ({"LoRA_type": "LyCORIS/iA3"}, "ia3"), ({"LoRA_type": "LyCORIS/Native Fine-Tuning"}, "full"),
    ({"network_module": "lycoris.kohya", "network_args": ["algo=loha"]}, "loha"), ({"network_module": "networks.lora", "network_dim": 4}, "lora"),
])
def test_kinds(said, kind):
    found = import_settings(json.dumps(said))
    assert found.values["network.kind"] == kind and found.notes == ()
    assert found.values.get("network.factor") == (8 if kind == "lokr" else None)


def test_a_kind_that_is_not_trained_here_is_named_and_none_is_chosen():
    found = import_settings(json.dumps({"LoRA_type": "LyCORIS/Diag-OFT", "network_dim": 4}))
    assert "network.kind" not in found.values and "diag-oft" in found.notes[0]


@pytest.mark.parametrize(("said", "word"), [
    ({"optimizer": "Adafactor"}, "Adafactor"), ({"train_batch_size": 5000}, "batch_size"), ({"max_resolution": "512,768", "seed": "x"}, "seed"),
    ({"seed": [1]}, "seed"), ({"network_train_text_encoder_only": True}, "text_encoder_only"),
])
def test_what_is_not_understood_is_a_note_and_no_error(said, word):
    found = import_settings(json.dumps({"LoRA_type": "Standard", **said}))
    assert any(word in note for note in found.notes)
    TrainConfig.from_dict(nested(found.values))


@pytest.mark.parametrize("text", ["", "{", "no settings", "[]", "{}", "[1, 2]", "x" * (LARGEST + 1)])
def test_what_is_no_settings_file_is_told(text):
    with pytest.raises(ConfigError, match="the settings to import"):
        import_settings(text)
