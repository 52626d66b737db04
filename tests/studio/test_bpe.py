import itertools
import json

import pytest

from lib_lycoris.studio import bpe


@pytest.fixture(scope="module")
def tokenizer():
    return bpe.make_tokenizer()


def slow_tokenize(text, vocabulary, merges):
    """Byte-pair encoding of words of letters, by the definition: join the pair of the lowest rank until none is left."""
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    ids = []
    for word in text.lower().split():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while True:
            pairs = [(ranks[pair], place) for place, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks]
            if not pairs:
                break
            place = min(pairs)[1]
            pieces[place:place + 2] = [pieces[place] + pieces[place + 1]]
        ids += [vocabulary[piece] for piece in pieces]
    return ids


def test_the_table_is_clips():
    vocabulary, merges = bpe.read_table()
    assert len(vocabulary) == 49408 and len(merges) == 48894
    assert (vocabulary[bpe.START], vocabulary[bpe.END], vocabulary[",</w>"]) == (49406, 49407, 267)


def test_known_ids_of_clip(tokenizer):
    assert bpe.tokenize(tokenizer, "a photo of a cat") == [320, 1125, 539, 320, 2368]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (49406, 49407)


def test_words_are_joined_as_the_slow_encoder_joins_them(tokenizer):
    text = "An impressionist Painting of zorblax umbrellas antidisestablishmentarianism"
    assert bpe.tokenize(tokenizer, text) == slow_tokenize(text, *bpe.read_table())


def test_a_text_of_any_length_keeps_all_its_tokens(tokenizer):
    assert len(bpe.tokenize(tokenizer, "cat " * 300)) == 300


def test_typographic_quotes_are_plain_ones(tokenizer):
    assert bpe.tokenize(tokenizer, "it\u2019s \u201cfine\u201d") == bpe.tokenize(tokenizer, "it's \"fine\"")


def test_the_written_folder_loads_to_the_same_tokenizer(tmp_path, tokenizer):
    from transformers import CLIPTokenizer
    bpe.write_clip_folder(tmp_path / "clip", {"hidden_size": 64, "num_attention_heads": 4})
    again = CLIPTokenizer.from_pretrained(tmp_path / "clip", local_files_only=True)
    text = "a small red circle, 3 times :)"
    assert bpe.tokenize(again, text) == bpe.tokenize(tokenizer, text)
    assert json.loads((tmp_path / "clip" / "config.json").read_text())["num_attention_heads"] == 4
