"""Textual inversions in every form, written as their own tools write them, read here, and the other way round."""

from __future__ import annotations

import base64
import json
import os
from collections import OrderedDict

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from lib_lycoris.errors import ConfigError, LycoError, NetworkFileError
from lib_lycoris.files.embedding_pictures import TEXT, draw_embedding, is_picture
from lib_lycoris.files.embeddings import (
    is_embedding,
    pack_embeddings,
    read_embedding,
    write_embedding,
    write_embedding_picture,
    write_legacy_embedding,
)
from lib_lycoris.files.reader import open_tensor_file
from lib_lycoris.files.safetensors import read_header, read_tensors, write_tensors


def draw(count, width, seed=0, dtype=torch.float32):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def a1111(vectors, **other):
    """What A1111 saves."""
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "inner", "step": 700, "sd_checkpoint": "abcd1234",
            "sd_checkpoint_name": "v1-5", **other}


def parameters(vectors):
    """As before A1111: the original's ParameterDict, and tokens as tensors."""
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": nn.ParameterDict({"*": nn.Parameter(vectors)})}


L, H, G = draw(3, 768), draw(2, 1024), draw(3, 1280)
PICKLED = {
    "A1111": (a1111(L), {"clip_l": L}),
    "A1111, gradient and half precision": (a1111(nn.Parameter(L.half())), {"clip_l": L.half().float()}),
    "the original's ParameterDict": (parameters(L), {"clip_l": L}),
    "an old ParameterDict's state": ({"string_to_param": OrderedDict({"*": L})}, {"clip_l": L}),
    "diffusers": ({"<cat-toy>": L[0]}, {"clip_l": L[:1]}),
    "diffusers, several vectors": ({"<cat-toy>": L}, {"clip_l": L}),
    "diffusers, a token for each vector": ({"<a>_1": L[1], "<a>": L[0], "<a>_2": L[2]}, {"clip_l": L}),
    "SD 2": (a1111(H), {"clip_h": H}),
    "kohya": ({"emb_params": L.to(torch.bfloat16)}, {"clip_l": L.to(torch.bfloat16).float()}),
    "kohya, SDXL": ({"clip_l": L, "clip_g": G}, {"clip_l": L, "clip_g": G}),
    "diffusers' advanced script, SDXL": ({"text_encoders_0": L, "text_encoders_1": G}, {"clip_l": L, "clip_g": G}),
    "two tokens of SDXL's widths": ({"g": G, "l": L}, {"clip_l": L, "clip_g": G}),
    "text encoders by number, of another size": ({"text_encoder": L[:, :16], "text_encoder_2": L[:, :32]}, {"clip_l": L[:, :16], "clip_g": L[:, :32]}),
    "OneTrainer, with vectors behind the text encoder": ({"clip_l": L, "clip_g": G, "clip_l_out": L, "clip_g_out": G}, {"clip_l": L, "clip_g": G}),
    "a state dict in a state dict": ({"state_dict": a1111(L)}, {"clip_l": L}),
    "a tensor alone": (L, {"clip_l": L}),
    "double precision with an axis too many": ({"x": L.double()[None]}, {"clip_l": L}),
    "a slice of a table": ({"x": torch.cat([L, L, L])[3:6]}, {"clip_l": L}),
}


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) and found[key].dtype == torch.float32 for key in found)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("form", PICKLED)
def test_a_pickle_of_every_form_gives_its_vectors(tmp_path, form, zipped):
    content, expected = PICKLED[form]
    torch.save(content, tmp_path / "word.pt", _use_new_zipfile_serialization=zipped)
    assert same(read_embedding(tmp_path / "word.pt").vectors, expected)


@pytest.mark.parametrize("form", ["diffusers", "diffusers, a token for each vector", "kohya", "kohya, SDXL", "diffusers' advanced script, SDXL",
                                  "OneTrainer, with vectors behind the text encoder"])
