"""`inspect` on textual inversions: plain values, and lines for a person."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from lib_lycoris.cli.main import main
from lib_lycoris.files.embeddings import write_embedding, write_embedding_picture


def test_an_embedding_is_told_with_its_vectors_and_their_lengths(tmp_path, capsys):
    vectors = {"clip_l": torch.full((2, 768), 0.5), "clip_g": torch.full((2, 1280), 0.25)}
    write_embedding(tmp_path / "word.safetensors", vectors, {"ss_steps": "40"})
    assert main(["inspect", str(tmp_path / "word.safetensors"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["base_model"], found["layers"], found["parameters"], found["step"]) == ("embedding", "sdxl_base_v1-0", 0, 2 * 2048, 40)
    assert found["norms"] == {"clip_l": pytest.approx([0.5 * 768**0.5] * 2), "clip_g": pytest.approx([0.25 * 1280**0.5] * 2)}
    assert found["vectors"] == {"clip_l": [2, 768], "clip_g": [2, 1280]} and found["bytes"] == (tmp_path / "word.safetensors").stat().st_size
    assert main(["inspect", str(tmp_path / "word.safetensors")]) == 0
    text = capsys.readouterr().out
    assert "textual inversion" in text and "SDXL" in text and "2 of width 768 for clip_l" in text and "13.9" in text and "ss_steps" in text


def test_a_picture_is_looked_into_too_and_what_is_wrong_is_one_line(tmp_path, capsys):
    write_embedding_picture(tmp_path / "a.png", np.full((64, 64, 3), 9, np.uint8), "drawn", {"clip_h": torch.ones(1, 1024)})
    assert main(["inspect", str(tmp_path / "a.png")]) == 0
    assert "drawn" in capsys.readouterr().out
    torch.save({"emb_params": torch.zeros(0, 768)}, tmp_path / "none.pt")
    for arguments, words in ((["none.pt"], "zero vectors"), (["a.png", "--plot", "b.png"], "no layers")):
        assert main(["inspect", str(tmp_path / arguments[0]), *arguments[1:]]) in (1, 2)
        told = capsys.readouterr().err
        assert words in told and told.count("\n") == 1
