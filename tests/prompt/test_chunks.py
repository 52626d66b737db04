from hypothesis import given
from hypothesis import strategies as st

from lib_lycoris.prompt.chunks import Found, empty_chunk, make_chunks

START, END, COMMA = 900, 901, 7


def words_to_ids(text):
    """A tokenizer for tests: a number for every word, 7 for a comma."""
    return [COMMA if word == "," else 100 + int(word) for word in text.replace(",", " , ").split()]


def chunk(text, **options):
    return make_chunks(text, words_to_ids, COMMA, START, END, **options)


def slow_segments(ids, backtrack=20):
    """Where a run of tokens is cut: looks at 75 tokens and the one after, again and again."""
    out = []
    while len(ids) > 75:
        cut = 75
        if ids[75] != COMMA:
            near = [place for place in range(75) if ids[place] == COMMA and 75 - place <= backtrack]
            cut = near[-1] + 1 if near else 75
        out.append(ids[:cut])
        ids = ids[cut:]
    return out + [ids]


def test_a_short_prompt_is_one_chunk_of_77_filled_with_end_tokens():
    (only,) = chunk("1 (2:1.5) 3")
    assert only.tokens == (START, 101, 102, 103, *[END] * 73)
    assert only.weights == (1.0, 1.0, 1.5, 1.0, *[1.0] * 73)


def test_an_empty_prompt_is_the_empty_chunk():
    assert chunk("") == [empty_chunk(START, END)]


def test_break_ends_a_chunk_and_a_last_break_adds_none():
    assert [c.tokens[1:3] for c in chunk("1 BREAK 2")] == [(101, END), (102, END)]
    assert len(chunk("1 BREAK")) == 1
    assert len(chunk("BREAK 1")) == 2
    assert len(chunk("1 BREAK BREAK 2")) == 3


def test_break_after_exactly_75_tokens_adds_no_empty_chunk():
    assert len(chunk(" ".join(["1"] * 75) + " BREAK 2")) == 2


def test_76_tokens_make_two_chunks():
    first, second = chunk(" ".join(["1"] * 76))
    assert first.tokens == (START, *[101] * 75, END)
    assert second.tokens == (START, 101, *[END] * 75)


def test_words_after_a_near_comma_move_to_the_next_chunk():
    first, second = chunk(" ".join(["1"] * 60) + ", " + " ".join(["(2:1.2)"] * 20))
    assert first.tokens == (START, *[101] * 60, COMMA, *[END] * 15)
    assert second.tokens == (START, *[102] * 20, *[END] * 56)
    assert second.weights == (1.0, *[1.2] * 20, *[1.0] * 56)


def test_a_far_comma_moves_nothing():
    first, _ = chunk(" ".join(["1"] * 50) + ", " + " ".join(["2"] * 30))
    assert first.tokens == (START, *[101] * 50, COMMA, *[102] * 24, END)


def test_without_emphasis_brackets_and_break_are_text():
    (only,) = make_chunks("(1) BREAK", lambda text: [len(text)], COMMA, START, END, emphasis=False)
    assert only.tokens[1] == len("(1) BREAK")


@given(st.lists(st.lists(st.sampled_from(["1", "2", "3", ","]), max_size=200), min_size=1, max_size=3), st.integers(0, 74))
def test_chunks_are_the_slow_ones(segments, backtrack):
    text = " BREAK ".join(" ".join(words) for words in segments)
    expected = [part for words in segments[:-1] for part in slow_segments(words_to_ids(" ".join(words)), backtrack)]
    last = slow_segments(words_to_ids(" ".join(segments[-1])), backtrack)
    expected += last if last[-1] or not expected else last[:-1]
    found = chunk(text, backtrack=backtrack)
    assert [c.tokens for c in found] == [(START, *ids, *[END] * (76 - len(ids))) for ids in expected]
    assert all(set(c.weights) == {1.0} and len(c.weights) == 77 for c in found)


def test_a_chunk_is_filled_up_after_its_end_token_with_what_is_said():
    (chunk,) = make_chunks("abc", lambda text: [ord(letter) for letter in text], None, 1, 2, filling=0)
    assert chunk.tokens == (1, 97, 98, 99, 2, *[0] * 72) and chunk.weights == (1.0,) * 77
    full, = make_chunks("a" * 75, lambda text: [ord(letter) for letter in text], None, 1, 2, filling=0)
    assert full.tokens == (1, *[97] * 75, 2)


def finder(words):
    """For {tokens: vectors}: the longest that fits, as a slow look at each."""
    def find(tokens, place):
        fits = [ids for ids in words if tuple(tokens[place:place + len(ids)]) == ids]
        longest = max(fits, key=len, default=None)
        return None if longest is None else Found(longest, len(longest), words[longest])
    return find


def test_a_words_vectors_take_the_place_of_its_tokens():
    (only,) = chunk("1 (2 3:1.5) 4 5", find=finder({(102, 103): 3, (102,): 1, (105,): 1}))
    assert only.tokens == (START, 101, 0, 0, 0, 104, 0, *[END] * 70)
    assert only.weights == (1.0, 1.0, 1.5, 1.5, 1.5, *[1.0] * 72)
    assert only.words == ((2, (102, 103)), (6, (105,)))


def test_a_word_is_not_found_across_pieces_of_unequal_weight():
    (only,) = chunk("2 (3:1.5)", find=finder({(102, 103): 2}))
    assert only.words == () and only.tokens[:3] == (START, 102, 103)


def test_vectors_that_do_not_fit_any_more_begin_the_next_chunk():
    first, second = chunk(" ".join(["1"] * 73 + ["2"]), find=finder({(102,): 3}))
    assert first.tokens == (START, *[101] * 73, END, END, END) and first.words == ()
    assert second.tokens == (START, 0, 0, 0, *[END] * 73) and second.words == ((1, (102,)),)
    (only,) = chunk(" ".join(["1"] * 72 + ["2"]), find=finder({(102,): 3}))
    assert only.words == ((73, (102,)),) and only.tokens[-1] == END and END not in only.tokens[1:-1]


def test_a_word_after_the_comma_at_which_a_full_chunk_is_cut_moves_with_its_vectors():
    first, second = chunk(" ".join(["1"] * 70) + ", 2 1 1 1", find=finder({(102,): 2}))
    assert first.tokens == (START, *[101] * 70, COMMA, *[END] * 5) and first.words == ()
    assert second.tokens == (START, 0, 0, 101, 101, 101, *[END] * 71) and second.words == ((1, (102,)),)


@given(st.lists(st.sampled_from(["1", "2", "3", ","]), max_size=200), st.integers(1, 75), st.integers(0, 30))
def test_no_vector_is_lost_or_split_and_every_chunk_has_77_tokens(words, count, backtrack):
    chunks = chunk(" ".join(words), backtrack=backtrack, find=finder({(102,): count, (102, 103): 1}))
    wanted, place = [], 0
    while place < len(words):
        pair = words[place:place + 2] == ["2", "3"]
        wanted += [(102, 103)] if pair else [(102,)] if words[place] == "2" else []
        place += 2 if pair else 1
    assert [word for each in chunks for _, word in each.words] == wanted
    for each in chunks:
        assert len(each.tokens) == len(each.weights) == 77
        covered = [spot for start, word in each.words for spot in range(start, start + (1 if len(word) == 2 else count))]
        assert [spot for spot, token in enumerate(each.tokens) if token == 0] == covered and max(covered, default=0) <= 75
