"""Several networks as one: exactly the sum, or the best of a rank."""

from __future__ import annotations

import pytest
import torch

from lib_lycoris.errors import ConfigError, NetworkFileError
from lib_lycoris.files.safetensors import read_header, read_tensors
from lib_lycoris.tools.merge import Part, merge, read_part
from tests.tools.helpers import CONV, TE, Q, assert_same, deltas, loha, lokr, lora, rand, write, write_locon


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a.safetensors:0.8", Part("a.safetensors", 0.8, 0.8)),
        ("a.safetensors:-1e-1", Part("a.safetensors", -0.1, -0.1)),
        ("a.safetensors", Part("a.safetensors")),
        (r"C:\nets\a.safetensors:0.8", Part(r"C:\nets\a.safetensors", 0.8, 0.8)),
        (r"C:\nets\a.safetensors", Part(r"C:\nets\a.safetensors")),
        ("C:/nets/a.safetensors", Part("C:/nets/a.safetensors")),
        ("/nets/with:colon/a.safetensors", Part("/nets/with:colon/a.safetensors")),
        ("a:b.safetensors:.5", Part("a:b.safetensors", 0.5, 0.5)),
        ("a.safetensors:te=0.5,unet=-1", Part("a.safetensors", 0.5, -1.0)),
        ("a.safetensors:unet=0", Part("a.safetensors", 1.0, 0.0)),
    ],
)
def test_a_file_and_its_strength_are_read(text, part):
    assert read_part(text) == part


@pytest.mark.parametrize(
    "text",
    ["", ":0.5", "a.safetensors:", "a.safetensors:much", "a.safetensors:nan", "a.safetensors:inf", "a.safetensors:1e999", "a.safetensors:te=x", "a:0.5,0.5"],
)
def test_what_is_no_strength_is_told(text):
    with pytest.raises(ConfigError, match=r"FILE:"):
        read_part(text)


def sum_of(parts):
    total = {}
    for path, te, unet in parts:
        for key, delta in deltas(path).items():
            total[key] = total.get(key, 0) + (unet if key[0] == "unet" else te) * delta.flatten(1)
    return total


def two(tmp_path, dtype=torch.float32):
    """Two networks that share some layers, of unlike kinds and ranks."""
    one = write_locon(tmp_path / "one.safetensors", dtype=dtype)
    other = write(
        tmp_path / "two.safetensors",
        loha(Q, (32, 32)) | lora(CONV, (32, 32, 3, 3), 3, tucker=True, seed=70) | lokr("lora_unet_mid_block_attentions_0_proj_out", (64, 64), rank=2),
    )
    return one, other


def test_the_sum_without_a_rank_is_exact_for_unlike_kinds_and_strengths(tmp_path):
    one, other = two(tmp_path)
    done = merge([Part(str(one), 0.5, -0.75), Part(str(other), 1.0, 2.0)], tmp_path / "out.safetensors")
    assert_same(sum_of([(one, 0.5, -0.75), (other, 1.0, 2.0)]), deltas(done.path), 1e-6)
    stored = read_tensors(done.path)
    assert stored[f"{Q}.lora_down.weight"].shape[0] == 2 + 9
    assert stored[f"{Q}.alpha"] == 11
    assert stored[f"{CONV}.lora_down.weight"].shape == (4 + 3, 32, 3, 3)


def test_the_same_network_twice_and_minus_itself(tmp_path):
    one = write_locon(tmp_path / "one.safetensors")
    part = Part(str(one), 0.5, 0.5)
    assert_same(deltas(one), deltas(merge([part, part], tmp_path / "twice.safetensors").path), 1e-6)
    nothing = merge([Part(str(one)), Part(str(one), -1.0, -1.0)], tmp_path / "nothing.safetensors")
    for key, delta in deltas(nothing.path).items():
        assert delta.norm() < 1e-5 * deltas(one)[key].norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_stays_where_it_is_exact_and_is_what_was_asked_for(dtype, tmp_path):
    one = write_locon(tmp_path / "one.safetensors", dtype=dtype, scale=1.0)
    done = merge([Part(str(one)), Part(str(one), 0.3, 0.3)], tmp_path / "exact.safetensors")
    assert_same(sum_of([(one, 1.3, 1.3)]), deltas(done.path), 1e-6)
    assert read_header(done.path).tensors[f"{Q}.lora_down.weight"][0] == dtype
    small = merge([Part(str(one)), Part(str(one), 0.3, 0.3)], tmp_path / "small.safetensors", dtype=dtype)
    assert {kind for name, (kind, _) in read_header(small.path).tensors.items() if not name.endswith("alpha")} == {dtype}
    assert_same(sum_of([(one, 1.3, 1.3)]), deltas(small.path), 1e-2)


