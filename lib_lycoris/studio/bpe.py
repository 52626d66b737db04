"""CLIP's tokenizer from the vendored table of merges: no download, no folder needed."""
from __future__ import annotations

import gzip
import json
from functools import lru_cache
from pathlib import Path

TABLE = Path(__file__).parent / "tokenizer" / "merges.txt.gz"
"""CLIP's 48 894 merges, the part of OpenAI's bpe_simple_vocab_16e6.txt that CLIP uses (MIT licence, beside it)."""
START, END = "<|startoftext|>", "<|endoftext|>"
SPECIAL = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}

# What ftfy, through which the host's tokenizer sends every text, makes of typographic quotes.
_QUOTES = str.maketrans("\u02bc\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f", "'''''" + '""""')


def _letters() -> list[str]:
    """One visible character for each byte, those that are visible themselves first.

    Source: GPT-2's byte-level BPE (Radford et al. 2019), which CLIP uses.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(code) for code in visible] + [chr(0x100 + place) for place in range(256 - len(visible))]


@lru_cache(maxsize=1)
def read_table() -> tuple[dict[str, int], list[str]]:
    """The vocabulary {piece: id} of 49 408 pieces, and the merges, "a b" each."""
    merges = gzip.decompress(TABLE.read_bytes()).decode("utf-8").splitlines()[1:]
    letters = _letters()
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges), START, END]
    return {piece: place for place, piece in enumerate(pieces)}, merges


def make_tokenizer():
    """CLIP's tokenizer as transformers' CLIPTokenizer."""
    from transformers import CLIPTokenizer

    vocabulary, merges = read_table()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=[tuple(merge.split(" ")) for merge in merges], model_max_length=77, **SPECIAL)


def tokenize(tokenizer, text: str) -> list[int]:
    """The ids of a text of any length, without start and end token."""
    return tokenizer(text.translate(_QUOTES), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]


def write_clip_folder(folder: Path | str, text_config: dict) -> None:
    """Writes the folder from which the WebUI takes a text model's sizes and tokenizer (the `version` in a checkpoint's yaml).

    Args:
        text_config: transformers' CLIPTextConfig as a dict: hidden_size, num_attention_heads, …
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = read_table()
    settings = {**SPECIAL, "tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, "add_prefix_space": False,
                "errors": "replace"}
    files = {"vocab.json": json.dumps(vocabulary, ensure_ascii=False), "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
             "special_tokens_map.json": json.dumps(SPECIAL, indent=2), "tokenizer_config.json": json.dumps(settings, indent=2),
             "config.json": json.dumps({"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **text_config}, indent=2)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
