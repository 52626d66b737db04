"""Cards, editor and settings in the stand-in: what stands in the page's HTML and in the records behind it."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from .hostile import FILE, FLAG, FOLDER, IMAGE, INNER, SCRIPT, TENSORS, write_hostile


class Elements(HTMLParser):
    """Every element and its attributes, and the text between."""

    def __init__(self, text):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(stand_in_webui, tmp_path):
    """The page "LyCORIS" over a folder of its own."""
    from lib_lycoris.webui import settings

    stand_in_webui.set_options(lycoris_folders=str(tmp_path / "own"))
    stand_in_webui.reload_ui()
    (tmp_path / "own").mkdir()
    (page,) = [page for page in sys.modules["modules.ui_extra_networks"].extra_pages if page.title == "LyCORIS"]
    yield page
    for option in settings.OPTIONS:
        stand_in_webui._shared.opts.data.pop(option.key, None)
    stand_in_webui.reload_ui()


def put(path, tensors=TENSORS, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(path), {key.replace("__", "."): value for key, value in metadata.items()} or None)
    return path


def click(item):
    """What a click hands to the page's script."""
    text = Elements(f'<i onclick="{item["onclick"]}">').found[0][1]["onclick"]
    assert text.startswith("lyco.toggle('") and text.endswith(")")
    return json.loads(text.partition(", ")[2][:-1])


def items(page):
    page.refresh()
    page.html = page.create_html("txt2img")
    return page.items


@pytest.mark.parametrize("as_html", [False, True])
def test_nothing_that_a_file_says_becomes_html(page, stand_in_webui, tmp_path, as_html):
    stand_in_webui.set_options(extra_networks_card_description_is_html=as_html)
    write_hostile(tmp_path / "own")
    found = items(page)
    stand_in_webui.set_options(extra_networks_card_description_is_html=False)
    read = Elements(page.html)
    assert FILE in found and INNER in found
    assert {tag for tag, _ in read.found} == {"div", "span", "i"}
    attributes = {name for _, attrs in read.found for name in attrs}
    assert attributes <= {"class", "onclick", "data-name", "data-clipboard-text", "data-path", "data-hash", "data-sort-default", "data-sort-date_created",
                          "data-sort-date_modified", "data-sort-name", "data-sort-path"}
    assert {attrs["onclick"].partition("(")[0] for _, attrs in read.found if "onclick" in attrs} == {"lyco.toggle"}
    assert read.text.count(IMAGE) >= 4 and FOLDER in read.text
    assert {attrs["data-name"] for _, attrs in read.found if "data-name" in attrs} >= {FILE, INNER}
    assert click(found[FILE]) == {"tag": "ab" * 6, "names": ["ab" * 6, FILE], "strength": -0.5, "text": f"{SCRIPT}\nnext\u2028line", "negative": IMAGE}


def test_the_editors_table_and_messages_are_text(page, tmp_path):
    from lib_lycoris.webui.editor import NetworkEditor

    write_hostile(tmp_path / "own")
    items(page)
    editor = NetworkEditor(None, "txt2img", page, SimpleNamespace(tags=lambda counts: counts))
    name, table, _, status, description, version, activation, weight, negative, _, tags = editor.read(FILE)
    assert [tag for tag, _ in Elements(name + table + status).found if tag not in ("table", "tr", "th", "td")] == []
    assert Elements(table).text.count(IMAGE) >= 6 and Elements(name).text == FILE
    assert (description, version, weight, negative, tags) == (IMAGE, "Unknown", -0.5, IMAGE, [(IMAGE, 3)]) and activation.startswith(SCRIPT)
    for message in (editor.read(IMAGE)[3], editor.save(IMAGE, "", "SD1", "", 0.0, "", ""), editor.save(FILE, "", IMAGE, "", 0.0, "", "")):
        assert [tag for tag, _ in Elements(message).found] == ["p"] and "img" in Elements(message).text
    assert FLAG not in json.dumps([each for _, each in Elements(name + table).found])


def test_a_card_tells_what_the_file_is_and_the_settings_choose_what(page, stand_in_webui, tmp_path):
    from lib_lycoris.webui import settings

    cross = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight"
    put(tmp_path / "own" / "cat.safetensors", {**TENSORS, cross: torch.ones(2, 2048)}, modelspec__trigger_phrase="zorb", modelspec__description="From far")
    put(tmp_path / "own" / "none.safetensors", {"encoder.conv_in.weight": torch.ones(1)})
    (tmp_path / "own" / "cat.json").write_text('{"description": "Mine"}')
    items(page)
    text = Elements(page.html).text
    assert "SDXL · LoRA 2\nzorb\nFrom far\nMine" in text and "can't be used: it is no network but a VAE" in text
    stand_in_webui.set_options(lycoris_on_cards=[settings.KIND])
    items(page)
    assert "LoRA 2\nMine" in Elements(page.html).text and "From far" not in Elements(page.html).text