def test_a_rank_gives_the_best_approximation_of_the_sum(tmp_path):
    one, other = two(tmp_path)
    done = merge([Part(str(one)), Part(str(other))], tmp_path / "out.safetensors", rank=2)
    found = deltas(done.path)
    for key, delta in sum_of([(one, 1, 1), (other, 1, 1)]).items():
        u, values, vt = torch.linalg.svd(delta, full_matrices=False)
        best = (u[:, :2] * values[:2]) @ vt[:2]
        assert (found[key] - delta).norm() <= (best - delta).norm() * (1 + 1e-4) + 1e-4
    assert len(done.notes) == 1
    assert "of the energy kept" in done.notes[0]


def test_full_differences_norms_and_biases_are_added(tmp_path):
    norm = "lora_unet_conv_norm_out"
    one = write(
        tmp_path / "one.safetensors",
        {f"{Q}.diff": rand(0, 32, 24), f"{Q}.diff_b": rand(1, 32), f"{norm}.w_norm": rand(2, 8), f"{norm}.b_norm": rand(3, 8), f"{TE}.diff_b": rand(4, 96)},
    )
    other = write(tmp_path / "two.safetensors", lora(Q, (32, 24)) | {f"{norm}.w_norm": rand(5, 8)} | {f"{TE}.diff_b": rand(6, 96)})
    stored = read_tensors(merge([Part(str(one)), Part(str(other), 0.5, 2.0)], tmp_path / "out.safetensors").path)
    assert torch.allclose(
        stored[f"{Q}.diff"], rand(0, 32, 24) + 2 * next(iter(deltas(write(tmp_path / "q.safetensors", lora(Q, (32, 24)))).values())), atol=1e-6
    )
    assert torch.equal(stored[f"{Q}.diff_b"], rand(1, 32))
    assert torch.allclose(stored[f"{norm}.w_norm"], rand(2, 8) + 2 * rand(5, 8))
    assert torch.equal(stored[f"{norm}.b_norm"], rand(3, 8))
    assert torch.allclose(stored[f"{TE}.diff_b"], rand(4, 96) + 0.5 * rand(6, 96))


def test_metadata_keeps_what_all_say_and_joins_words(tmp_path):
    common = {"ss_resolution": "(512, 512)", "ss_base_model_version": "sd_v1"}
    one = write_locon(
        tmp_path / "one.safetensors", metadata={**common, "ss_steps": "1", "modelspec.trigger_phrase": "zorbix", "ss_tag_frequency": '{"1_a": {"cat": 2}}'}
    )
    other = write_locon(
        tmp_path / "two.safetensors",
        seed=5,
        metadata={**common, "ss_steps": "2", "modelspec.trigger_phrase": "sks, zorbix", "ss_tag_frequency": '{"1_b": {"dog": 3}}'},
    )
    metadata = read_header(merge([Part(str(one), 0.5, 0.5), Part(str(other))], tmp_path / "both.safetensors").path).metadata
    assert metadata["ss_resolution"] == "(512, 512)"
    assert "ss_steps" not in metadata
    assert metadata["modelspec.trigger_phrase"] == "zorbix, sks"
    assert metadata["ss_tag_frequency"] == '{"1_a": {"cat": 2}, "1_b": {"dog": 3}}'
    assert metadata["ss_output_name"] == "both"
    assert metadata["lyco.recipe"] == "merge one:0.5 two:1"


def test_what_can_not_be_merged_is_told(tmp_path):
    one = write_locon(tmp_path / "one.safetensors")
    xl = write(tmp_path / "xl.safetensors", lora("lora_te2_text_model_encoder_layers_0_mlp_fc1", (32, 32)))
    dora = write(tmp_path / "dora.safetensors", lora(Q, (32, 32)) | {f"{Q}.dora_scale": torch.ones(32, 1)})
    out = tmp_path / "out.safetensors"
    with pytest.raises(NetworkFileError, match=r"different base models.*sd_v1.*sdxl"):
        merge([Part(str(one)), Part(str(xl))], out)
    with pytest.raises(NetworkFileError, match=r"dora.*--checkpoint"):
        merge([Part(str(one)), Part(str(dora))], out)
    with pytest.raises(ConfigError, match="every strength is 0"):
        merge([Part(str(one), 0.0, 0.0)], out)
    with pytest.raises(ConfigError, match="is the input"):
        merge([Part(str(one))], one)
    assert not out.exists()
