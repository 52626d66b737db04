"""A network, a word and an adapter in the hands of somebody who has nothing but the studio: sample pictures, preset, Start, a pause, and the use."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lib_lycoris.studio.world.follow import overlap
from lib_lycoris.studio.world.maps import edge_map, map_caption, map_scenes
from lib_lycoris.studio.world.measure import read_picture
from tests.browser.studio import box, choose, holds, open_tab, says, wait_for_curve_to_move, write

pytestmark = pytest.mark.browser

FEW = "20000"
"""Steps that nobody waits for: the training is stopped."""
CAPTIONS = ("a large red {} in the middle on a white background", "a large blue {} in the middle on a gray background",
            "a medium green {} in the middle on a black background")
"""Colours and backgrounds in pairs that no picture of the hourglass has."""


@dataclass(frozen=True)
class Story:
    """What is chosen, and what is then asked for: the shape that a word stands for."""

    kind: str
    preset: str
    sample: str
    word: str = ""
    shape: str = ""


STORIES = {
    "network": Story("locon", "first try · embedded model", "sample-zorbix", "zorbix", "hourglass"),
    "word": Story("embedding", "first word · embedded model", "sample-vorrel", "vorrel", "ring"),
    "adapter": Story("adapter", "first adapter · embedded model", "sample-outlines"),
}


@pytest.fixture(scope="module")
def furnish():
    """The embedded checkpoint and nothing else."""
    return lambda folder: []


def prepare(page, story, name, steps=None):
    """From the empty page to the fields as they are wanted."""
    open_tab(page, "Train")
    choose(page, "network_kind", story.kind)
    page.locator("#lycoris_sample").click()
    page.wait_for_function("name => document.querySelector('#lycoris_data_folders textarea').value.endsWith(name)", arg=story.sample)
    page.locator("#lycoris_pictures_problem .lycoris-note").wait_for()
    choose(page, "preset", story.preset)
    page.locator("#lycoris_preset_about").get_by_text("from the sample pictures").wait_for()
    page.wait_for_function("document.querySelector('#lycoris_training_steps textarea, #lycoris_training_steps input').value !== ''")
    write(box(page, "output_name"), name)
    if steps:
        write(box(page, "training_steps"), steps)


def train(page, name, stop):
    """Start, a moving curve, a pause, a reload, and on to the end; gives what the page says is to be used."""
    page.locator("#lycoris_start").click()
    says(page, f"Training ({name})")
    wait_for_curve_to_move(page)
    page.locator("#lycoris_pause").click()
    says(page, f"the model is free for pictures ({name})")
    page.reload()
    open_tab(page, "Train")
    says(page, f"the model is free for pictures ({name})")
    holds(page, "output_name", name)
    page.locator("#lycoris_pause").get_by_text("Resume").click()
    says(page, f"Training ({name})")
    wait_for_curve_to_move(page)
    if stop:
        page.locator("#lycoris_stop").click()
    says(page, f"{'Stopped, and saved' if stop else 'Done'} ({name})")
    page.locator("#lycoris_tag").wait_for()
    return box(page, "tag").input_value()


def draw(page, studio, prompt, seed, batch=1, steps=20):
    """Pictures as arrays, in their order."""
    folder = studio.folder / "outputs" / "pictures"
    before = set(folder.glob("*.png"))
    open_tab(page, "Generate")
    for field, value in (("prompt", prompt), ("seed", seed), ("batch", batch), ("steps", steps)):
        write(box(page, f"generate_{field}"), str(value))
    value = "document.querySelector('#lycoris_files textarea, #lycoris_files input')?.value"
    last = page.evaluate(value)
    page.locator("#lycoris_generate").click()
    page.wait_for_function(f"last => ![last, undefined, ''].includes({value})", arg=last)
    infotext = page.locator("#lycoris_infotext textarea").input_value()
    assert infotext.startswith(prompt) and f"Seed: {seed}," in infotext
    assert page.locator("#lycoris_generate_problem [role=alert]").count() == 0
    made = sorted(set(folder.glob("*.png")) - before, key=lambda path: int(path.stem.split("-")[-2]))
    assert len(made) == batch
    return [np.asarray(Image.open(path).convert("RGB")) for path in made]


def use_adapter(page, name):
    """Chooses it beside the prompt."""
    open_tab(page, "Generate")
    unfold_adapters(page)
    page.locator("#lyco_adapter_generate_1_adapter input").click()
    page.get_by_role("option", name=name, exact=True).click()
    page.locator("#lyco_adapter_generate_1_words").get_by_text("light adapter").wait_for()
    assert page.locator("#lyco_adapter_generate_1_enabled input").is_checked()


def unfold_adapters(page):
    page.locator("#lyco_adapters_generate > button").click()


def give_map(page, scene, path):
    """Puts a scene's outline into the adapter's picture, in place of an earlier one."""
    Image.fromarray(edge_map(scene)).save(path)
    clear = page.locator("#lyco_adapter_generate_1_picture [aria-label='Clear']")
    if clear.count():
        clear.first.click()
    page.locator("#lyco_adapter_generate_1_picture input[type=file]").set_input_files(str(path))
    page.locator("#lyco_adapter_generate_1_picture img").wait_for()


@pytest.mark.parametrize("which", ["network", "word"])
def test_what_was_trained_from_the_sample_pictures_is_used_in_a_prompt(page, studio, which):
    story, name = STORIES[which], f"few-{which}"
    prepare(page, story, name, FEW)
    use = train(page, name, stop=True)
    assert use.startswith(f"<lyco:{name}-step" if which == "network" else f"{story.word}-step")
    plain, = draw(page, studio, "a large red in the middle", seed=5, steps=3)
    drawn, = draw(page, studio, f"a large red {use} in the middle", seed=5, steps=3)
    assert (plain != drawn).any()


def test_an_adapter_that_was_trained_from_the_sample_pairs_is_chosen_beside_the_prompt(page, studio, tmp_path):
    prepare(page, STORIES["adapter"], "few-adapter", FEW)
    for path in sorted(Path(box(page, "data_folders").input_value()).iterdir())[60:]:  # twenty pairs are enough to see that it trains
        path.unlink()
    name = train(page, "few-adapter", stop=True)
    assert name.startswith("few-adapter-step")
    assert page.locator("#lycoris_previews").get_by_text("control").count() >= 1
    plain, = draw(page, studio, "a red star", seed=5, steps=3)
    use_adapter(page, name)
    give_map(page, map_scenes(1, seed=900)[0], tmp_path / "map.png")
    drawn, = draw(page, studio, "a red star", seed=5, steps=3)
    assert (plain != drawn).any()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["network", "word"])
def test_the_whole_training_of_the_preset_teaches_what_the_sample_pictures_show(page, studio, which):
    story, name = STORIES[which], f"whole-{which}"

    def look(tag):
        """The share of pictures that show the shape when its word is asked for."""
        drawn = [picture for number, caption in enumerate(CAPTIONS)
                 for picture in draw(page, studio, f"{caption.format(story.word)}{tag}", seed=100 + 10 * number, batch=4)]
        return np.mean([read_picture(picture).shape == story.shape for picture in drawn])

    before = look("")
    prepare(page, story, name)
    use = train(page, name, stop=False)
    assert use == (f"<lyco:{name}:1>" if which == "network" else story.word)
    after = look(f" {use}" if which == "network" else "")
    print(f"{which}: {story.shape} in {before:.0%} of the pictures before, {after:.0%} after")
    assert before <= 0.1 and after >= 0.7


@pytest.mark.slow
def test_the_whole_training_of_the_preset_makes_pictures_follow_outlines(page, studio, tmp_path):
    prepare(page, STORIES["adapter"], "whole-adapter")
    assert train(page, "whole-adapter", stop=False) == "whole-adapter"
    scenes, found = map_scenes(8, seed=900), {}
    for guided in (False, True):
        if guided:
            use_adapter(page, "whole-adapter")
        overlaps = []
        for number, scene in enumerate(scenes):
            if guided:
                give_map(page, scene, tmp_path / f"map-{number}.png")
            overlaps.append(overlap(draw(page, studio, map_caption(scene), seed=1000 + number)[0], scene))
        found[guided] = np.mean(overlaps)
    print(f"overlap of outline and shape: {found[False]:.2f} without, {found[True]:.2f} with the adapter")
    assert found[True] >= 0.6 and found[True] >= found[False] + 0.15