def test_cards_of_other_base_models_are_hidden_where_the_user_wants_it(page, stand_in_webui, tmp_path):
    model = stand_in_webui._models.model_data.sd_model
    for version in ("sd_v1", "sdxl_base_v1-0"):
        put(tmp_path / "own" / f"{version}.safetensors", ss_base_model_version=version)
    put(tmp_path / "own" / "untold.safetensors")
    named = put(tmp_path / "own" / "remarked.safetensors")
    named.with_suffix(".json").write_text('{"sd version": "SDXL"}')
    ours = {"sd_v1", "sdxl_base_v1-0", "untold", "remarked"}
    assert ours <= set(items(page))
    model.is_sd1 = True
    try:
        stand_in_webui.set_options(lycoris_hide_others=True)
        assert ours & set(items(page)) == {"sd_v1", "untold"}
        assert page.create_item("remarked", enable_filter=False)["sd_version"] == "SDXL"
    finally:
        del model.is_sd1
    assert ours <= set(items(page))


def test_a_card_has_a_preview_from_beside_or_from_within_the_file(page, tmp_path):
    assert str(tmp_path / "own") not in sys.modules["modules.ui_extra_networks"].allowed_dirs  # it was not there when the page was made
    (tmp_path / "own" / "beside.png").write_bytes(b"x")
    put(tmp_path / "own" / "beside.safetensors", ssmd_cover_images='["aGVsbG8="]')
    put(tmp_path / "own" / "a b&c.safetensors", ssmd_cover_images='["aGVsbG8="]')
    put(tmp_path / "own" / "thumb.safetensors", modelspec__thumbnail="data:image/png;base64,aGVsbG8=", other="x")
    found = items(page)
    assert found["beside"]["preview"].endswith("beside.png") and str(tmp_path / "own") in sys.modules["modules.ui_extra_networks"].allowed_dirs
    assert found["a b&c"]["preview"] == "./sd_extra_networks/cover-images?page=lycoris&item=a%20b%26c"
    assert json.loads(page.metadata["a b&c"].get("ssmd_cover_images")) == json.loads(page.metadata["thumb"].get("ssmd_cover_images")) == ["aGVsbG8="]
    assert {key: page.metadata["thumb"][key] for key in page.metadata["thumb"]} == {"other": "x"} and len(page.metadata["thumb"]) == 1


@pytest.mark.parametrize("name", ["a, b", 'a"b', "(a)", "{a}", "ünï", "it's", "a&amp;b", "$&"])
def test_a_click_writes_the_name_as_the_prompt_needs_it(page, tmp_path, name):
    from lib_lycoris.prompt.request import split_prompt

    path = put(tmp_path / "own" / "sub" / f"{name}.safetensors")
    card = click(items(page)[name])
    _, (request,), problems = split_prompt(f"<lyco:{card['tag']}:1>")
    assert problems == [] and request.name == name and card["names"] == [name, f"sub/{name}"]
    assert page._shelf.find(request.name).path == path


def test_the_searched_terms_are_path_hash_kind_and_words(page, tmp_path):
    put(tmp_path / "own" / "deep" / "cat.safetensors", ss_output_name="Kitty", modelspec__tags="furry", modelspec__trigger_phrase="zorb",
        sshs_model_hash="ab" * 32)
    terms = " ".join(items(page)["cat"]["search_terms"])
    assert all(word in terms for word in ("own/deep/cat.safetensors", "Kitty", "furry", "zorb", "ab" * 6, "LoRA"))


def test_what_the_editor_saves_is_what_the_built_in_reads(page, tmp_path):
    from lib_lycoris.webui.editor import NetworkEditor

    path = put(tmp_path / "own" / "cat.safetensors", ss_base_model_version="sd_v1")
    path.with_suffix(".json").write_text('{"elsewhere": 1}')
    items(page)
    editor = NetworkEditor(None, "txt2img", page, SimpleNamespace(tags=list))
    assert editor.read("cat")[5] == "SD1"
    assert editor.save("cat", "about", "SD1", "zorb", 0.7, "dog", "mine") == ""
    written = {"elsewhere": 1, "description": "about", "activation text": "zorb", "preferred weight": 0.7, "negative text": "dog", "notes": "mine"}
    assert json.loads(path.with_suffix(".json").read_text()) == written
    assert editor.save("cat", "about", "SD2", "zorb", 0.7, "dog", "mine") == ""
    assert json.loads(path.with_suffix(".json").read_text()) == {**written, "sd version": "SD2"}
    assert editor.read("cat")[4:10] == ["about", "SD1", "zorb", 0.7, "dog", "mine"]  # the card is drawn anew afterwards
    assert page.create_item("cat")["sd_version"] == "SD2"


