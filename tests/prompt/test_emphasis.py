import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from lib_lycoris.prompt.emphasis import parse_emphasis

CASES = {
    "": [("", 1.0)],
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "a [weak] word": [("a ", 1.0), ("weak", 1 / 1.1), (" word", 1.0)],
    "(just:1.3), (:2)": [("just", 1.3), (", ", 1.0)],
    "(a: +.5 )": [("a", 0.5)],
    "((a:2) b:0.5)": [("a", 1.0), (" b", 0.5)],
    "(unbalanced": [("unbalanced", 1.1)],
    "unbalanced)": [("unbalanced)", 1.0)],
    "(one)(two)": [("onetwo", 1.1)],
    r"\(literal\) \[too\] \\ \x": [(r"(literal) [too] \ x", 1.0)],
    "a:b": [("a:b", 1.0)],
    "a:1.5)": [("a:1.5)", 1.0)],
    "(a [b) c]": [("a ", 1.1), ("b", 1.1 * (1 / 1.1)), (" c", 1 / 1.1)],
    "(a:1.2.3)": [("a:1.2.3", 1.1)],
    "a BREAK b": [("a", 1.0), ("BREAK", -1), ("b", 1.0)],
    "a\nBREAK\nBREAK": [("a", 1.0), ("BREAK", -1), ("", 1.0), ("BREAK", -1), ("", 1.0)],
    "(a BREAK b)": [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)],
    "BREAKFAST": [("BREAKFAST", 1.0)],
}


def slow_parse(text):
    """Letter by letter: every letter's weight is the product of the brackets that end up around it."""
    letters, place = [], 0
    stacks = {"(": [], "[": []}

    def closing_number():
        end = text.find(")", place)
        try:
            number = text[place + 1:end].strip() if end >= 0 else ""
            return (float(number), end) if number and set(number) <= set("+-.0123456789") else None
        except ValueError:
            return None

    def multiply(since, factor):
        for letter in letters[since:]:
            letter[1] *= factor

    while place < len(text):
        letter = text[place]
        if letter == "\\":
            if text[place + 1:place + 2] in ("(", ")", "[", "]", "\\"):
                place += 1
                letters.append([text[place], 1.0])
            else:
                letters.append(["", 1.0])
        elif letter in stacks:
            stacks[letter].append(len(letters))
        elif letter == ":" and stacks["("] and closing_number():
            number, place = closing_number()
            multiply(stacks["("].pop(), number)
        elif letter == ")" and stacks["("]:
            multiply(stacks["("].pop(), 1.1)
        elif letter == "]" and stacks["["]:
            multiply(stacks["["].pop(), 1 / 1.1)
        else:
            letters.append([letter, 1.0])
        place += 1
    for since in stacks["("]:
        multiply(since, 1.1)
    for since in stacks["["]:
        multiply(since, 1 / 1.1)
    return [(letter, weight) for letter, weight in letters if letter]


def test_known_prompts_parse_as_in_the_host():
    for text, expected in CASES.items():
        found = parse_emphasis(text)
        assert [piece for piece, _ in found if piece] == [piece for piece, _ in expected if piece], text
        assert all(math.isclose(a[1], b[1]) for a, b in zip([p for p in found if p[0]], [p for p in expected if p[0]], strict=True)), text
        assert found[0] == ("", 1.0) if not text else found, text


@given(st.text(alphabet="ab ()[]:\\1.5,", max_size=25))
def test_every_letter_has_the_product_of_its_brackets(text):
    letters = [(letter, weight) for piece, weight in parse_emphasis(text) for letter in piece]
    slow = slow_parse(text)
    assert [letter for letter, _ in letters] == [letter for letter, _ in slow]
    assert all(math.isclose(a, b) for (_, a), (_, b) in zip(letters, slow, strict=True))


@given(st.text(alphabet="ab ()[]:\\1.5,", max_size=25))
def test_neighbouring_pieces_differ_in_weight(text):
    weights = [weight for _, weight in parse_emphasis(text)]
    assert all(a != b for a, b in itertools.pairwise(weights))
