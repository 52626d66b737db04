from __future__ import annotations

import pytest

from lib_lycoris.errors import RequestError
from lib_lycoris.files.spelling import diffusers_to_ldm_unet
from lib_lycoris.prompt.blocks import (
    BLOCKS,
    PRESETS,
    VECTORS,
    BlockWeights,
    block_of,
    parse_blocks,
    parse_elements,
    parse_presets,
    read_blocks,
    render_elements,
)

INSIDE = {"resnets": ("conv1", "norm2", "time_emb_proj", "conv_shortcut"), "attentions": ("proj_in", "transformer_blocks_0_attn2_to_k", "proj_out")}
NAMES = [
    *(f"{side}_blocks_{level}_{kind}_{layer}_{part}" for side, layers in (("down", 2), ("up", 3)) for level in range(4) for layer in range(layers)
      for kind, parts in INSIDE.items() for part in parts),
    *(f"down_blocks_{level}_downsamplers_0_conv" for level in range(3)), *(f"up_blocks_{level}_upsamplers_0_conv" for level in range(3)),
    "mid_block_resnets_0_conv1", "mid_block_attentions_0_proj_in", "mid_block_resnets_1_conv2", "conv_in",
]
OUTSIDE = ["time_embedding_linear_1", "time_embedding_linear_2", "add_embedding_linear_1", "conv_norm_out", "conv_out"]


def block_by_ldm(name):
    """lora-block-weight's way: which LDM block the name lies in."""
    words = diffusers_to_ldm_unet(name, sdxl=True).split("_")
    return {"input": "IN", "output": "OUT"}[words[0]] + f"{int(words[2]):02}" if words[0] != "middle" else "M00"


@pytest.mark.parametrize("name", NAMES)
def test_a_layers_block_is_the_one_that_its_ldm_name_says(name):
    assert block_of("unet", name) == block_by_ldm(name)


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_in_no_block_of_ldm_is_in_none_here(name):
    assert block_of("unet", name) == ""


@pytest.mark.parametrize("count", sorted(VECTORS))
def test_each_value_of_a_vector_is_the_factor_of_its_block(count):
    values = [round(0.01 * (place + 1), 2) for place in range(count)]
    weights = parse_blocks(",".join(map(str, values)))
    by_block = dict(zip(VECTORS[count], values, strict=True))
    assert weights.factor("te1", "text_model_encoder_layers_0_mlp_fc1") == weights.factor("te2", "text_model_final_layer_norm") == by_block["BASE"]
    for name in NAMES:
        assert weights.factor("unet", name) == by_block.get(block_by_ldm(name), 0)
    assert {weights.factor("unet", name) for name in OUTSIDE} == {1}


@pytest.mark.parametrize(("text", "value"), [(",".join("0" * 17), 0), (",".join(["0.5"] * 12), 0.5), ("NONE", 0), ("ALL", 1), ("ALL0.5", 0.5)])
def test_a_vector_of_one_value_is_this_value_everywhere(text, value):
    weights = parse_blocks(text)
    assert {weights.factor("unet", name) for name in [*NAMES, *OUTSIDE]} | {weights.factor("te1", "x")} == {value}


LORA = {  # lora-block-weight's own, by its 17 blocks
    "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0", "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1", "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
    "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0", "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0", "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
    "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0", "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1", "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
}


@pytest.mark.parametrize("preset", sorted(LORA))
def test_a_preset_is_lora_block_weights_on_the_blocks_that_a_lora_of_sd_1_has(preset):
    ours, theirs = (dict(zip(VECTORS[len(text.split(","))], text.split(","), strict=True)) for text in (PRESETS[preset], LORA[preset]))
    assert {block: ours[block] for block in theirs} == theirs


def test_a_users_presets_stand_beside_or_in_place_of_the_known_ones():
    users = parse_presets("# mine\nMINE:" + ",".join("1" * 12) + "\n\nMIDD: " + ",".join("0" * 17) + " # other\nNOFF:OUT00-OUT05:ff:0\n")
    assert sorted(users) == ["MIDD", "MINE", "NOFF"]
    presets = {**PRESETS, **users}
    assert parse_blocks("MIDD", presets).factor("unet", "mid_block_resnets_0_conv1") == 0
    assert parse_blocks("MINE", presets).factor("unet", "conv_out") == 1
    weights = BlockWeights(element_preset="NOFF").resolve(presets)
    assert weights.factor("unet", "up_blocks_0_attentions_0_transformer_blocks_0_ff_net_2") == 0
    assert weights.factor("unet", "up_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q") == 1


@pytest.mark.parametrize("line", ["no colon", "A:1,2,3", "1A:1", "A:IN05-OUT99:attn:0", "A:IN05:attn", ":1", "A:R," + ",".join("1" * 16)])
def test_a_bad_line_of_presets_is_named_with_its_number(line):
    with pytest.raises(RequestError, match="line 2 of the block presets"):
        parse_presets("# a remark\n" + line)


def test_x_stands_for_a_value_given_beside():
    presets = {"RAMP": "X,X+0.1,X-0.1," + ",".join("0" * 9)}
    weights = read_blocks("RAMP", x=0.5).resolve(presets)
    assert weights.vector[:3] == pytest.approx((0.5, 0.6, 0.4)) and weights.preset == ""


