from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import ConfigError
from lib_lycoris.files.safetensors import read_tensors, write_tensors
from lib_lycoris.library.load import open_network
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training.loop import train
from lib_lycoris.training.methods import make_method
from lib_lycoris.training.selection import select_targets
from lib_lycoris.training.start import start_from

from .fake import FakeBackbone
from .rig import config_of
from .rig import start as fill
from .test_loop import losses_of, make_config
from .test_methods import METHODS
from .test_methods import config_of as method_config

PLAIN = [name for name in METHODS if name != "adalora"]


@pytest.mark.parametrize("name", PLAIN)
def test_the_fresh_layers_are_what_the_file_holds(name, tmp_path):
    path = train(method_config(tmp_path, name), FakeBackbone()).path
    backbone = FakeBackbone()
    settings = method_config(tmp_path, name).network
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), settings)
    method = make_method(settings, targets, 12, 5, torch.device("cpu"))
    start_from(str(path), method.layers)
    network = open_network(path)
    found = {network.targets[key]: layer for key, layer in network.layers.items()}
    for key, layer in method.layers.items():
        weight = targets[key].module.weight.detach()
        torch.testing.assert_close(layer.delta(weight).detach(), found[key].delta(weight), rtol=1e-6, atol=1e-8)
        assert all(value.dtype == torch.float32 and value.requires_grad for value in layer.parameters())


def test_a_training_goes_on_where_the_file_stands(tmp_path):
    _, first = losses_of(make_config(tmp_path / "a", training__steps=80, data__batch_size=3))
    later, result = losses_of(make_config(tmp_path / "b", training__steps=1, data__batch_size=3, network__start_from=str(first.path)))
    fresh, _ = losses_of(make_config(tmp_path / "c", training__steps=1, data__batch_size=3))
    assert later[0] < fresh[0] and result.path.exists()


def test_layers_with_a_rate_of_zero_stay_as_they_are_in_the_file(tmp_path):
    first = train(make_config(tmp_path / "a"), FakeBackbone()).path
    config = make_config(tmp_path / "b", network__start_from=str(first), training__block_learning_rates=["down_blocks*=0"], network__max_norm=1e-3)
    second = train(config, FakeBackbone()).path
    one, two = read_tensors(first), read_tensors(second)
    assert one.keys() == two.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, two[key]) == ("down_blocks" in key or key.endswith("alpha"))
    adalora = make_config(tmp_path / "c", network__kind="adalora", network__start_from=str(first), training__block_learning_rates=["down_blocks*=0"])
    with pytest.raises(ConfigError, match="don't go together for adalora"):
        train(adalora, FakeBackbone())


def write_adalora(path, layers):
    """PEFT's spelling of it, as a file with LyCORIS' prefix has it."""
    tensors = {f"lora_unet_{name}.{part}": value for (_, name), layer in layers.items() for part, value in layer.tensors().items()}
    write_tensors(path, tensors, {})


def test_adalora_goes_on_from_pefts_form(tmp_path):
    backbone = FakeBackbone()
    settings = config_of(network__kind="adalora", network__alpha=None, network__text_encoder=False, network__target_rank=2, network__init_rank=3).network
    targets = select_targets(find_targets(backbone.unet, backbone.text_encoders), settings)
    first, second = (make_method(settings, targets, 12, seed, torch.device("cpu")) for seed in (1, 2))
    fill(first.layers)
    write_adalora(tmp_path / "ada.safetensors", first.layers)
    start_from(str(tmp_path / "ada.safetensors"), second.layers)
    for key, layer in first.layers.items():
        for name, value in layer.named_parameters():
            assert torch.equal(value, dict(second.layers[key].named_parameters())[name])


@pytest.mark.parametrize(("changes", "words"), [
    ({"network.rank": 2}, r"has lora_down\.weight \[4, .*use the rank"),
    ({"network.alpha": 4}, r"has the scale 0\.5 .* the settings give 1"),
    ({"network.kind": "loha"}, "is of kind lora, the settings make loha"),
    ({"network.dora": True}, "the settings make lora with DoRA"),
    ({"network.kind": "adalora", "network.alpha": None, "network.text_encoder": False}, "AdaLoRA goes on from a file in PEFT"),
    ({"network.text_encoder": False}, r"it has a layer te1\..*which the settings of \[network\] do not train"),
    ({"network.targets": ["q", "k", "v", "out", "ff", "proj", "resnet", "sampler", "io"]}, r"layer unet\.conv_.* is not in it"),
    ({"network.start_from": "/nowhere/else.safetensors"}, r"network\.start_from = /nowhere/else\.safetensors"),
])
def test_what_does_not_fit_is_named_before_anything_is_encoded(tmp_path, changes, words):
    path = train(make_config(tmp_path / "a", training__steps=1), FakeBackbone()).path
    if changes.get("network.kind") == "adalora":
        tensors = {key: value for key, value in read_tensors(path).items() if "attn2_to_q" in key or "attn2_to_k" in key or "attn2_to_v" in key}
        path = tmp_path / "few.safetensors"
        write_tensors(path, tensors, {})
    backbone = FakeBackbone()
    backbone.encode_pictures = lambda *arguments: pytest.fail("encoded")
    with pytest.raises(ConfigError, match=words) as caught:
        train(make_config(tmp_path / "b", **{"network.start_from": str(path), **changes}), backbone)
    assert "\n" not in str(caught.value)