def test_odd_remarks_and_frequencies_do_not_stop_the_page(page, tmp_path):
    from lib_lycoris.webui.editor import most_frequent

    for number, text in enumerate(("[1]", "{", '{"description": {"a": 1}, "activation text": 3, "preferred weight": "x"}')):
        put(tmp_path / "own" / f"n{number}.safetensors").with_suffix(".json").write_text(text)
    assert {"n0", "n1", "n2"} <= set(items(page))
    for text in ("", "[", "3", '{"a": 3}', '{"a": {"b": "x"}}', '{"a": {"b": 1e999}}', "null", '{"a": {"": 3}}'):
        assert most_frequent({"ss_tag_frequency": text}) == []
    assert most_frequent({"ss_tag_frequency": '{"1": {"cat ": 2, "dog": 1}, "2": {"dog": 4}}'}) == [("dog", 5), ("cat", 2)]


def test_an_empty_shelf_says_where_files_go(page, stand_in_webui, tmp_path):
    (tmp_path / "own" / "<i>x").mkdir()
    stand_in_webui.set_options(lycoris_folders=f"{tmp_path / 'own' / '<i>x'}")
    page.items = {}
    text = page.create_card_view_html("txt2img", none_message=None)
    assert "<i>" not in text and "<i>x" in Elements(text).text and "Loading" in page.create_card_view_html("txt2img", none_message="Loading")


def test_reload_ui_adds_no_page_axis_or_setting_twice(stand_in_webui):
    from modules import scripts, shared, ui_extra_networks

    from lib_lycoris.webui import settings

    stand_in_webui.reload_ui()
    before = [option.label for option in scripts.plot.axis_options]
    for _ in range(2):
        stand_in_webui.reload_ui()
    assert [page.title for page in ui_extra_networks.extra_pages] == ["LyCORIS"]
    labels = [option.label for option in scripts.plot.axis_options]
    assert labels == before and len(labels) == len(set(labels)) and labels[0] == "Nothing"
    assert {"[Lyco] network", "[Lyco] block preset", "[Lyco] adapter", "[Lyco] adapter end"} <= set(labels)
    assert [key for key in shared.options_templates if key.startswith("lycoris_")] == [option.key for option in settings.OPTIONS]


def test_every_setting_counts_at_once(stand_in_webui, tmp_path):
    from modules import shared, ui_extra_networks

    from lib_lycoris.webui import settings

    (page,) = ui_extra_networks.extra_pages
    put(tmp_path / "more" / "added.safetensors")
    try:
        for option, value in ((settings.FOLDERS, f"{tmp_path / 'more'}\n\n {tmp_path / 'nowhere'} \n\0\n"), (settings.CACHE, 5)):
            stand_in_webui.set_options(**{option.key: value})
            shared.options_templates[option.key].onchange()
        assert "added" in items(page) and settings.network_folders()[-2:] == [tmp_path / "more", tmp_path / "nowhere"]
        assert stand_in_webui.picture("x <lyco:added:1>").comments == stand_in_webui.picture("x <lyco:added:1>").comments
        assert "no network is called" not in "".join(stand_in_webui.picture("x <lyco:added:1>").comments)
        assert page._shelf._folders()[-1] == tmp_path / "nowhere" and settings.cache_bytes() == 5 << 20
        stand_in_webui.set_options(lycoris_cache_mb="five", lycoris_folders=None, lycoris_block_presets="MINE: 1,0\n")
        assert settings.cache_bytes() == 1024 << 20 and isinstance(settings.network_folders()[0], Path)
        assert "17" in settings.preset_problem() and "INS" in settings.block_presets()
        stand_in_webui.set_options(lycoris_block_presets=f"MINE: {','.join('1' * 17)}")
        assert settings.preset_problem() is None and "MINE" in settings.block_presets()
    finally:
        for option in settings.OPTIONS:
            stand_in_webui._shared.opts.data.pop(option.key, None)
        shared.options_templates["lycoris_folders"].onchange()
