"""The studio's Library and Generate tabs in the hands of somebody who has files: find, measure, rename, delete, restore; complete, restore settings."""

from __future__ import annotations

import re

import pytest
import torch

from lib_lycoris.files.safetensors import write_tensors
from tests.browser.studio import write

pytestmark = pytest.mark.browser

NASTY = "<img src=x onerror=window.lycoBroken=1>"
CROSS = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"


def put(path, **metadata):
    generator = torch.Generator().manual_seed(len(path.name))
    tensors = {f"{CROSS}.lora_up.weight": torch.randn(8, 2, generator=generator), f"{CROSS}.lora_down.weight": torch.randn(2, 16, generator=generator)}
    write_tensors(path, tensors, metadata)


@pytest.fixture(scope="module")
def furnish():
    """A checkpoint of random weights and some networks."""
    from tests.studio.tiny import write_checkpoint

    def put_all(folder):
        nets = folder / "networks"
        nets.mkdir()
        put(nets / "tabby.safetensors", **{"modelspec.trigger_phrase": "zorbix", "modelspec.title": NASTY, "ss_training_comment": NASTY})
        put(nets / "other.safetensors")
        (nets / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
        return ["--checkpoint", str(write_checkpoint(folder))]

    return put_all


@pytest.fixture
def page(page):
    yield page
    assert page.evaluate("window.lycoBroken") is None


def choose(page, name):
    page.locator("#lycoris_library_files label").filter(has_text=re.compile(rf"^\s*{name}\b")).locator("input").check()
    page.locator("#lycoris_library_about .lycoris-name", has_text=re.compile(f"^{name}$")).wait_for()


def unfold(page, part):
    page.locator(f"#lycoris_library_{part} button").first.click()


def press(page, what):
    page.locator(f"#lycoris_library_{what}").click()


def told(page, words):
    page.locator("#lycoris_library_said").get_by_text(words).wait_for()


def test_find_look_measure_rename_delete_and_restore(page, studio):
    nets = studio.folder / "networks"
    page.get_by_role("tab", name="Library").click()
    page.locator("#lycoris_library_files label").nth(2).wait_for()
    write(page.get_by_label("Search"), "zorb")
    page.wait_for_function("document.querySelectorAll('#lycoris_library_files label').length === 1")
    choose(page, "tabby")
    about = page.locator("#lycoris_library_about")
    assert NASTY in about.inner_text() and about.locator("img").count() == 0
    unfold(page, "measure")
    press(page, "do_measure")
    page.locator("#lycoris_library_figures svg polyline").wait_for()
    assert "IN04" in page.locator("#lycoris_library_figures").inner_text()
    unfold(page, "rename")
    write(page.get_by_label("New name"), "../outside")
    press(page, "do_rename")
    page.locator("#lycoris_library_problem [role=alert]").get_by_text("choose another").wait_for()
    write(page.get_by_label("New name"), "tabby two")
    press(page, "do_rename")
    told(page, "It is called tabby two now.")
    assert (nets / "tabby two.safetensors").exists()
    unfold(page, "delete")
    press(page, "ask_delete")
    assert (nets / "tabby two.safetensors").exists()  # asked first
    press(page, "do_delete")
    told(page, "In the trash: tabby two.safetensors.")
    assert not (nets / "tabby two.safetensors").exists()
    unfold(page, "trash")
    page.locator("#lycoris_library_deleted label", has_text="tabby two").locator("input").check()
    press(page, "do_restore")
    told(page, "Restored: tabby two.safetensors.")
    assert (nets / "tabby two.safetensors").exists()
    (nets / "tabby two.safetensors").rename(nets / "tabby.safetensors")


def test_the_list_works_by_keyboard_and_a_damaged_file_says_why(page):
    page.get_by_role("tab", name="Library").click()
    page.locator("#lycoris_library_files label").nth(2).wait_for()
    choose(page, "damaged")
    assert "damaged" in page.locator("#lycoris_library_about").inner_text()
    page.locator("#lycoris_library_files input").first.focus()
    page.keyboard.press("ArrowDown")
    page.locator("#lycoris_library_about .lycoris-name", has_text="other").wait_for()
    page.keyboard.press("ArrowDown")
    page.locator("#lycoris_library_about .lycoris-name", has_text="tabby").wait_for()
    assert page.locator("#lycoris_library_files input:checked").count() == 1
    page.keyboard.press("Tab")  # out of the list
    assert page.evaluate("document.activeElement.closest('#lycoris_library_files') === null && document.activeElement !== document.body")
    unlabelled = page.evaluate("""[...document.querySelectorAll('#lycoris_tab_library input, #lycoris_tab_library textarea, [role=tabpanel] button')]
        .filter(field => field.type !== 'hidden' && field.type !== 'file' && field.offsetParent !== null)
        .filter(field => !(field.labels?.length || field.getAttribute('aria-label') || field.getAttribute('aria-labelledby') || field.textContent.trim()))
        .map(field => field.outerHTML.slice(0, 160))""")
    assert unlabelled == []


def test_many_files_of_any_name_are_turned_over_page_by_page_and_one_that_vanished_is_told(page, studio):
    many = studio.folder / "networks" / "many"
    many.mkdir()
    put(many / "template.safetensors")
    data = (many / "template.safetensors").read_bytes()
    names = ["it's", NASTY.replace("/", "_"), "\u05d0\u05d1 😀", "z" * 200, *(f"n{number:03}" for number in range(220))]
    for name in names:
        (many / f"{name}.safetensors").write_bytes(data)
    page.get_by_role("tab", name="Library").click()
    press(page, "read")
    page.get_by_text(re.compile(r"1 to 200 of 22\d")).wait_for()
    assert page.locator("#lycoris_library_files label").count() == 200 and not page.locator("#lycoris_library_earlier").is_enabled()
    press(page, "later")
    page.get_by_text(re.compile(r"201 to 22\d of 22\d")).wait_for()
    write(page.get_by_label("Search"), "onerror many")  # another file has it in its title
    page.wait_for_function("document.querySelectorAll('#lycoris_library_files label').length === 1")
    page.locator("#lycoris_library_files input").first.check()
    page.locator("#lycoris_library_about .lycoris-name", has_text="onerror").wait_for()
    write(page.get_by_label("Search"), "n007")
    page.wait_for_function("document.querySelectorAll('#lycoris_library_files label').length === 1")
    page.locator("#lycoris_library_about").get_by_text("Choose a file").wait_for()
    (many / "n007.safetensors").unlink()
    page.locator("#lycoris_library_files input").first.check()
    page.locator("#lycoris_library_problem [role=alert]").get_by_text("n007").wait_for()
    for path in many.iterdir():
        path.unlink()
    many.rmdir()
    write(page.get_by_label("Search"), "")
    press(page, "read")
    page.wait_for_function("document.querySelectorAll('#lycoris_library_files label').length < 10")


def test_a_smaller_network_is_made_in_the_background_and_stands_in_the_list(page, studio):
    page.get_by_role("tab", name="Library").click()
    page.locator("#lycoris_library_files label").nth(2).wait_for()
    choose(page, "other")
    unfold(page, "resize")
    write(page.locator("#lycoris_resize_rank textarea, #lycoris_resize_rank input").first, "1")
    press(page, "do_resize")
    page.locator("#lycoris_library_work").get_by_text("Resizing other to 1: done").wait_for()
    page.locator("#lycoris_library_files label", has_text="other-1").wait_for()
    (studio.folder / "networks" / "other-1.safetensors").unlink()


def test_a_name_is_completed_by_keyboard_and_a_dropped_picture_brings_its_settings_back(page, studio):
    prompt = page.locator("#lycoris_generate_prompt textarea")
    prompt.click()
    page.keyboard.type("a shape <lyco:tab")
    page.locator("#lycoris_complete [role=option]").get_by_text("tabby").wait_for()
    page.keyboard.press("Enter")
    assert prompt.input_value() == "a shape <lyco:tabby:1>"
    page.keyboard.type(", zor")
    page.locator("#lycoris_complete [role=option]").get_by_text("zorbix").wait_for()
    page.keyboard.press("Tab")
    assert prompt.input_value() == "a shape <lyco:tabby:1>, zorbix"
    write(page.locator("#lycoris_generate_steps input"), "2")
    page.locator("#lycoris_generate").click()
    page.locator("#lycoris_pictures img").first.wait_for()
    page.wait_for_function("document.querySelector('#lycoris_infotext textarea').value.includes('Steps: 2')")
    made = next((studio.folder / "outputs" / "pictures").glob("*.png"))
    page.reload()
    page.get_by_text("Checkpoint: tiny, 64 px").wait_for()
    page.locator("#lycoris_drop input[type=file]").set_input_files(str(made))
    page.wait_for_function("document.querySelector('#lycoris_generate_prompt textarea').value === 'a shape <lyco:tabby:1>, zorbix'")
    assert page.locator("#lycoris_generate_steps input").input_value() == "2"
    page.locator("#lycoris_history button").first.click()
    page.locator("#lycoris_history_pictures button img").first.click()
    page.wait_for_function("document.querySelector('#lycoris_history_infotext textarea').value.startsWith('a shape')")
    page.locator("#lycoris_drop input[type=file]").wait_for(state="attached")
    page.locator("#lycoris_drop input[type=file]").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#lycoris_generate_problem [role=alert]").get_by_text("no PNG that can be read").wait_for()


def test_the_page_adds_no_global_of_ours(page):
    assert page.evaluate("Object.keys(window).filter(name => name.toLowerCase().includes('lyco'))") == []
