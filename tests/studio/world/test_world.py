"""The world's scenes, and the measure that reads them back."""
from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from lib_lycoris.studio.world import scenes
from lib_lycoris.studio.world.dataset import concept_scenes, draw_dataset
from lib_lycoris.studio.world.measure import read_picture, shape_mask

PARTS = ("shape", "colour", "size", "position", "background")


@pytest.fixture(scope="module")
def readings():
    rng = random.Random(20)
    asked = [scenes.draw_scene(rng, scenes.CONCEPT_SHAPE if i % 7 == 0 else None) for i in range(700)]
    return [(scene, read_picture(scenes.render(scene))) for scene in asked]


@pytest.mark.parametrize("part", PARTS)
def test_the_measure_names_every_part_of_a_fresh_render_in_99_of_100(readings, part):
    right = sum(getattr(found, part) == getattr(scene, part) for scene, found in readings)
    assert right >= 0.99 * len(readings)


@pytest.mark.parametrize("side", [64, 96, 128])
def test_the_measure_does_not_depend_on_the_size_of_the_picture(side):
    rng = random.Random(side)
    asked = [scenes.draw_scene(rng) for _ in range(40)]
    assert sum(read_picture(scenes.render(scene, side)).shape == scene.shape for scene in asked) == 40


def test_the_measure_still_reads_a_noisy_picture():
    rng, noise = random.Random(4), np.random.default_rng(4)
    asked = [scenes.draw_scene(rng) for _ in range(60)]
    noisy = [np.clip(scenes.render(scene) + noise.normal(0, 12, (64, 64, 3)), 0, 255).astype(np.uint8) for scene in asked]
    found = [read_picture(picture) for picture in noisy]
    assert sum(f.shape == a.shape and f.colour == a.colour for f, a in zip(found, asked, strict=True)) >= 57


def test_an_empty_picture_shows_no_shape():
    found = read_picture(np.full((64, 64, 3), 128, dtype=np.uint8))
    assert (found.shape, found.colour, found.background) == (None, None, "gray")


def test_noise_shows_no_shape():
    noise = np.random.default_rng(0).integers(0, 256, (20, 64, 64, 3), dtype=np.uint8)
    assert sum(read_picture(picture).shape is not None for picture in noise) <= 1


def test_a_shape_that_is_none_of_the_known_is_not_given_a_name():
    picture = np.full((64, 64, 3), 245, dtype=np.uint8)
    picture[28:34, 4:60] = (225, 35, 40)
    assert read_picture(picture).shape is None


def test_the_mask_covers_what_the_renderer_covered():
    scene = scenes.Scene("ring", "blue", "large")
    mask, truth = shape_mask(scenes.render(scene)), scenes.coverage(scene) > 0.5
    assert (mask & truth).sum() / (mask | truth).sum() > 0.97


def test_every_shape_stays_inside_the_picture():
    for shape in (*scenes.SHAPES, scenes.CONCEPT_SHAPE):
        for size in scenes.SIZES:
            for position in scenes.POSITIONS:
                cover = scenes.coverage(scenes.Scene(shape, "red", size, position))
                outside = np.concatenate([cover[0], cover[-1], cover[:, 0], cover[:, -1]])
                assert outside.max() < 0.5, (shape, size, position)


def test_a_caption_names_the_colour_and_the_shape_whatever_it_leaves_out():
    rng = random.Random(0)
    for _ in range(100):
        scene = scenes.draw_scene(rng)
        text = scenes.caption(scene, rng)
        assert scene.colour in text and scene.shape in text


def test_held_back_scenes_are_a_tenth_and_never_repeat():
    held = scenes.held_back_scenes(200)
    assert len({scenes.caption(scene) for scene in held}) == 200 and all(scenes.held_back(scene) for scene in held)
    rng = random.Random(1)
    assert 0.06 < sum(scenes.held_back(scenes.draw_scene(rng)) for _ in range(2000)) / 2000 < 0.15


def test_jitter_does_not_decide_what_is_held_back():
    scene = scenes.held_back_scenes(1)[0]
    assert scenes.held_back(replace(scene, jitter=(0.01, -0.01, 0.0)))


def test_more_held_back_scenes_than_there_are_is_an_error_with_the_number():
    with pytest.raises(ValueError, match="the world has"):
        scenes.held_back_scenes(5000)


def test_an_unknown_colour_is_refused_with_the_choice():
    with pytest.raises(ValueError, match=r"no colour 'mauve'.*red"):
        scenes.Scene("circle", "mauve")


def test_a_drawn_dataset_has_a_caption_with_the_word_beside_every_picture(tmp_path):
    folder = draw_dataset(tmp_path / "concept", 8, scenes.CONCEPT_SHAPE)
    pictures = sorted(folder.glob("*.png"))
    assert len(pictures) == 8
    for path in pictures:
        assert scenes.CONCEPT_WORD in path.with_suffix(".txt").read_text(encoding="utf-8")
        assert read_picture(np.array(Image.open(path))).shape == scenes.CONCEPT_SHAPE


def test_eight_concept_scenes_show_every_colour_and_background_and_no_pair_twice():
    drawn = concept_scenes(8)
    assert {scene.colour for scene in drawn} == set(scenes.COLOURS) and {scene.background for scene in drawn} == set(scenes.BACKGROUNDS)
    assert len({(scene.colour, scene.background) for scene in drawn}) == 8