def test_a_safetensors_of_every_form_gives_its_vectors(tmp_path, form):
    content, expected = PICKLED[form]
    write_tensors(tmp_path / "word.safetensors", content, {"ss_steps": "40", "a": "b"})
    read = read_embedding(tmp_path / "word.safetensors")
    assert same(read.vectors, expected) and read.metadata == {"ss_steps": "40", "a": "b"} and read.step == 40


def test_what_a_file_says_of_itself_is_told(tmp_path):
    torch.save(a1111(L), tmp_path / "word.pt")
    read = read_embedding(tmp_path / "word.pt")
    assert (read.name, read.word, read.step, read.base_model) == ("inner", "word", 700, "sd_v1")
    assert read.metadata == {"name": "inner", "step": "700", "sd_checkpoint": "abcd1234", "sd_checkpoint_name": "v1-5"}
    torch.save({"<cat-toy>": H}, tmp_path / "learned_embeds.bin")
    read = read_embedding(tmp_path / "learned_embeds.bin")
    assert (read.name, read.word, read.step, read.base_model) == ("<cat-toy>", "learned_embeds", None, "sd_v2")
    write_embedding(tmp_path / "xl.v2.safetensors", {"clip_l": L, "clip_g": G})
    read = read_embedding(tmp_path / "xl.v2.safetensors")
    assert (read.name, read.word, read.base_model) == ("xl.v2", "xl.v2", "sdxl_base_v1-0")


def test_metadata_tells_the_text_encoder_of_vectors_of_an_unknown_width(tmp_path):
    write_embedding(tmp_path / "a.safetensors", {"clip_h": L[:, :64]}, {"ss_base_model_version": "sd_v2"})
    assert set(read_embedding(tmp_path / "a.safetensors").vectors) == {"clip_h"}
    write_embedding(tmp_path / "a.safetensors", {"clip_l": L[:, :64]}, {})
    assert set(read_embedding(tmp_path / "a.safetensors").vectors) == {"clip_l"}


@pytest.mark.parametrize("vectors", [{"clip_l": L}, {"clip_h": H}, {"clip_g": G, "clip_l": L}], ids=["SD 1", "SD 2", "SDXL"])
def test_what_is_written_is_read_again_in_every_form(tmp_path, vectors):
    write_embedding(tmp_path / "a.safetensors", vectors, {"ss_steps": "3"})
    write_legacy_embedding(tmp_path / "a.pt", "a", vectors, 3)
    for ending in ("safetensors", "pt"):
        read = read_embedding(tmp_path / f"a.{ending}")
        assert same(read.vectors, vectors) and (read.step == 3 or (ending == "pt" and len(vectors) == 2))
    if len(vectors) == 1:
        assert list(read_header(tmp_path / "a.safetensors").tensors) == ["emb_params"]
        write_embedding_picture(tmp_path / "a.png", np.full((64, 64, 3), 90, np.uint8), "a name", vectors, 3)
        read = read_embedding(tmp_path / "a.png")
        assert same(read.vectors, vectors) and (read.name, read.word, read.step) == ("a name", "a name", 3)
    else:
        with pytest.raises(ConfigError, match="SDXL"):
            write_embedding_picture(tmp_path / "a.png", np.zeros((64, 64, 3), np.uint8), "a", vectors)
    write_tensors(tmp_path / "packed.safetensors", pack_embeddings({"my word": vectors}), {})
    read = read_embedding(tmp_path / "packed.safetensors")
    assert same(read.vectors, vectors) and read.name == read.word == "my word"


def slow_sequence(count):
    state, numbers = 0, []
    for _ in range(count):
        state = (1664525 * state + 1013904223) % 2**32
        numbers.append(state % 255 & 15)
    return np.array(numbers, np.uint8)


def test_the_numbers_that_pixels_are_mixed_with_are_the_generators():
    from lib_lycoris.files.embedding_pictures import _sequence

    assert np.array_equal(_sequence(5000), slow_sequence(5000))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
