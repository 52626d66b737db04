"""A network, an embedding and an adapter, each from pictures to its use, as a new user does it in the real WebUI."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from .browsing import choose, drop, field, fill, generate, open_page, open_tab, says
from .test_cards_in_browser import card

pytestmark = [pytest.mark.webui, pytest.mark.browser]
LINE = "document.querySelector('#lycoris_curve svg polyline')?.getAttribute('points')"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of captioned pictures."""
    folder = tmp_path_factory.mktemp("pictures of zorbax")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a zorbax, number {number}")
    return folder


@pytest.fixture
def page(real_webui, chromium):
    with open_page(real_webui._url, chromium) as page:
        yield page


@pytest.fixture
def unchanged(real_webui):
    """Fails where a picture without the result, or anything on the model, is another one after the story than before."""
    before, model = real_webui.picture("a large red circle", checkpoint=real_webui.base), real_webui.model()
    yield before
    assert real_webui.picture("a large red circle").pictures == before.pictures
    after = real_webui.model()
    assert {key: after[key] for key in ("bits", "identity", "hooks")} == {key: model[key] for key in ("bits", "identity", "hooks")}


def prepare(page, kind, name, pictures, dropped):
    """From the empty tab to a check that has no objection."""
    open_tab(page, "Lyco")
    choose(page, "lycoris_preset", "first try")
    page.wait_for_function("document.querySelector('#lycoris_training_steps input, #lycoris_training_steps textarea').value === '300'")
    if kind != "locon":
        choose(page, "lycoris_network_kind", kind)
    if kind == "adapter":
        page.locator("#lycoris_tab_train .label-wrap", has_text="More about the pictures").click()
        fill(page, "lycoris_data_preprocessor", "canny")
    fill(page, "lycoris_data_folders", "" if dropped else pictures)
    if dropped:
        page.locator("#lycoris_upload > .label-wrap, #lycoris_upload button.label-wrap").first.click()
        fill(page, "lycoris_upload_name", f"{name}-pictures")
        drop(page, "#lycoris_upload_files [class*=center], #lycoris_upload_files button", sorted(pictures.iterdir()))
        says(page, f"{len(list(pictures.iterdir()))} files were put into", "lycoris_upload_answer")
        page.wait_for_function("name => document.querySelector('#lycoris_data_folders textarea').value.includes(name)", arg=f"{name}-pictures")
    fill(page, "lycoris_output_name", name)
    fill(page, "lycoris_training_steps", 20000)
    page.locator("#lycoris_check").click()
    page.wait_for_function("document.querySelector('#lycoris_plan textarea')?.value.includes('4 pictures')")
    assert page.locator("#lycoris_train_problem").first.inner_text().strip() == ""


def train(page, name):
    """Start, a moving curve, a pause with a picture in between, a reload, and the end; gives what the page says is to be typed."""
    page.locator("#lycoris_start").click()
    says(page, f"Training ({name})")
    page.wait_for_function(f"Boolean({LINE})")
    page.wait_for_function(f"before => ![before, undefined].includes({LINE})", arg=page.evaluate(LINE))
    page.locator("#lycoris_pause").click()
    says(page, f"the model is free for pictures ({name})")
    open_tab(page, "txt2img")
    assert "left out" not in generate(page, "a small blue square")
    page.reload()
    open_tab(page, "Lyco")
    says(page, f"the model is free for pictures ({name})")
    page.wait_for_function("name => document.querySelector('#lycoris_output_name textarea, #lycoris_output_name input').value === name", arg=name)
    page.locator("#lycoris_pause").get_by_text("Resume").click()
    says(page, f"Training ({name})")
    page.wait_for_function(f"Boolean({LINE})")
    page.locator("#lycoris_stop").click()
    says(page, f"Stopped, and saved ({name})")
    return field(page, "lycoris_tag").input_value() if page.locator("#lycoris_tag").first.is_visible() else ""


def test_a_network(page, real_webui, pictures, unchanged):
    prepare(page, "locon", "story-network", pictures, dropped=True)
    tag = train(page, "story-network")
    assert tag.startswith("<lyco:story-network-step")
    open_tab(page, "txt2img")
    assert "Lyco hashes" in generate(page, f"a zorbax {tag}")
    assert real_webui.picture(f"a large red circle {tag}").pictures != unchanged.pictures
    page.locator("#txt2img_extra_tabs > .tab-nav > button", has_text="LyCORIS").click()
    page.locator("#txt2img_lycoris_extra_refresh").first.click()
    page.locator("#txt2img_prompt textarea").fill("")
    card(page, tag.split(":")[1]).click()
    assert page.locator("#txt2img_prompt textarea").input_value().startswith(tag)


def test_an_embedding(page, real_webui, pictures, unchanged):
    without = real_webui.picture("a story-word")
    prepare(page, "embedding", "story-word", pictures, dropped=False)
    word = train(page, "story-word")
    assert word.startswith("story-word")
    open_tab(page, "txt2img")
    generate(page, f"a {word}")
    assert real_webui.picture(f"a {word}").pictures != without.pictures
    page.locator("#txt2img_extra_tabs > .tab-nav > button", has_text="Textual Inversion").click()
    page.locator("#txt2img_textual_inversion_extra_refresh").first.click()
    page.locator("#txt2img_prompt textarea").fill("")
    page.locator(f"#txt2img_textual_inversion_cards .card[data-name^='{word}']").click()
    assert page.locator("#txt2img_prompt textarea").input_value().strip() == word


def test_an_adapter(page, real_webui, pictures, unchanged):
    prepare(page, "adapter", "story-adapter", pictures, dropped=True)
    train(page, "story-adapter")
    open_tab(page, "txt2img")
    page.locator("#lyco_adapters_txt2img .label-wrap").first.click()
    page.locator("#lyco_adapter_txt2img_1_refresh").first.click()
    page.wait_for_timeout(1000)
    choose(page, "lyco_adapter_txt2img_1_adapter", "story-adapter")
    page.locator("#lyco_adapter_txt2img_1_picture input[type=file]").set_input_files(pictures / "1.png")
    page.locator("#lyco_adapter_txt2img_1_picture img").wait_for()
    said = generate(page, "a large red circle")
    assert "adapter=story-adapter" in said and "left out" not in said
