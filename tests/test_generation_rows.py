"""The law of rows: in one batch every picture's rows are what they are when that row is alone with its own networks."""
from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from lib_lycoris.errors import RequestError
from lib_lycoris.generation import Generation
from lib_lycoris.library.cache import NetworkCache
from lib_lycoris.library.catalogue import Catalogue
from lib_lycoris.library.load import open_network
from lib_lycoris.patching.session import Session
from lib_lycoris.prompt.request import Request, parse_request

from .patching.helpers import assert_untouched, generator, photograph
from .patching.trees import CONTEXT, SD1, LdmUNet, OpenClipText

LAYERS = {  # kohya's name: shape of the weight
    "lora_unet_conv_in": (4, 4, 3, 3), "lora_unet_down_blocks_0_resnets_1_conv2": (4, 4, 3, 3), "lora_unet_down_blocks_1_attentions_0_proj_in": (8, 8, 1, 1),
    "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (8, CONTEXT),
    "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v": (8, 8), "lora_unet_mid_block_resnets_0_time_emb_proj": (8, 16),
    "lora_unet_up_blocks_2_attentions_1_transformer_blocks_0_ff_net_2": (8, 32), "lora_unet_up_blocks_3_resnets_2_conv_shortcut": (4, 8, 1, 1),
    "lora_te_text_model_encoder_layers_0_mlp_fc1": (32, 8), "lora_te_text_model_encoder_layers_1_self_attn_q_proj": (8, 8),
}


def write_lora(path, seed):
    draw, tensors = generator(seed), {}
    for name, shape in LAYERS.items():
        tensors[f"{name}.lora_up.weight"] = torch.randn(shape[0], 2, *[1] * (len(shape) - 2), generator=draw) * 0.4
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, *shape[1:], generator=draw) * 0.4
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)


def write_loha(path, seed):
    draw, tensors = generator(seed), {}
    for name, shape in LAYERS.items():
        for side in ("1", "2"):
            tensors[f"{name}.hada_w{side}_a"] = torch.randn(shape[0], 2, generator=draw) * 0.5
            tensors[f"{name}.hada_w{side}_b"] = torch.randn(2, torch.Size(shape[1:]).numel(), generator=draw) * 0.5
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)