@pytest.mark.parametrize(("text", "message"), [
    ("1,1,1", "a block vector of 3 values; give 12"), ("1," * 16 + "x", "'x' is not a number"), ("R," + "1," * 15 + "1", "random block value R"),
    ("U," + "1," * 15 + "1", "random block value U"), ("", "is not a number"), ("NOPE", "lbw='NOPE' is not known; known are NONE, ALL"),
    ("ATTNDEEPON", "lbw='ATTNDEEPON' is not known"),
])
def test_bad_block_weights_are_named(text, message):
    with pytest.raises(RequestError, match=message):
        parse_blocks(text)


def test_a_preset_must_be_looked_up_before_it_has_factors():
    with pytest.raises(RequestError, match="'MIDD' was not looked up"):
        read_blocks("MIDD").factor("unet", "conv_in")


def slow_element(text, key, block):
    """Whether an element meets an LDM name, said once more: blocks, then words, each list perhaps negated, all by substrings."""
    blocks, words = (part.split(" ") for part in text.split(":")[:2])
    met = []
    for entries in (blocks, words):
        negated = entries[0] == "NOT"
        met.append(any(entry in key + block for entry in (entries[1:] if negated else entries)) != negated)
    return all(met)


@pytest.mark.parametrize("text", ["IN04 IN05:attn:0.5", "NOT IN04:attn:0.5", "M00:NOT attn proj:0.5", ":to_k:0.5", "OUT03::0.5", "::0.5",
                                  "NOT M00:NOT to_k:0.5", ":emb:0.5", "IN07:skip in_layers_2:0.5", ":IN05:0.5"])
def test_an_element_meets_what_it_meets_in_lora_block_weight(text):
    weights = BlockWeights(elements=parse_elements(text))
    for name in NAMES:
        met = slow_element(text, f"diffusion_model_{diffusers_to_ldm_unet(name, sdxl=True)}", block_by_ldm(name))
        assert (weights.factor("unet", name) == 0.5) == met, name


def test_elements_take_ranges_in_either_order_replace_the_vector_and_the_last_one_holds():
    weights = BlockWeights(vector=(0.3,) * 26, elements=parse_elements("OUT05-IN05:attn:0.7,M00:attn:0.9"))
    assert weights.factor("unet", "mid_block_attentions_0_transformer_blocks_0_attn1_to_q") == 0.9
    assert weights.factor("unet", "up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_q") == 0.7
    assert weights.factor("unet", "mid_block_resnets_0_conv1") == weights.factor("unet", "down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q") == 0.3
    assert parse_elements(render_elements(weights.elements)) == weights.elements


@pytest.mark.parametrize("text", ["IN05:attn", "IN05-IN99:attn:0", "IN05:attn:x", "a-b-c:x:1"])
def test_a_bad_element_is_named(text):
    with pytest.raises(RequestError):
        parse_elements(text)


ATTENTION = "down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.mark.parametrize(("pattern", "component", "name", "met"), [
    ("attn2", "unet", ATTENTION, True), ("attn", "unet", ATTENTION, False), ("attn*", "unet", ATTENTION, True), ("attn?", "unet", ATTENTION, True),
    ("down_blocks_1", "unet", ATTENTION, True), ("down_blocks", "unet", ATTENTION, True), ("own_blocks", "unet", ATTENTION, False),
    ("unet", "unet", ATTENTION, True), ("te", "unet", ATTENTION, False), ("te", "te1", "text_model_x", True), ("te2", "te1", "text_model_x", False),
    ("IN04", "unet", ATTENTION, True), ("IN*", "unet", ATTENTION, True), ("OUT*", "unet", ATTENTION, False), ("BASE", "te2", "x", True),
    ("attn2_to_?", "unet", ATTENTION, True), ("*", "unet", "conv_in", True), ("conv*", "unet", "up_blocks_0_resnets_0_conv2", True),
    ("conv", "unet", "up_blocks_0_resnets_0_conv2", False), ("attn1*to_k", "unet", ATTENTION, False),
])
def test_patterns_are_whole_words_of_component_block_and_name(pattern, component, name, met):
    assert BlockWeights(only=(pattern,)).factor(component, name) == float(met)
    assert BlockWeights(layers=((pattern, 0.25),)).factor(component, name) == (0.25 if met else 1)
    assert BlockWeights(only=(pattern,)).idle_patterns([(component, name)]) == ([] if met else [pattern])


def test_the_last_pattern_multiplies_the_vector_and_only_rules_out():
    weights = BlockWeights(vector=(0.5,) * 26, layers=(("attn2", 0.5), ("to_k", 2.0)), only=("IN04", "te"))
    assert weights.factor("unet", ATTENTION) == 1
    assert weights.factor("unet", ATTENTION.replace("to_k", "to_q")) == 0.25
    assert weights.factor("unet", "mid_block_resnets_0_conv1") == 0
    assert weights.factor("te1", "x") == 0.5


@pytest.mark.parametrize("pattern", ["", "a b", "[a]", "a-b", "("])
def test_a_bad_pattern_fails_when_the_weights_are_made(pattern):
    with pytest.raises(RequestError, match="is no pattern"):
        BlockWeights(only=(pattern,))


def test_a_pattern_full_of_stars_is_no_trap():
    assert BlockWeights(only=("*a" * 30 + "b",)).factor("unet", "a" * 200) == 0


def test_blocks_are_in_order():
    assert len(BLOCKS) == 26 and BLOCKS[13] == "M00"
