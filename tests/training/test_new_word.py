"""A new word in training: what it starts from, what is trained, and what stays as it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib_lycoris.errors import ConfigError, DatasetError
from lib_lycoris.files.embeddings import read_embedding, write_embedding
from lib_lycoris.library.load import open_network
from lib_lycoris.training.captions import Drawn, Words, compose, plain, with_word
from lib_lycoris.training.checkpoint import States
from lib_lycoris.training.conditioning import CachedCaptions
from lib_lycoris.training.config import DataSettings, TrainConfig
from lib_lycoris.training.dataset import read_dataset, read_prior
from lib_lycoris.training.draws import make_generator
from lib_lycoris.training.fence import read_paths
from lib_lycoris.training.loop import train
from lib_lycoris.training.material import PlainMaterial
from lib_lycoris.training.new_word import NewWord, make_word
from lib_lycoris.training.preflight import check_training
from lib_lycoris.training.step_list import parse_step_list
from lib_lycoris.training.templates import fill_template, read_templates
from lib_lycoris.training.word_captions import WordCaptions

from .fake import WIDTH, FakeBackbone, make_pictures
from .rig import config_of, rig, same

ALONE = {"network__kind": "embedding", "embedding__word": "zor", "embedding__vectors": 2}


def captioned(count=4, caption="a zor {}"):
    generator = torch.Generator().manual_seed(0)
    return PlainMaterial([torch.randn(4, 8, 8, generator=generator) for _ in range(count)], [caption.format(number) for number in range(count)])


# ---------------------------------------------------------------- settings


def test_the_word_is_the_outputs_name_where_none_is_given():
    assert config_of(network__kind="embedding", output__name="cat-toy").word == "cat-toy"
    assert config_of(network__kind="embedding", embedding__word="zorbix").word == "zorbix"
    assert config_of().word is None and config_of(embedding__word="zorbix").word == "zorbix"


def test_the_rate_is_a_textual_inversions_own_unless_somebody_says_otherwise():
    assert TrainConfig.from_dict({"network": {"kind": "embedding"}}).embedding_rate == 0.005
    assert TrainConfig.from_dict({"network": {"kind": "embedding"}, "training": {"learning_rate": 0.02}}).embedding_rate == 0.02
    assert TrainConfig.from_dict({"embedding": {"word": "z"}, "training": {"learning_rate": 0.02}}).embedding_rate == 0.005
    assert TrainConfig.from_dict({"embedding": {"word": "z", "learning_rate": 0.3}}).embedding_rate == 0.3
    assert TrainConfig.from_dict({"embedding": {"word": "z"}, "training": {"learning_rate": 1.0, "optimizer": "prodigy"}}).embedding_rate == 1.0


@pytest.mark.parametrize(("sections", "words"), [
    ({"embedding": {"vectors": 2}}, "embedding.vectors = 2: no new word is trained"),
    ({"network": {"kind": "embedding"}, "embedding": {"vectors": 0}}, "embedding.vectors = 0: expected a whole number from 1 to 75"),
    ({"network": {"kind": "embedding"}, "embedding": {"word": "a/b"}}, "embedding.word = "),
    ({"network": {"kind": "embedding"}, "embedding": {"init_text": "a", "start_from": "b"}}, "give one of the two"),
    ({"network": {"kind": "embedding"}, "embedding": {"rates": "1e-3:9", "learning_rate": 1.0}}, "give one of the two"),
    ({"network": {"kind": "embedding", "start_from": "a.safetensors"}}, "use embedding.start_from"),
    ({"network": {"kind": "embedding", "only": ["mid"]}}, "trains no layers"),
    ({"network": {"kind": "embedding", "dora": True}}, "knows no dora"),
    ({"network": {"kind": "embedding"}, "output": {"form": "peft"}}, "PEFT has no form"),
    ({"embedding": {"word": "zor"}, "output": {"form": "peft"}}, "PEFT's form has no place for a word"),
    ({"embedding": {"word": "zor", "file": "two"}, "output": {"name": "zor"}}, "the network's file has that name too"),
    ({"embedding": {"word": "zor"}, "data": {"trigger": "sks"}}, "give one of the two"),
    ({"embedding": {"word": "zor", "norm": "keep"}, "training": {"optimizer": "schedule_free"}}, "schedule_free"),
    ({"data": {"templates": "subject"}}, "they need a word"),
    ({"data": {"templates": "subject", "trigger": "sks", "caption_template": "a {caption}"}}, "give one of the two"),
    ({"training": {"schedule_steps": "1:5", "schedule": "cosine"}}, "give one of the two"),
])
def test_settings_that_contradict_each_other_are_told_in_one_line(sections, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict(sections)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_several_settings_are_changed_at_once_whatever_their_order():
    config = TrainConfig().change({"embedding.vectors": "3", "network.kind": "embedding"})
    assert (config.network.kind, config.embedding.vectors) == ("embedding", 3)
    with pytest.raises(ConfigError, match="no new word"):
        TrainConfig().set("embedding.vectors", 3)


# ---------------------------------------------------------------- rates by steps


def test_a_step_list_holds_each_value_up_to_and_including_its_step():
    steps = parse_step_list("x", "0.005:2, 1e-3:4, 1e-5")
    assert [steps.at(step) for step in range(6)] == [0.005, 0.005, 1e-3, 1e-3, 1e-5, 1e-5]
    assert parse_step_list("x", "0.5:1,0.25:3").at(99) == 0.25 and parse_step_list("x", " 3 ").at(0) == 3


@pytest.mark.parametrize("text", ["", "a", "1:2:3", "1,2:3", "1:5,2:5", "1:5,2:3", "-1", "nan", "0", "0:5, 0", "1:0", "1:1.5"])
def test_what_is_no_step_list_is_told_in_one_line(text):
    with pytest.raises(ConfigError, match="VALUE:STEP") as caught:
        parse_step_list("embedding.rates", text)
    assert "embedding.rates = " in str(caught.value) and "\n" not in str(caught.value)


def test_rates_by_steps_are_the_words_alone_and_factors_by_steps_everybodys():
    config = config_of(embedding__word="zor", embedding__rates="0.5:1, 0:2, 0.25", training__schedule_steps="1:1, 0.5", network__text_encoder=False)
    with rig(config, material=captioned()) as trainer:
        seen = []
        for step in range(3):
            trainer.step(step)
            groups = trainer._stepper._optimizer.param_groups
            seen.append({group["lr"] for group in groups})
        assert seen == [{0.01, 0.5}, {0.005, 0.0}, {0.005, 0.25}]
        assert {group["weight_decay"] for group in groups if group["lr"] == 0.25} == {0.0} != {config.training.weight_decay}
        assert trainer.learning_rate(0) == 0.01
    with rig(config_of(**ALONE, embedding__rates="0.5:1, 0.25"), material=captioned()) as trainer:
        assert (trainer.learning_rate(0), trainer.learning_rate(1)) == (0.5, 0.25)


# ---------------------------------------------------------------- what the vectors start from


def test_a_text_is_spread_over_the_vectors_as_in_the_webui():
    backbone = FakeBackbone()
    for text, count in (("abc", 7), ("abc", 3), ("abcdef", 4), ("a", 5), ("ab", 1)):
        word = make_word(config_of(network__kind="embedding", embedding__word="zorbix", embedding__init_text=text, embedding__vectors=count), backbone)
        rows = backbone.table.weight.detach()[list(text.encode())]
        wanted = torch.stack([rows[number * len(text) // count] for number in range(count)])
        assert torch.equal(word.vectors["clip_l"].detach(), wanted) and word.count == count


def test_random_vectors_have_the_statistics_of_the_models_words_and_follow_from_seed_and_word():
    backbone = FakeBackbone()

    def vectors(**changes):
        settings = {"network__kind": "embedding", "embedding__word": "zorbix", "embedding__vectors": 75, **changes}
        return make_word(config_of(**settings), backbone).exported()["clip_l"]

    mean, deviation, _ = backbone.word_statistics()["clip_l"]
    first = vectors()
    assert torch.equal(first, vectors()) and not torch.equal(first, vectors(training__seed=1)) and not torch.equal(first, vectors(embedding__word="other"))
    assert ((first - mean) / deviation).std() == pytest.approx(1, abs=0.1)
    assert torch.equal(first, mean + deviation * torch.randn(75, WIDTH, generator=make_generator(0, "word", "zorbix", "clip_l")))


def test_an_embeddings_file_is_gone_on_from_and_one_for_another_base_is_told(tmp_path):
    own, other, two = tmp_path / "own.safetensors", tmp_path / "other.safetensors", tmp_path / "two.safetensors"
    vectors = torch.randn(3, WIDTH)
    write_embedding(own, {"clip_l": vectors}, {"ss_base_model_version": "sd_v1"})
    write_embedding(other, {"clip_l": torch.randn(3, WIDTH + 1)}, {"ss_base_model_version": "sd_v1"})
    write_embedding(two, {"clip_l": torch.randn(1, WIDTH), "clip_g": torch.randn(1, 5)}, {})
    word = make_word(config_of(network__kind="embedding", embedding__start_from=str(own)), FakeBackbone())
    assert torch.equal(word.exported()["clip_l"], vectors) and word.count == 3
    for path, words in ((other, "9 (clip_l)"), (two, "5 (clip_g)"), (tmp_path / "none.safetensors", "none.safetensors")):
        with pytest.raises(ConfigError) as caught:
            make_word(config_of(network__kind="embedding", embedding__start_from=str(path)), FakeBackbone())
        assert words in str(caught.value) and "embedding.start_from" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("changes", "words"), [
    ({"embedding__word": "z"}, "one of the model's own words already"), ({"embedding__init_text": ""}, "it has no token"),
])
def test_a_word_or_text_that_cannot_be_used_is_told_in_one_line(changes, words):
    with pytest.raises(ConfigError) as caught:
        make_word(config_of(network__kind="embedding", **changes), FakeBackbone())
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_refiner_whose_words_nobody_could_use_is_told():
    backbone = FakeBackbone()
    backbone.base_model = "sdxl_base_v1-0"
    with pytest.raises(ConfigError, match="train it on the base model"):
        make_word(config_of(**ALONE), backbone)


def test_a_word_whose_rate_has_come_to_zero_stays_where_it_is():
    with rig(config_of(**ALONE, embedding__rates="0.5:2, 0", embedding__norm="median"), material=captioned()) as trainer:
        seen = []
        for step in range(4):
            trainer.step(step)
            seen.append(trainer.word.exported()["clip_l"])
        assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2]) and torch.equal(seen[2], seen[3])


def test_a_model_that_takes_no_words_is_told():
    class Bare:
        base_model = "sd_v1"

    with pytest.raises(ConfigError, match="takes no embeddings"):
        make_word(config_of(**ALONE), Bare())


# ---------------------------------------------------------------- lengths


def test_kept_lengths_stay_and_drawn_ones_come_nearer_to_the_median_without_a_turn():
    start = torch.randn(3, WIDTH)
    for norm in ("off", "keep", "median"):
        word = NewWord("zor", {"clip_l": start}, norm, {"clip_l": 2.0})
        vectors = word.vectors["clip_l"]
        with torch.no_grad():
            vectors.mul_(5.0).add_(0.1)
        before = vectors.detach().clone()
        word.after_step()
        length, was = vectors.detach().norm(dim=1), before.norm(dim=1)
        wanted = {"off": was, "keep": start.norm(dim=1), "median": was ** 0.9 * 2.0 ** 0.1}[norm]
        torch.testing.assert_close(length, wanted)
        torch.testing.assert_close(vectors.detach() / length[:, None], before / was[:, None])


def test_a_vector_of_length_zero_stays_where_it_is():
    for norm in ("keep", "median"):
        word = NewWord("zor", {"clip_l": torch.zeros(2, WIDTH)}, norm, {"clip_l": 2.0})
        word.after_step()
        assert torch.equal(word.vectors["clip_l"].detach(), torch.zeros(2, WIDTH))


# ---------------------------------------------------------------- what is trained


def test_nothing_but_the_vectors_is_trained_or_gets_a_gradient():
    backbone = FakeBackbone()
    before = {name: value.clone() for tree in (backbone.unet, *backbone.text_encoders) for name, value in tree.state_dict().items()}
    with rig(config_of(**ALONE), backbone, captioned()) as trainer:
        first = trainer.word.exported()["clip_l"]
        assert list(trainer.parameters) == ["embedding.word.clip_l"]
        losses = [trainer.step(step) for step in range(3)]
        assert sum(value.numel() for group in trainer._stepper._optimizer.param_groups for value in group["params"]) == 2 * WIDTH
        assert all(parameter.grad is None for tree in (backbone.unet, *backbone.text_encoders) for parameter in tree.parameters())
        assert all(not torch.equal(one, two) for one, two in zip(first, trainer.word.exported()["clip_l"], strict=True)) and len(set(losses)) == 3
    after = {name: value for tree in (backbone.unet, *backbone.text_encoders) for name, value in tree.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_the_gradient_is_that_of_a_finite_difference():
    material = captioned(2)
    with rig(config_of(**ALONE), material=material) as trainer:
        word, rows = trainer.word.vectors["clip_l"], [(0, 0), (0, 1)]
        latents = torch.stack([material.latents(sample, 0) for sample in range(2)])
        draws = [trainer._draw(0, 0, sample, latents.shape[1:]) for sample in range(2)]

        def loss():
            return trainer.loss_of(material, rows, latents, draws)

        gradient, = torch.autograd.grad(loss(), word)
        direction = gradient / gradient.norm()
        moved = []
        with torch.no_grad():
            for step in (1.0, -2.0):
                word.add_(direction, alpha=0.02 * step)
                moved.append(float(loss()))
        assert (moved[0] - moved[1]) / 0.04 == pytest.approx(float(gradient.norm()), rel=0.05)


def test_a_network_and_a_word_are_trained_together():
    with rig(config_of(embedding__word="zor", embedding__vectors=1), material=captioned()) as trainer:
        before = {name: value.detach().clone() for name, value in trainer.parameters.items()}
        trainer.step(0)
        moved = {name for name, value in trainer.parameters.items() if not torch.equal(before[name], value)}
    assert "embedding.word.clip_l" in moved and any(name.startswith("unet.") for name in moved) and any(name.startswith("te1.") for name in moved)


@pytest.mark.parametrize("changes", [{}, {"training__ema": 0.9}, {"embedding__norm": "keep"}, {"network__kind": "lora", "network__rank": 2}])
def test_a_training_that_is_gone_on_with_gives_the_same_numbers(changes):
    config = config_of(**{**ALONE, **changes})
    with rig(config, material=captioned()) as trainer:
        for step in range(4):
            trainer.step(step)
        if changes.get("training__ema"):
            with trainer.used():
                used = trainer.word.exported()
            assert not torch.equal(used["clip_l"], trainer.word.exported()["clip_l"])
        middle = trainer.state()
        for step in range(4, 8):
            trainer.step(step)
        whole = trainer.state()[0]
    with rig(config, material=captioned(), started=False) as trainer:
        trainer.load(*middle)
        for step in range(4, 8):
            trainer.step(step)
        assert same(trainer.state()[0], whole)


# ---------------------------------------------------------------- captions


def test_captions_that_name_the_word_are_encoded_anew_and_others_once():
    backbone = FakeBackbone()
    word = NewWord("zor", {"clip_l": torch.randn(1, WIDTH)})
    captions = WordCaptions(backbone, "zor", CachedCaptions(backbone))
    with word.put_on(backbone):
        for parameter in (*backbone.unet.parameters(), *backbone.text_encoders[0].parameters()):
            parameter.requires_grad_(False)
        captions.prepare(["a zor", "plain"])
        batches = [["a zor", "plain"], ["plain", "a zor", "a zor"], ["plain", "plain"], ["a zor"]]
        backbone.captions = []
        made = [captions.encode(batch) for batch in batches]
        assert "plain" not in backbone.captions and backbone.captions.count("a zor") == 3
        for batch, found in zip(batches, made, strict=True):
            torch.testing.assert_close(found, backbone.encode_captions(batch))
            assert found.requires_grad == ("a zor" in batch)
        with torch.no_grad():
            word.vectors["clip_l"].add_(1.0)
            assert not torch.equal(captions.encode(["a zor"]), made[3]) and torch.equal(captions.encode(["plain"]), made[2][:1])


def test_a_caption_that_names_the_word_in_another_spelling_is_known_by_its_gradient():
    backbone = FakeBackbone()
    backbone.text_encoders[0].requires_grad_(False)
    word = NewWord("zor", {"clip_l": torch.randn(1, WIDTH)})
    with word.put_on(backbone), torch.no_grad():
        captions = WordCaptions(backbone, "zor", CachedCaptions(backbone))
        captions._word = "what no text holds"
        assert captions.names_word("a ZOR") and not captions.names_word("plain")


def test_a_word_is_put_in_front_of_captions_that_lack_it_and_never_dropped():
    assert with_word("a cat", "sks") == "sks, a cat" and with_word("", "sks") == "sks" and with_word("A SKS cat", "sks") == "A SKS cat"
    assert with_word("asks nobody", "sks") == "sks, asks nobody" and with_word("a cat", None) == "a cat"
    words = Words(shuffle=True, tag_dropout=0.99, trigger="sks")
    for sample in range(20):
        assert compose(["one, two, three"], words, Drawn(0, 0, sample)).startswith("sks")
    assert compose(["x"], Words(trigger="sks", dropout=1.0), Drawn(0, 0, 0)) == "" and plain(["a cat"], Words(trigger="sks")) == "sks, a cat"


def test_templates_are_drawn_anew_for_each_sample_and_epoch():
    words = Words(trigger="sks", templates=read_templates("subject_filewords"))
    found = {compose(["a red one"], words, Drawn(0, epoch, sample)) for epoch in range(10) for sample in range(10)}
    assert len(found) == len(words.templates) and all("sks" in text and text.endswith(", a red one") for text in found)
    assert words.may_vary(["a red one"]) and not Words(trigger="sks", templates=("a {word}",)).may_vary(["x"])
    assert all("{word}" in line and "{caption}" not in line for name in ("subject", "style") for line in read_templates(name))


def test_a_file_of_templates_is_read_as_the_webuis_and_diffusers_have_them(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("# mine\na photo of [name], [filewords]\n\npicture of {} in {concept}\n", encoding="utf-8")
    lines = read_templates(str(path))
    assert lines == ("a photo of {word}, {caption}", "picture of {word} in {concept}")
    assert fill_template(lines[0], "zor", "", None, "x") == "a photo of zor" and fill_template(lines[0], "zor", "red", None, "x") == "a photo of zor, red"
    for text, words in (("", "has no line"), ("a photo", "has no {word}"), ("{word} {what}", "{what}")):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(DatasetError) as caught:
            read_templates(str(path))
        assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DatasetError, match="subject_filewords"):
        read_templates(str(tmp_path / "none.txt"))


def test_the_file_of_a_word_says_what_it_is_from(tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    config = config_of(**ALONE, data__folders=[str(folder)], data__resolution=64, training__steps=3, output__folder=str(tmp_path / "out"), output__name="first",
                       output__network_every=2, embedding__picture=True)
    result = train(config, FakeBackbone())
    assert result.path == tmp_path / "out" / "zor.safetensors" and (tmp_path / "out" / "zor-step00000002.safetensors").is_file()
    found = read_embedding(result.path)
    assert (found.step, found.base_model, found.metadata["modelspec.trigger_phrase"], found.vectors["clip_l"].shape) == (3, "sd_v1", "zor", (2, WIDTH))
    assert torch.equal(read_embedding(tmp_path / "out" / "zor.png").vectors["clip_l"], found.vectors["clip_l"]) and not result.problems[1:], result.problems
    assert found.metadata["modelspec.architecture"].endswith("/textual-inversion") and found.metadata["ss_new_sd_model_hash"] == FakeBackbone.checkpoint_hash
    assert "somewhere" not in str(found.metadata) and "ss_network_module" not in found.metadata


def test_where_some_captions_name_the_word_the_others_are_left_as_they_are(tmp_path):
    make_pictures(tmp_path / "all", 3)
    settings = DataSettings(folders=(str(tmp_path / "all"),), resolution=64, trigger="sks")
    assert [picture.caption for picture in read_dataset(settings).pictures] == [f"sks, colour {number}, plain" for number in range(3)]
    (tmp_path / "all" / "1.txt").write_text("one sks", encoding="utf-8")
    assert [picture.caption for picture in read_dataset(settings).pictures] == ["colour 0, plain", "one sks", "colour 2, plain"]
    templated = read_dataset(replace(settings, templates="subject"))
    assert {picture.caption for picture in templated.pictures} == {"a photo of sks"}


def test_class_pictures_never_get_the_word(tmp_path):
    make_pictures(tmp_path / "img" / "2_thing", 2)
    make_pictures(tmp_path / "reg" / "1_colour", 2)
    found = read_dataset(DataSettings(folders=(str(tmp_path),), resolution=64, trigger="sks"))
    assert all("sks" in picture.caption for picture in found.pictures) and not any("sks" in picture.caption for picture in found.prior)
    found, _ = read_prior(tmp_path / "reg", DataSettings(resolution=64, trigger="sks", templates="subject"))
    assert found and not any("sks" in picture.caption for picture in found)


@pytest.mark.parametrize(("changes", "words"), [
    ({"network__kind": "embedding"}, ["A new word zor with 2 vectors of 8 numbers (16) is trained; the model's own words, its text encoders and its UNet stay",
                                      "start from random numbers as the model's own words have them; their learning rate is 0.01", "zor.safetensors"]),
    ({"network__kind": "lora", "embedding__rates": "0.1:9, 1e-3", "embedding__norm": "keep"},
     ["together with the network", "their learning rate is 0.1:9, 1e-3; their lengths stay", "packed into the network's file"]),
    ({"network__kind": "lora", "embedding__file": "two"}, ["zor.safetensors"]),
    ({"network__kind": "embedding", "embedding__init_text": "abcd"},
     ['those of the tokens of abcd', "has 4 tokens, the word 2 vectors: some tokens are left out"]),
    ({"network__kind": "embedding", "data__prior_prompt": "a zor", "data__prior_pictures": 1}, ["class pictures should show what is known already"]),
])
def test_what_a_training_of_a_word_will_do_is_said_before(tmp_path, changes, words):
    folder = make_pictures(tmp_path / "pictures")
    config = config_of(embedding__word="zor", embedding__vectors=2, data__folders=[str(folder)], data__resolution=64, output__folder=str(tmp_path), **changes)
    told = check_training(config, FakeBackbone(), measure=True)
    for wanted in words:
        assert any(wanted in line for line in told.lines()), (wanted, told.lines())
    assert any("layers of the UNet" in line for line in told.lines()) == (changes["network__kind"] == "lora")
    assert told.memory["trained"] >= 16 * 16 and not (tmp_path / "zor.safetensors").exists()


def test_a_network_and_its_word_are_saved_as_one_file_or_as_two(tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    made = {}
    for file in ("one", "two"):
        config = config_of(embedding__word="zor", embedding__vectors=2, embedding__file=file, data__folders=[str(folder)], data__resolution=64,
                           training__steps=3, output__folder=str(tmp_path / file), output__name="net", network__kind="lora")
        path = train(config, FakeBackbone()).path
        assert path == tmp_path / file / "net.safetensors"
        made[file] = read_embedding(path, "zor").vectors if file == "one" else read_embedding(tmp_path / file / "zor.safetensors").vectors
        network = open_network(path)
        assert len(network.layers) and list(network.embeddings) == (["zor"] if file == "one" else [])
    assert torch.equal(made["one"]["clip_l"], made["two"]["clip_l"]) and not (tmp_path / "one" / "zor.safetensors").exists()


def test_a_training_of_another_word_is_not_gone_on_with(tmp_path):
    folder = make_pictures(tmp_path / "pictures")
    config = config_of(**ALONE, data__folders=[str(folder)], data__resolution=64, training__steps=3, output__folder=str(tmp_path / "out"), output__name="net")
    train(config, FakeBackbone(), should_stop=lambda: False)
    with pytest.raises(ConfigError, match=r"embedding\.vectors = 3: the saved state was trained with 2"):
        train(config.set("embedding.vectors", 3), FakeBackbone(), resume=True)
    result = train(config.change({"embedding.learning_rate": 0.5, "training.steps": 4}), FakeBackbone(), resume=True)
    assert result.steps == 4 and any("resumed with another embedding.learning_rate" in problem for problem in result.problems)


def test_a_state_from_before_there_were_words_is_gone_on_with(tmp_path):
    """What a saved config does not say yet is at its default, and no change of the settings."""
    folder = make_pictures(tmp_path / "pictures")
    config = config_of(data__folders=[str(folder)], data__resolution=64, training__steps=3, output__folder=str(tmp_path / "out"), output__name="net")
    train(config, FakeBackbone())
    states = States(tmp_path / "out", "net", 2)
    state, _ = states.read_latest()
    held = {section: values for section, values in state.config.items() if section != "embedding"}
    states.write(replace(state, config={**held, "data": {key: value for key, value in held["data"].items() if key != "trigger"}}))
    result = train(config.set("training.steps", 5), FakeBackbone(), resume=True)
    assert result.steps == 5 and result.problems == ("resumed with another training.steps: 5, before 3",)


def test_files_that_a_word_is_made_of_are_read_where_the_fence_allows_it():
    config = config_of(network__kind="embedding", embedding__start_from="/elsewhere/own.pt", data__templates="/elsewhere/mine.txt")
    assert {("embedding.start_from", "/elsewhere/own.pt"), ("data.templates", "/elsewhere/mine.txt")} <= set(read_paths(config))
    assert not [key for key, _ in read_paths(config_of(network__kind="embedding", data__templates="style_filewords")) if key == "data.templates"]