def write_difference(path, seed):
    draw = generator(seed)
    save_file({f"{name}.diff": torch.randn(shape, generator=draw) * 0.2 for name, shape in LAYERS.items()}, path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("networks")
    write_lora(path / "lora.safetensors", 1)
    write_lora(path / "second.safetensors", 2)
    write_loha(path / "loha.safetensors", 3)
    write_difference(path / "full.safetensors", 4)
    return path


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return LdmUNet(**SD1).double()


@pytest.fixture
def text():
    torch.manual_seed(1)
    return OpenClipText().double()


@pytest.fixture
def generation(folder, unet, text):
    return Generation(Catalogue([folder]), NetworkCache(1 << 24), Session(unet, [text]))


def ask(*tags):
    return [parse_request(tag.split(":")) for tag in tags]


def inputs(rows, seed=7):
    draw = generator(seed)
    return (torch.randn(rows, 4, 8, 8, generator=draw, dtype=torch.float64), torch.linspace(0.1, 0.9, rows, dtype=torch.float64),
            torch.randn(rows, 3, CONTEXT, generator=draw, dtype=torch.float64))


def alone(folder, module, strengths, *arguments, component="unet"):
    """The module's output with these networks merged by a session of its own, each with one number."""
    trees = (module, ()) if component == "unet" else (None, (module,))
    with Session(*trees) as session, torch.no_grad():
        session.apply([(open_network(folder / f"{name}.safetensors"), strength) for name, strength in strengths.items()])
        return module(*arguments)


@torch.no_grad()
def assert_rows(folder, generation, unet, rows, expected, step, steps, cuts=()):
    """Each row of a call (or of several, cut after these rows) is the row alone with the strengths that are expected of it."""
    x, t, context = inputs(len(rows))
    generation.begin_step(step, steps, rows)
    edges = [0, *cuts, len(rows)]
    found = torch.cat([unet(x[start:end], t[start:end], context[start:end]) for start, end in pairwise(edges)])
    generation.restore()
    for number, row in enumerate(rows):
        reference = alone(folder, unet, expected[row], *(part[number:number + 1] for part in (x, t, context)))
        torch.testing.assert_close(found[number:number + 1], reference, rtol=1e-5, atol=1e-5)


POSITIVE = [["lora:0.3:0.8", "{dense}:unet=1@0,0@1"], ["lora:-1:on=cond"], []]
NEGATIVE = [[], ["lora:te=0:unet=0.5"], ["{dense}:0.7", "{dense}:te=0:unet=-0.2"]]


def expected_rows(dense):
    return {(0, False): {"lora": 0.8, dense: 0.5}, (0, True): {"lora": 0.8, dense: 0.5}, (1, False): {"lora": -1}, (1, True): {"lora": 0.5},
            (2, False): {}, (2, True): {dense: 0.5}}


def fill(prompts, dense):
    return [ask(*(tag.format(dense=dense) for tag in tags)) for tags in prompts]


@pytest.mark.parametrize("cuts", [(), (3,), (1, 2, 5)])
@pytest.mark.parametrize("dense", ["second", "loha", "full"])
def test_every_row_of_a_batch_is_the_row_alone_with_its_own_networks(folder, generation, unet, dense, cuts):
    assert generation.apply_pictures(fill(POSITIVE, dense), fill(NEGATIVE, dense)) == []
    assert generation.dynamic
    expected = expected_rows(dense)
    assert_rows(folder, generation, unet, [(0, False), (1, False), (2, False), (0, True), (1, True), (2, True)], expected, 2, 5, cuts)


def test_rows_may_come_in_any_order_and_number(folder, generation, unet):
    generation.apply_pictures(fill(POSITIVE, "loha"), fill(NEGATIVE, "loha"))
    assert_rows(folder, generation, unet, [(1, False), (1, False), (0, True), (2, True), (1, True)], expected_rows("loha"), 2, 5)


def test_restoring_leaves_no_trace_of_dials(generation, unet):
    before = photograph(unet)
    generation.apply_pictures(fill(POSITIVE, "full"), fill(NEGATIVE, "full"))
    generation.begin_step(0, 5, [(0, False), (1, True)])
    unet(*inputs(2))
    generation.restore()
    assert_untouched(unet, before)
    assert not generation.dynamic


def test_what_is_the_same_for_all_rows_and_steps_is_merged(folder, generation, unet):
    same = ask("lora:0.3:0.8", "full:0.5", "lora:0.1")
    assert generation.apply_pictures([same] * 3, [[]] * 3) == []
    assert not generation.dynamic and generation.text_steps(50) == []
    x, t, context = inputs(2)
    with torch.no_grad():
        batched = unet(x, t, context)
    generation.apply(same)
    assert not generation.dynamic
    with torch.no_grad():
        torch.testing.assert_close(unet(x, t, context), batched, rtol=0, atol=0)
    generation.restore()
    torch.testing.assert_close(batched, alone(folder, unet, {"lora": 0.9, "full": 0.5}, x, t, context))


@torch.no_grad()
@pytest.mark.parametrize("name", ["lora", "full"])
def test_a_schedule_is_a_loop_that_applies_each_steps_number_by_hand(folder, generation, unet, name):
    assert generation.apply(ask(f"{name}:unet=1@0,0@1")) == [] and generation.dynamic
    x, t, context = inputs(2)
    for step in range(5):
        generation.begin_step(step, 5, [(0, False), (0, True)])
        x = x - 0.1 * unet(x, t, context)
    generation.restore()
    expected = inputs(2)[0]
    for step in range(5):
        expected = expected - 0.1 * alone(folder, unet, {name: 1 - step / 4}, expected, t, context)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)