@pytest.mark.parametrize("framed", [False, True])
def test_pixels_hold_the_vectors_where_the_text_is_lost(tmp_path, form, framed):
    from PIL import Image, ImageOps

    picture = np.random.default_rng(0).integers(0, 256, (96, 80, 3), np.uint8)
    (tmp_path / "whole.png").write_bytes(draw_embedding(picture, a1111(L)))
    with Image.open(tmp_path / "whole.png") as whole:
        assert TEXT in whole.text
        bare = ImageOps.expand(whole.convert("RGB"), 5, 0) if framed else whole.convert("RGB")
        bare.save(tmp_path / f"bare.{form.lower()}", lossless=True)
        seen = np.asarray(whole)
    read = read_embedding(tmp_path / f"bare.{form.lower()}")
    assert same(read.vectors, {"clip_l": L}) and read.word == "inner"
    start = (seen.shape[1] - 80) // 2
    assert np.array_equal(seen[:, start : start + 80], picture), "the picture itself stays as it is"


def test_a_picture_without_an_embedding_says_so(tmp_path):
    from PIL import Image

    for place, pixels in enumerate((np.zeros((40, 50, 3)), np.full((40, 50, 3), 255), np.random.default_rng(0).integers(0, 256, (40, 50, 3)),
                                    np.pad(np.ones((40, 10, 3)), ((0, 0), (1, 1), (0, 0))))):
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{place}.png")
        with pytest.raises(NetworkFileError, match="without an embedding"):
            read_embedding(tmp_path / f"{place}.png")


@pytest.mark.parametrize("text", ["[]", "3",
                                  '{"string_to_param": {"*": {"TORCHTENSOR": [[1, 2], [3]]}}}', '{"string_to_param": {"*": {"TORCHTENSOR": "x"}}}', "{",
                                  "[" * 100_000, '{"string_to_param": {"*": {"TORCHTENSOR": [[1e999]]}}}', "{}", '{"clip_l": 3}'])
def test_a_picture_with_a_broken_embedding_is_refused_in_one_line(tmp_path, text):
    from PIL import Image, PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add_text(TEXT, base64.b64encode(text.encode()).decode())
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(NetworkFileError) as caught:
        read_embedding(tmp_path / "a.png")
    assert "\n" not in str(caught.value) and "a.png" in str(caught.value)


