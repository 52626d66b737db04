"""The studio as a new user meets it: open, train, see it move, generate with the tag."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.browser.studio import PATIENCE, box, choose, holds, open_tab, says, unfold, wait_for_curve_to_move, write

pytestmark = pytest.mark.browser


def test_train_watch_and_generate_with_the_tag(page, pictures):
    open_tab(page, "Train")
    write(box(page, "data_folders"), str(pictures))
    write(box(page, "output_name"), "zorb")
    write(box(page, "training_steps"), "6")
    page.locator("#lycoris_check").click()
    page.wait_for_function("document.querySelector('#lycoris_plan textarea')?.value.includes('5 pictures.')")
    page.locator("#lycoris_start").click()
    page.get_by_text("Done (zorb) · step 6 of 6").wait_for()
    assert box(page, "tag").input_value() == "<lyco:zorb:1>"
    assert page.locator("#lycoris_curve svg polyline").is_visible()
    assert page.locator("#lycoris_start").is_enabled()
    assert page.locator("#lycoris_stop").is_disabled()

    open_tab(page, "Generate")
    assert (box(page, "generate_width").input_value(), box(page, "generate_height").input_value()) == ("64", "64")
    write(box(page, "generate_prompt"), "a zorb <b>bold</b> <lyco:nope:1>")
    page.locator("#lycoris_networks input").click()
    page.get_by_role("option", name="zorb").click()
    page.wait_for_function("document.querySelector('#lycoris_generate_prompt textarea').value.endsWith('<lyco:zorb:1>')")
    write(box(page, "generate_steps"), "2")
    page.locator("#lycoris_generate").click()
    page.locator("#lycoris_pictures img").first.wait_for()
    assert "no network is called 'nope'" in page.locator("#lycoris_generate_problem").inner_text()
    page.wait_for_function("document.querySelector('#lycoris_infotext textarea').value.includes('Model: tiny')")
    assert page.locator("#lycoris_generate_problem b").count() == 0
    assert page.locator("#lycoris_pictures [aria-label='Share']").count() == 0


def test_the_whole_story_with_the_sample_pictures(page, studio):
    open_tab(page, "Train")
    choose(page, "preset", "first try · embedded model")
    holds(page, "training_steps", "300")
    page.locator("#lycoris_sample").click()
    page.wait_for_function("document.querySelector('#lycoris_data_folders textarea').value.includes('sample-zorbix')")
    write(box(page, "output_name"), "story")
    write(box(page, "training_steps"), "20000")

    unfold(page, "look")
    page.locator("#lycoris_show_pictures").click()
    page.locator("#lycoris_gallery img").first.wait_for()
    page.locator("#lycoris_gallery img").first.click()
    page.wait_for_function("document.querySelector('#lycoris_caption textarea').value.includes('zorbix')")
    write(page.locator("#lycoris_caption textarea"), "a zorbix <i>mine</i>")
    page.locator("#lycoris_save_caption").click()
    page.get_by_text("Saved beside scene-01.png").wait_for()

    page.locator("#lycoris_start").click()
    says(page, "Training (story)")
    wait_for_curve_to_move(page)
    page.locator("#lycoris_preview").click()
    page.wait_for_function("document.querySelectorAll('#lycoris_previews img').length >= 4")
    assert page.locator("#lycoris_previews").get_by_text("before").count() == 2 and page.locator("#lycoris_previews i").count() == 0
    page.locator("#lycoris_pause").click()
    says(page, "Paused")
    page.reload()
    open_tab(page, "Train")
    says(page, "the model is free for pictures (story)")
    holds(page, "output_name", "story")
    assert page.locator("#lycoris_pause").inner_text() == "Resume"
    second = page.context.browser.new_page()
    second.set_default_timeout(PATIENCE)
    second.goto(studio.address)
    open_tab(second, "Train")
    page.locator("#lycoris_pause").click()
    for one in (page, second):
        says(one, "Training (story)")
    second.close()
    page.locator("#lycoris_stop").click()
    says(page, "Stopped, and saved (story)")
    tag = box(page, "tag").input_value()
    assert tag.startswith("<lyco:story-step")
    open_tab(page, "Generate")
    write(box(page, "generate_prompt"), f"a zorbix {tag}")
    write(box(page, "generate_steps"), "2")
    page.locator("#lycoris_generate").click()
    page.wait_for_function("tag => document.querySelector('#lycoris_infotext textarea').value.includes(tag)", arg=tag)
    assert page.locator("#lycoris_generate_problem p").count() == 0


def test_uploaded_pictures_are_trained_on_and_settings_travel(page, tmp_path):
    from PIL import Image

    files = []
    for number in range(2):
        Image.new("RGB", (96, 64), (90 * number, 20, 90)).save(tmp_path / f"cat {number}.png")
        (tmp_path / f"cat {number}.txt").write_text(f"a cat, {number}", encoding="utf-8")
        files += [tmp_path / f"cat {number}.png", tmp_path / f"cat {number}.txt"]
    open_tab(page, "Train")
    unfold(page, "upload")
    write(box(page, "upload_name"), "browser-cats")
    page.locator("#lycoris_upload_files input[type=file]").set_input_files(files)
    page.wait_for_function("document.querySelector('#lycoris_data_folders textarea').value.includes('browser-cats')")
    page.get_by_text("4 files were put into").wait_for()

    unfold(page, "settings_files")
    settings = tmp_path / "kohya.json"
    settings.write_text('{"LoRA_type": "LyCORIS/LoHa", "network_dim": 7, "max_train_steps": 33, "color_aug": true}', encoding="utf-8")
    page.locator("#lycoris_import input[type=file]").set_input_files(settings)
    page.get_by_text("color_aug = true: has no equivalent here").wait_for()
    holds(page, "training_steps", "33")
    page.locator("#lycoris_command").click()
    page.wait_for_function("document.querySelector('#lycoris_exported textarea')?.value.includes('network.kind=loha')")
    write(box(page, "preset_name"), "from kohya")
    page.locator("#lycoris_preset_save").click()
    holds(page, "preset", "from kohya")

    write(box(page, "training_steps"), "many")
    page.locator("#lycoris_start").click()
    page.locator("#lycoris_training_steps").get_by_text("training.steps").wait_for()
    assert "training.steps" in page.locator("#lycoris_train_problem").inner_text()
    choose(page, "preset", "first try · embedded model")
    holds(page, "training_steps", "300")
    write(box(page, "training_steps"), "9")
    page.locator("#lycoris_start").click()
    page.locator("#lycoris_training_warmup_steps").get_by_text("more than training.steps = 9").wait_for()  # in a part that was folded


def test_a_failed_training_says_why_and_a_reload_finds_the_last_one_again(page, tmp_path):
    open_tab(page, "Train")
    write(box(page, "data_folders"), str(tmp_path / "<i>nothing</i>"))
    page.locator("#lycoris_start").click()
    page.locator("#lycoris_data_folders").get_by_text("does not exist").wait_for()
    assert "does not exist" in page.locator("#lycoris_train_problem [role=alert]").inner_text()
    assert page.locator("#lycoris_train_problem i, #lycoris_data_folders i").count() == 0
    (tmp_path / "<i>bare").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "<i>bare" / "no caption.png")
    write(box(page, "data_folders"), str(tmp_path / "<i>bare"))
    page.locator("#lycoris_start").click()
    page.locator("#lycoris_progress [role=alert]").wait_for()
    assert "caption" in page.locator("#lycoris_progress [role=alert]").inner_text()
    assert page.locator("#lycoris_progress i").count() == 0
    page.reload()
    open_tab(page, "Train")
    page.locator("#lycoris_progress [role=alert]").wait_for()


def test_every_field_has_a_label_and_the_keyboard_reaches_it(page):
    unlabelled = page.evaluate("""[...document.querySelectorAll('.tabitem input, .tabitem textarea')]
        .filter(field => field.type !== 'hidden' && field.offsetParent !== null)
        .filter(field => !(field.labels?.length || field.getAttribute('aria-label') || field.getAttribute('aria-labelledby')))
        .map(field => field.outerHTML.slice(0, 120))""")
    assert unlabelled == []
    box(page, "generate_prompt").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('#lycoris_generate_negative') !== null")


def test_a_word_is_trained_and_named_in_a_prompt(page, pictures):
    open_tab(page, "Train")
    choose(page, "network_kind", "embedding")
    write(box(page, "data_folders"), str(pictures))
    write(box(page, "output_name"), "zorbword")
    write(box(page, "training_steps"), "3")
    page.locator("#lycoris_start").click()
    says(page, "Done (zorbword) · step 3 of 3")
    assert box(page, "tag").input_value() == "zorbword"
    open_tab(page, "Generate")
    write(box(page, "generate_prompt"), "a zorbword")
    write(box(page, "generate_steps"), "2")
    page.locator("#lycoris_generate").click()
    page.wait_for_function("document.querySelector('#lycoris_infotext textarea').value.startsWith('a zorbword')")
    assert page.locator("#lycoris_generate_problem p").count() == 0