def test_start_and_stop_switch_a_network_in_the_middle(folder, generation, unet):
    for step, strength in ((0, 0), (2, 1), (4, 0)):
        generation.apply(ask("lora:start=2:stop=4"))
        assert_rows(folder, generation, unet, [(0, False)], {(0, False): {"lora": strength}}, step, 5)


def test_one_prompt_stands_for_every_picture(folder, generation, unet):
    generation.apply(ask("lora:0.5:on=cond"))
    rows = [(picture, negative) for negative in (False, True) for picture in range(4)]
    assert_rows(folder, generation, unet, rows, {row: {} if row[1] else {"lora": 0.5} for row in rows}, 0, 1)


def test_the_later_pass_and_a_refiner_have_their_own_strengths(folder, generation, unet):
    tags = ask("lora:0.5:hr=0.25:refiner=0.75")
    for where, strength in (({}, 0.5), ({"hires": True}, 0.25), ({"refiner": True}, 0.75)):
        generation.apply(tags, **where)
        assert not generation.dynamic
        assert_rows(folder, generation, unet, [(0, False)], {(0, False): {"lora": strength}}, 0, 1)


def test_block_weights_and_patterns_scale_single_layers(folder, generation, unet):
    generation.presets = {"MINE": "1," + "0," * 6 + "0.5," + "0," * 8 + "0"}
    assert generation.apply(ask("lora:lbw=MINE:layers=time_emb_proj=2,te=0.5")) == []
    factors = {effect.target.name: effect.strength for effect in generation.session.plan.effects}
    assert factors == {"mid_block_attentions_0_transformer_blocks_0_attn1_to_v": 0.5, "mid_block_resnets_0_time_emb_proj": 1.0,
                       "text_model_encoder_layers_0_mlp_fc1": 0.5, "text_model_encoder_layers_1_self_attn_q_proj": 0.5}


def test_the_same_network_twice_counts_with_the_sum_also_with_other_blocks(folder, generation, unet):
    generation.apply(ask("lora:0.25", "lora:0.5", "lora:1:only=mid_block"))
    strengths = {effect.target.name: effect.strength for effect in generation.session.plan.effects}
    assert {strength for name, strength in strengths.items() if name.startswith("mid_block")} == {1.75}
    assert {strength for name, strength in strengths.items() if not name.startswith("mid_block")} == {0.75}


@pytest.mark.parametrize(("tag", "message"), [
    ("lora:lbw=NOPE", "'lora': block preset lbw='NOPE' is not known; known are NONE"),
    ("lora:only=attn9", "'attn9' is in no name of 'lora'"),
    ("full:dyn=1", "dyn=1 of 'full'"),
    ("nobody", "'nobody'"),
])
def test_a_tag_that_can_not_be_used_is_told_once_and_the_others_are_on(generation, tag, message):
    problems = generation.apply_pictures([ask(tag, "second")] * 2, [ask(tag), []])
    assert len(problems) == 1 and message in problems[0] and problems[0].startswith("lyco: ") and problems[0].isprintable()
    assert {effect.strength for effect in generation.session.plan.effects} == {1.0}


def test_on_cond_in_a_negative_prompt_is_told_to_act_nowhere(generation):
    problems = generation.apply_pictures([[]], [ask("lora:on=cond")])
    assert len(problems) == 1 and "acts nowhere" in problems[0] and generation.session.plan.effects == ()


def test_fewer_ranks_are_a_network_of_fewer_ranks(folder, generation):
    assert generation.apply(ask("lora:dyn=1")) == []
    cut = {effect.target.name: effect.layer.rank for effect in generation.session.plan.effects}
    assert set(cut.values()) == {1} and len(cut) == len(LAYERS)


