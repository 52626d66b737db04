from lib_lycoris.prompt.composition import split_composition


def test_a_prompt_without_and_is_one_text_of_strength_one():
    assert split_composition("a cat, a HAND ") == [("a cat, a HAND", 1.0)]


def test_and_separates_texts_and_a_last_number_is_the_strength():
    assert split_composition("a cat :1.2 AND a dog: -.5 AND (x:1.3)") == [("a cat", 1.2), (" a dog", -0.5), (" (x:1.3)", 1.0)]


def test_only_the_last_number_counts():
    assert split_composition("ratio 3:2:1.5") == [("ratio 3:2", 1.5)]