NAN = L.clone()
NAN[1, 5] = float("nan")
BAD = {
    "zero vectors": (a1111(torch.zeros(0, 768)), "zero vectors"),
    "a tensor without width": ({"emb_params": torch.zeros(2, 0)}, "shape"),
    "not finite": (a1111(NAN), "not finite"),
    "too large for float32": ({"x": torch.full((1, 768), 1e300, dtype=torch.float64)}, "not finite"),
    "too many vectors": ({"emb_params": torch.zeros(76, 768)}, "room for 75"),
    "different widths": ({"<a>": L[0], "<a>_1": H[0]}, "different widths"),
    "different numbers": ({"clip_l": L, "clip_g": G[:2]}, "3 for clip_l, 2 for clip_g"),
    "one text encoder of two": ({"clip_g": G}, "SDXL"),
    "the second text encoder's vectors alone": ({"emb_params": G}, "SDXL"),
    "sd-scripts' spoilt file": ({"clip_l": G[0], "clip_g": G[1]}, "sd-scripts"),
    "several embeddings": ({"string_to_param": {"a": L, "b": L}}, "2 embeddings"),
    "several tokens": ({"<a>": L, "<b>": L}, "<a>, <b>"),
    "whole numbers": ({"x": torch.ones(2, 768, dtype=torch.int64)}, "whole numbers"),
    "a matrix too deep": ({"x": torch.ones(2, 2, 768)}, "shape"),
    "an embedding for Flux": ({"clip_l": L, "t5": torch.ones(2, 4096)}, "another base model"),
    "vectors behind the text encoder alone": ({"clip_l_out": L}, "no vectors"),
    "nothing": ({"name": "x"}, "no vectors"),
    "a network": ({"lora_unet_a.lora_up.weight": L, "lora_unet_a.lora_down.weight": L}, "open_network"),
    "a checkpoint": ({"model.diffusion_model.a": L, "first_stage_model.b": L}, "checkpoint"),
    "a hypernetwork": ({"name": "x", "activation_func": "relu", 768: [torch.ones(3)]}, "hypernetwork"),
    "one embedding of two packed": (pack_embeddings({"one": {"clip_l": L}, "two": {"clip_l": L}}), "one, two"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_usable_embedding_is_refused_in_one_line_that_says_why(tmp_path, case):
    content, expected = BAD[case]
    torch.save(content, tmp_path / "bad.pt")
    with pytest.raises(NetworkFileError, match=expected.replace("(", r"\(")) as caught:
        read_embedding(tmp_path / "bad.pt")
    assert "\n" not in str(caught.value) and "bad.pt" in str(caught.value)


def test_a_pickle_that_would_run_code_runs_nothing(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save(a1111(L, extra=Attack()), tmp_path / "a.pt")
    with pytest.raises(NetworkFileError, match="would run code"):
        read_embedding(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def write_all(folder):
    write_embedding(folder / "a.safetensors", {"clip_l": L[:1, :8]})
    write_legacy_embedding(folder / "a.pt", "a", {"clip_l": L[:1, :8]})
    torch.save(a1111(L[:1, :8]), folder / "b.pt")
    write_embedding_picture(folder / "a.png", np.full((64, 8, 3), 90, np.uint8), "a", {"clip_l": L[:1, :8]})
    return ("a.safetensors", "a.pt", "b.pt", "a.png")


@settings(max_examples=120, deadline=None)
@given(which=st.integers(0, 3), place=st.integers(0, 1 << 20), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_gives_an_embedding_or_one_line_and_nothing_else(tmp_path_factory, which, place, value, cut):
    folder = tmp_path_factory.getbasetemp() / "sound"
    if not folder.exists():
        folder.mkdir()
        write_all(folder)
    name = ("a.safetensors", "a.pt", "b.pt", "a.png")[which]
    text = bytearray((folder / name).read_bytes())
    place %= len(text)
    bad = folder / f"bad-{name}"
    bad.write_bytes(bytes(text[:place]) if cut else bytes(text[:place] + bytes([value]) + text[place + 1 :]))
    try:
        read = read_embedding(bad)
    except NetworkFileError as error:
        assert "\n" not in str(error)
    else:
        assert all(tensor.ndim == 2 and torch.isfinite(tensor).all() for tensor in read.vectors.values())


def test_sdxls_legacy_file_holds_tensors_alone_as_a1111_wants_it(tmp_path):
    write_legacy_embedding(tmp_path / "a.pt", "a", {"clip_l": L, "clip_g": G}, 3)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(content) == {"clip_l", "clip_g"} and torch.equal(content["clip_g"], G)


def test_text_encoders_by_number_are_an_embeddings_whatever_their_width(tmp_path):
    torch.save({"text_encoders_0": L[:, :64], "text_encoders_1": L[:, :32]}, tmp_path / "a.pt")
    assert is_embedding(open_tensor_file(tmp_path / "a.pt"))


def test_one_of_several_packed_embeddings_is_read_by_its_name(tmp_path):
    tensors = {**pack_embeddings({"one": {"clip_l": L}, "two": {"clip_l": L[:1], "clip_g": G[:1]}}), "lora_unet_a.lora_up.weight": L}
    write_tensors(tmp_path / "net.safetensors", tensors, {})
    assert same(read_embedding(tmp_path / "net.safetensors", "two").vectors, {"clip_l": L[:1], "clip_g": G[:1]})
    with pytest.raises(NetworkFileError, match="there are one, two"):
        read_embedding(tmp_path / "net.safetensors", "three")
    write_embedding(tmp_path / "a.safetensors", {"clip_l": L})
    with pytest.raises(NetworkFileError, match="leave the name out"):
        read_embedding(tmp_path / "a.safetensors", "three")


def test_packed_keys_are_those_that_a1111s_own_lora_extension_splits():
    assert set(pack_embeddings({"w": {"clip_l": L}})) == {"bundle_emb.w.string_to_param.*"}
    assert set(pack_embeddings({"w": {"clip_l": L, "clip_g": G}})) == {"bundle_emb.w.clip_l", "bundle_emb.w.clip_g"}
    for name in ("", "a.b"):
        with pytest.raises(ConfigError):
            pack_embeddings({name: {"clip_l": L}})


@pytest.mark.parametrize("vectors", [{}, {"clip_g": G}, {"clip_l": torch.zeros(0, 768)}, {"clip_l": NAN}, {"clip_l": L, "clip_g": G[:1]}, {"x": L},
                                     {"clip_l": L[0]}])
def test_vectors_that_are_no_embedding_are_not_written(tmp_path, vectors):
    for write in (lambda: write_embedding(tmp_path / "a.safetensors", vectors), lambda: write_legacy_embedding(tmp_path / "a.pt", "a", vectors),
                  lambda: pack_embeddings({"a": vectors})):
        with pytest.raises(ConfigError):
            write()
    assert not list(tmp_path.iterdir())


def test_a_file_that_can_t_be_written_leaves_the_older_one(tmp_path):
    write_embedding(tmp_path / "a.safetensors", {"clip_l": L})
    before = read_tensors(tmp_path / "a.safetensors")
    with pytest.raises(LycoError):
        write_embedding(tmp_path / "none" / "a.safetensors", {"clip_l": L})
    assert torch.equal(read_tensors(tmp_path / "a.safetensors")["emb_params"], before["emb_params"]) and len(list(tmp_path.iterdir())) == 1


def test_safetensors_is_never_taken_for_a_picture():
    assert not is_picture((200).to_bytes(8, "little") + json.dumps({"a": 1}).encode()[:8])


class Tokenizer:
    """The little of transformers' tokenizer that diffusers' loader asks for."""

    def __init__(self):
        self.added_tokens_encoder = {}

    def get_vocab(self):
        return {"a": 0, "b": 1, **self.added_tokens_encoder}

    def __len__(self):
        return len(self.get_vocab())

    def add_tokens(self, token):
        self.added_tokens_encoder[token] = len(self)

    def convert_tokens_to_ids(self, token):
        return self.get_vocab()[token]


@pytest.mark.parametrize("form", ["safetensors", "pt", "SDXL"])
def test_diffusers_own_loader_takes_what_is_written_here(tmp_path, form):
    loaders = pytest.importorskip("diffusers.loaders", reason="diffusers is not installed here")
    from transformers import CLIPTextConfig, CLIPTextModel

    class Pipeline(loaders.TextualInversionLoaderMixin):
        hf_device_map, components = None, {}

    vectors = {"clip_l": L[:, :32], "clip_g": G[:, :32]} if form == "SDXL" else {"clip_l": L[:, :32]}
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 2, "max_position_embeddings": 5}
    for name, wanted in vectors.items():
        encoder, tokenizer = CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=0, eos_token_id=1, pad_token_id=1)), Tokenizer()
        if form == "pt":
            write_legacy_embedding(tmp_path / "word.pt", "word", vectors)
            given = str(tmp_path / "word.pt")
        else:
            write_embedding(tmp_path / "word.safetensors", vectors)
            from safetensors.torch import load_file

            given = load_file(tmp_path / "word.safetensors")[name] if form == "SDXL" else str(tmp_path / "word.safetensors")
        more = {} if form == "SDXL" else {"weight_name": f"word.{form}", "local_files_only": True}
        Pipeline().load_textual_inversion(str(tmp_path) if more else given, token="word", tokenizer=tokenizer, text_encoder=encoder, **more)
        assert list(tokenizer.added_tokens_encoder) == ["word", "word_1", "word_2"]
        assert torch.equal(encoder.get_input_embeddings().weight[2:], wanted)


def test_what_diffusers_training_script_saves_is_read(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file({"<cat-toy>": L}, tmp_path / "learned_embeds.safetensors", metadata={"format": "pt"})
    torch.save({"<cat-toy>": L}, tmp_path / "learned_embeds.bin")
    for ending in ("safetensors", "bin"):
        read = read_embedding(tmp_path / f"learned_embeds.{ending}")
        assert same(read.vectors, {"clip_l": L}) and read.name == "<cat-toy>"