def test_each_text_gets_the_networks_that_act_on_its_rows(folder, generation, text):
    generation.apply_pictures([ask("lora:0.5:0"), ask("full:1:0:on=cond")], [ask("lora:0.25:0"), ask("lora:-1:0")])
    tokens = torch.tensor([[1, 2, 3]])
    expected = {(0, False): {"lora": 0.5}, (0, True): {"lora": 0.75}, (1, False): {"full": 1}, (1, True): {"lora": -1}}
    with torch.no_grad():
        found = {}
        for row in expected:
            generation.use_text(*row, 0, 5)
            found[row] = text(tokens)
        generation.restore()
        for row, strengths in expected.items():
            reference = alone(folder, text, {name: (strength, 0) for name, strength in strengths.items()}, tokens, component="te")
            torch.testing.assert_close(found[row], reference, rtol=1e-5, atol=1e-5)


def test_texts_share_a_key_exactly_where_they_have_the_same_networks(generation):
    generation.apply_pictures([ask("lora:0.5"), ask("lora:0.25", "lora:0.25:1"), ask("lora:unet=1:te=0")], [[], [], ask("lora:0.5")])
    keys = {row: generation.text_key(*row, 0, 1) for row in [(0, False), (0, True), (1, False), (2, False), (2, True)]}
    assert len({keys[0, False], keys[0, True], keys[1, False], keys[2, True]}) == 1
    assert keys[2, False] != keys[0, False]


def test_texts_are_encoded_anew_where_a_key_changes_and_nowhere_else(generation):
    generation.apply_pictures([ask("lora:te=1@2,0@2:unet=1"), []], [[], ask("full:start=4")])
    assert generation.text_steps(6) == [2, 4]
    generation.apply(ask("lora:te=0:unet=1@0,0@1"))
    assert generation.text_steps(6) == []
    generation.apply(ask("lora:te=1@0,0@1"))
    assert generation.text_steps(4) == [1, 2, 3]


def test_turning_texts_over_leaves_the_unets_part_as_it_is(generation, unet):
    generation.apply(ask("lora:te=1@0,0@1:unet=0.5", "second:unet=0@0,1@1"))
    x, t, context = inputs(2)
    rows = [(0, False), (0, True)]
    with torch.no_grad():
        generation.begin_step(2, 4, rows)
        before = unet(x, t, context)
        generation.use_text(0, False, 2, 4)
        generation.begin_step(2, 4, rows)
        torch.testing.assert_close(unet(x, t, context), before, rtol=0, atol=0)


def test_rows_that_can_not_be_told_apart_are_told_of(generation, unet):
    generation.apply_pictures([ask("lora"), []], [[], []])
    generation.begin_step(0, 5, [(0, False), (1, False), (0, True)])
    with torch.no_grad():
        unet(*inputs(2))
        assert generation.late_problems == []
        unet(*inputs(2))  # one row more than the step has
    assert len(generation.late_problems) == 1 and generation.late_problems[0].startswith("lyco: ")


def test_after_an_exception_nothing_is_on(generation, unet, monkeypatch):
    before = photograph(unet)
    generation.apply(ask("lora"))
    monkeypatch.setattr(generation, "_leftovers", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generation.apply(ask("full", "second"))
    assert_untouched(unet, before)
    assert not generation.dynamic and generation.text_key(0, False, 0, 1) == ()


def test_each_file_is_loaded_once_however_often_it_is_asked_for(generation, monkeypatch):
    loads = []
    load = generation.cache.load
    monkeypatch.setattr(generation.cache, "load", lambda path: loads.append(path.name) or load(path))
    generation.apply_pictures([ask("lora:0.1", "lora.safetensors:0.2", "full")] * 3, [ask("lora:0.5:lbw=OUTD")] * 3)
    assert sorted(loads) == ["full.safetensors", "lora.safetensors"]


def test_prompts_and_negative_prompts_go_in_pairs(generation):
    with pytest.raises(RequestError, match="2 prompts and 1 negative"):
        generation.apply_pictures([[], []], [[Request("lora")]])
