from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.patching.session import Session
from lib_lycoris.prompt.request import Request

from .patching.helpers import assert_untouched, generator, photograph
from .patching.trees import Holder, OpenClipText


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.unet, self.text = Holder(a=nn.Linear(8, 8), b=nn.Linear(8, 4)), OpenClipText(depth=1)

    def forward(self):
        return self.unet.b(self.unet.a(self.text(torch.tensor([[1, 2]]))))


NAMES = {"lora_unet_a": (8, 8), "lora_unet_b": (8, 4), "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (8, 8),
         "lora_te_text_model_encoder_layers_0_mlp_fc1": (8, 32)}


def write_network(path, names, seed=0):
    draw = generator(seed)
    tensors = {}
    for name, (inner, outer) in names.items():
        down, up = torch.randn(2, inner, generator=draw), torch.randn(outer, 2, generator=draw)
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.0)}
    save_file(tensors, path)
    return tensors


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def generation(tmp_path, model):
    write_network(tmp_path / "good.safetensors", NAMES)
    write_network(tmp_path / "other.safetensors", NAMES, seed=5)
    write_network(tmp_path / "partly.safetensors", {**NAMES, "lora_unet_c": (8, 8)})
    write_network(tmp_path / "foreign.safetensors", {"lora_unet_joint_blocks_0": (8, 8), "lora_unet_joint_blocks_1": (8, 8)})
    (tmp_path / "broken.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    return Generation(Catalogue([tmp_path]), NetworkCache(1 << 20), Session(model.unet, [model.text]))


def test_requests_are_on_until_the_restore_and_then_nothing_is_left(generation, model, tmp_path):
    before, plain = photograph(model), model()
    assert generation.apply([Request("good", te=0.5, unet=-1.0)]) == []
    tensors = write_network(tmp_path / "again.safetensors", NAMES)
    reference = Model()
    block = reference.text.transformer.resblocks[0]
    with torch.no_grad():
        for key, weight, strength in (("unet_a", reference.unet.a.weight, -1.0), ("unet_b", reference.unet.b.weight, -1.0),
                                      ("te_text_model_encoder_layers_0_self_attn_q_proj", block.attn.in_proj_weight[:8], 0.5),
                                      ("te_text_model_encoder_layers_0_mlp_fc1", block.mlp.c_fc.weight, 0.5)):
            weight += strength / 2 * tensors[f"lora_{key}.lora_up.weight"] @ tensors[f"lora_{key}.lora_down.weight"]
    assert torch.allclose(model(), reference(), rtol=1e-4, atol=1e-4)
    generation.restore()
    assert_untouched(model, before)
    assert torch.equal(model(), plain)


def test_each_call_replaces_the_one_before_and_the_empty_one_restores(generation, model):
    before = photograph(model)
    generation.apply([Request("good")])
    good = model()
    generation.apply([Request("other")])
    assert not torch.allclose(model(), good)
    generation.apply([Request("good")])
    assert torch.equal(model(), good)
    assert generation.apply([]) == []
    assert_untouched(model, before)


def test_an_unknown_name_and_a_broken_file_are_told_and_the_others_are_on(generation, model):
    assert generation.apply([Request("good")]) == []
    good = model()
    problems = generation.apply([Request("god"), Request("broken"), Request("good"), Request("god")])
    assert torch.equal(model(), good)
    assert len(problems) == 2 and all(problem.startswith("lyco: ") and problem.isprintable() for problem in problems)
    assert "'god'" in problems[0] and "good" in problems[0]
    assert "broken.safetensors" in problems[1]


def test_layers_without_a_home_are_counted_in_words_and_the_rest_is_on(generation, model):
    plain = model()
    problems = generation.apply([Request("partly"), Request("foreign"), Request("good")])
    assert problems == [
        "lyco: 2 of 2 layers of 'foreign' had no home, as 'lora_unet_joint_blocks_0' (the model has no such layer); this file is for another model",
        "lyco: 1 of 5 layers of 'partly' had no home, as 'lora_unet_c' (the model has no such layer)",
    ]
    assert not torch.allclose(model(), plain)
    assert generation.apply([Request("partly")], refiner=True) == [
        "lyco: 1 of 5 layers of 'partly' had no home on the refiner, as 'lora_unet_c' (the model has no such layer); refiner=0 leaves it off there"]
    assert generation.apply([Request("foreign", refiner=0.0)], refiner=True) == []
    assert len(generation.apply([Request("foreign", refiner=0.0)])) == 1


def test_what_would_replace_the_models_own_values_is_told_once(generation, model, tmp_path):
    tensors = {f"base_model.model.{key}": torch.zeros(8) for key in ("a.base_layer.bias", "b.weight", "c.bias")}
    factors = {"base_model.model.a.lora_A.weight": torch.zeros(2, 8), "base_model.model.a.lora_B.weight": torch.zeros(8, 2)}
    save_file({**factors, **tensors}, tmp_path / "biased.safetensors")
    generation.catalogue.scan()
    problem, = generation.apply([Request("biased")])
    assert problem.startswith("lyco: 3 tensors of 'biased' are left out, as 'base_model.model.") and "modules_to_save" in problem
    assert generation.apply([Request("good")]) == []


def test_a_file_that_was_deleted_meanwhile_is_a_problem_and_no_exception(generation, tmp_path):
    assert generation.apply([Request("good"), Request("other")]) == []
    (tmp_path / "good.safetensors").unlink()
    problems = generation.apply([Request("good"), Request("other")])
    assert len(problems) == 1 and "good" in problems[0]
    assert {effect.strength for effect in generation.session.plan.effects} == {1.0}


