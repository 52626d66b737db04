from __future__ import annotations

import pytest
from torch import nn

from lib_lycoris.files.spelling import diffusers_to_ldm_unet, normal_name
from lib_lycoris.patching.targets import find_targets

from .trees import SD1, SDXL, Holder, LdmUNet, OpenClipText, clip_text, diffusers_unet

KINDS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)


def shapes(targets):
    return {key: tuple(target.shape) for key, target in targets.items()}


@pytest.fixture(params=[("sd1", SD1), ("sdxl", SDXL)], ids=["sd1", "sdxl"])
def both_unets(request):
    kind, layout = request.param
    return LdmUNet(**layout), diffusers_unet(kind)


def test_an_ldm_and_a_diffusers_unet_have_the_same_targets_of_the_same_shapes(both_unets):
    ldm, diffusers = both_unets
    own = {("unet", name.replace(".", "_")) for name, module in diffusers.named_modules() if isinstance(module, KINDS)}
    assert set(find_targets(diffusers, [])) == own
    assert shapes(find_targets(ldm, [])) == shapes(find_targets(diffusers, []))


def test_every_module_is_found_by_its_own_its_diffusers_and_its_ldm_name(both_unets):
    ldm, diffusers = both_unets
    in_ldm, in_diffusers = find_targets(ldm, []), find_targets(diffusers, [])
    ldm_paths = {module: path.replace(".", "_") for path, module in ldm.named_modules()}
    for key, target in in_ldm.items():
        path = ldm_paths[target.module]
        assert in_ldm["unet", path] is target
        assert in_diffusers["unet", path] is in_diffusers[key]


def test_targets_have_the_names_that_the_file_spelling_gives_them(both_unets):
    ldm, _ = both_unets
    targets = find_targets(ldm, [])
    for path, module in ldm.named_modules():
        if isinstance(module, KINDS):
            assert targets[normal_name(f"lora_unet_{path}")].module is module
    for component, name in targets:
        assert normal_name(f"lora_unet_{name}") == (component, name)
        assert targets.get((component, diffusers_to_ldm_unet(name, sdxl=hasattr(ldm, "label_emb")))) is targets[component, name]


def test_a_unet_is_found_within_the_model_that_holds_it():
    unet = LdmUNet()
    model = Holder(first_stage_model=nn.Conv2d(3, 3, 3), model=Holder(diffusion_model=unet))
    assert shapes(find_targets(model, [])) == shapes(find_targets(unet, []))


def test_modules_of_other_classes_are_no_targets_and_nothing_gives_nothing():
    assert len(find_targets(None, [])) == 0
    assert len(find_targets(nn.Sequential(nn.SiLU(), nn.PReLU(), nn.Dropout()), [])) == 0


def test_a_tree_of_no_known_naming_keeps_its_own_names():
    assert set(find_targets(Holder(joint=nn.Linear(2, 2)), [])) == {("unet", "joint")}


CLIP_NAMES = {
    "text_model_embeddings_token_embedding", "text_model_embeddings_position_embedding", "text_model_final_layer_norm",
    *(f"text_model_encoder_layers_{number}_{part}" for number in range(2) for part in (
        "self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "layer_norm1", "layer_norm2", "mlp_fc1", "mlp_fc2")),
}


def clip_of_transformers_4():
    """CLIPTextModel as it was with its text_model level."""
    return Holder(text_model=clip_text())


def hosts_clip():
    """As the WebUI wraps it, its token embedding included."""
    inner = clip_of_transformers_4()
    embeddings = inner.text_model.embeddings
    embeddings.token_embedding = Holder(wrapped=embeddings.token_embedding)
    return Holder(wrapped=Holder(transformer=inner))


@pytest.mark.parametrize("make", [clip_text, clip_of_transformers_4, hosts_clip])
def test_a_clip_text_encoder_has_the_same_names_however_it_is_wrapped(make):
    targets = find_targets(None, [make()])
    assert set(targets) == {("te1", name) for name in CLIP_NAMES}
    assert targets["te1", "encoder_layers_0_mlp_fc1"] is targets["te1", "text_model_encoder_layers_0_mlp_fc1"]
    assert all(normal_name(f"lora_te_{name}") == ("te1", name) for name in CLIP_NAMES)


def test_a_projection_beside_the_encoder_is_a_target_under_its_own_name():
    tree = Holder(wrapped=Holder(text_model=clip_text(), text_projection=nn.Linear(8, 8, bias=False)))
    assert set(find_targets(None, [tree])) == {("te1", name) for name in (*CLIP_NAMES, "text_projection")}


@pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: Holder(wrapped=Holder(model=tree))])
def test_open_clip_has_the_names_of_clip_with_q_k_and_v_as_rows_of_one_weight(wrap):
    tree = OpenClipText()
    tree.visual = Holder(transformer=Holder(resblocks=OpenClipText().transformer.resblocks), conv1=nn.Conv2d(3, 8, 2))
    targets = find_targets(None, [clip_text(), wrap(tree)])
    assert {name for component, name in targets if component == "te2"} == CLIP_NAMES - {"text_model_embeddings_position_embedding"}
    attention = tree.transformer.resblocks[1].attn
    k = targets["te2", "text_model_encoder_layers_1_self_attn_k_proj"]
    assert (k.module, k.hooked) == (attention, attention)
    assert (k.weight, k.bias, k.rows, tuple(k.shape)) == ("in_proj_weight", "in_proj_bias", slice(8, 16), (8, 8))
    out = targets["te2", "text_model_encoder_layers_1_self_attn_out_proj"]
    assert (out.module, out.hooked, out.weight, out.rows) == (attention.out_proj, attention, "weight", None)
    assert targets["te2", "transformer_resblocks_1_attn_k_proj"] is k
    for component, name in targets:
        assert normal_name(f"lora_{component}_{name}") == (component, name)
