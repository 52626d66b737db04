"""An adapter in the studio's Generate tab: the embedded sample, a picture of edges, its map, and what is drawn with it; and on the Library tab."""

from __future__ import annotations

import os

import pytest
import torch

from lib_lycoris.files.embeddings import write_embedding
from tests.browser.studio import write

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def furnish():
    """An embedding, for a studio with the embedded checkpoint."""

    def put(folder):
        (folder / "embeddings").mkdir()
        write_embedding(folder / "embeddings" / "zorbix.safetensors", {"clip_l": torch.full((2, 768), 0.1)})
        return []

    return put


def test_choose_the_sample_adapter_give_a_picture_see_its_map_and_generate(page, studio, tmp_path):
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(picture).ellipse((30, 30, 98, 98), fill="black")
    picture.save(tmp_path / "shape.png")
    page.locator("#lyco_adapters_generate > button").click()
    chooser = page.locator("#lyco_adapter_generate_1_adapter input")
    chooser.click()
    page.get_by_role("option", name="lyco-world-edges").click()
    page.locator("#lyco_adapter_generate_1_words").get_by_text("light adapter").wait_for()
    assert page.locator("#lyco_adapter_generate_1_enabled input").is_checked()
    page.locator("#lyco_adapter_generate_1_picture input[type=file]").set_input_files(str(tmp_path / "shape.png"))
    page.locator("#lyco_adapter_generate_1_picture img").wait_for()
    page.locator("#lyco_adapter_generate_1_preview").click()
    page.locator("#lyco_adapter_generate_1_map img").wait_for()
    write(page.locator("#lycoris_generate_prompt textarea"), "a red circle")
    write(page.locator("#lycoris_generate_steps input").first, "4")
    page.locator("#lycoris_generate").click()
    page.wait_for_function("document.querySelector('#lycoris_infotext textarea')?.value.includes('lyco-world-edges')")
    assert page.locator("#lycoris_generate_problem").inner_text().strip() == ""
    made = list((studio.folder / "outputs" / "pictures").glob("*.png"))
    assert len(made) == 1
    if os.environ.get("LYCO_SHOTS"):
        page.screenshot(path=os.path.join(os.environ["LYCO_SHOTS"], "generate.png"), full_page=True)
    the_picture_brings_its_adapter_back(page, made[0])
    a_wrong_value_is_told_where_it_was_typed(page)


def the_picture_brings_its_adapter_back(page, made):
    """On a fresh page the dropped PNG sets the unit up, with the picture that it looked at, and the same picture is made again."""
    from PIL import Image

    page.reload()
    page.get_by_text("Checkpoint: ").wait_for()
    page.locator("#lycoris_drop input[type=file]").set_input_files(str(made))
    page.locator("#lyco_adapter_generate_1_picture img").wait_for()
    page.locator("#lyco_adapter_generate_1_words").get_by_text("light adapter").wait_for()
    assert page.locator("#lyco_adapter_generate_1_enabled input").is_checked()
    assert page.locator("#lyco_adapter_generate_1_adapter input").input_value() == "lyco-world-edges"
    assert page.locator("#lycoris_generate_problem").inner_text().strip() == ""
    page.locator("#lycoris_generate").click()
    page.wait_for_function("name => document.querySelector('#lycoris_files textarea, #lycoris_files input')?.value.endsWith('.png') && "
                           "!document.querySelector('#lycoris_files textarea, #lycoris_files input').value.includes(name)", arg=made.name)
    again = page.locator("#lycoris_files textarea, #lycoris_files input").first.input_value()
    with Image.open(made) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes() and first.info["parameters"] == second.info["parameters"]


def a_wrong_value_is_told_where_it_was_typed(page):
    write(page.locator("#lycoris_generate_width input").first, "63")
    page.locator("#lycoris_generate").click()
    page.locator("#lycoris_generate_width").get_by_text("generate.width = 63").wait_for()
    write(page.locator("#lycoris_generate_width input").first, "64")
    page.locator("#lyco_adapter_generate_1_adapter").wait_for()
    page.locator("#lyco_adapters_generate button", has_text="More of this adapter").first.click()
    write(page.locator("#lyco_adapter_generate_1_level_weights textarea, #lyco_adapter_generate_1_level_weights input").first, "1, x")
    page.locator("#lycoris_generate").click()
    page.locator("#lyco_adapter_generate_1_problem").get_by_text("unit.level_weights").wait_for()
    assert page.locator("#lycoris_generate_width").get_by_text("generate.width = 63").count() == 0


def test_an_embedding_stands_on_the_library_tab_and_is_renamed_there(page, studio):
    page.get_by_role("tab", name="Library").click()
    page.locator("#lycoris_library_shelf label").filter(has_text="Embeddings").locator("input").check()
    page.locator("#lycoris_library_files label").filter(has_text="zorbix").locator("input").check()
    page.locator("#lycoris_library_about").get_by_text("2 vectors").wait_for()
    assert not page.locator("#lycoris_library_measure").is_visible()
    if os.environ.get("LYCO_SHOTS"):
        page.screenshot(path=os.path.join(os.environ["LYCO_SHOTS"], "library.png"), full_page=True)
    page.locator("#lycoris_library_rename > button").click()
    write(page.get_by_label("New name"), "bird")
    page.locator("#lycoris_library_do_rename").click()
    page.locator("#lycoris_library_said").get_by_text("It is called bird now.").wait_for()
    assert (studio.folder / "embeddings" / "bird.safetensors").is_file()
