"""The WebUI's ways to run a model: 8-bit storage, merged tokens, tiles, channels last, moved to the device when needed, half precision."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from .conftest import start_real
from .reply import distance
from .test_pictures import CHANGED, HIRES, ROUNDING, fresh

pytestmark = pytest.mark.webui
TAGS = ("<lyco:A:1>", "<lyco:A:1> <lora:B:1>", "<lyco:A:1:on=cond>", "<lyco:I:0.5> <lora:A:0.5>", "<lyco:B:unet=0@0,1@1>")


@contextmanager
def options(webui, before: dict, **wanted):
    """These settings for a while, and those of before again."""
    webui.set_options(**wanted)
    try:
        yield
    finally:
        webui.set_options(**before)
        webui.picture("back")


def assert_sound(webui, theirs: int = ROUNDING) -> None:
    """Each kind of tag acts, like the built-in's up to `theirs`, repeats itself, and leaves the model as it was."""
    prompt = next(fresh)
    base = webui.picture(prompt)
    clean = webui.model()
    seen = {tag: webui.picture(f"{prompt} {tag}") for tag in TAGS}
    for tag, reply in seen.items():
        assert distance(reply, base) > ROUNDING and not reply.comments, tag
    if theirs:
        assert distance(seen["<lyco:A:1>"], webui.picture(f"{prompt} <lora:A:1>")) <= theirs
    for tag in reversed(TAGS):
        assert webui.picture(f"{prompt} {tag}").pictures == seen[tag].pictures, tag
    webui.picture(f"{prompt} <lyco:A:1>", hr_prompt=f"{prompt} <lyco:B:1:hr=0.5>", negative_prompt="<lyco:A:0.5>", **HIRES)
    assert webui.picture(prompt).pictures == base.pictures
    assert webui.model() == clean


def test_weights_stored_in_8_bits_are_not_rounded_again(real_webui):
    prompt = next(fresh)
    half = [real_webui.picture(f"{prompt} {tag}") for tag in ("", "<lyco:A:0.02>")]
    with options(real_webui, {"fp8_storage": "Disable"}, fp8_storage="Enable"):
        assert_sound(real_webui, theirs=0)
        assert "torch.float8_e4m3fn" in real_webui.model()["dtypes"]
        stored = [real_webui.picture(f"{prompt} {tag}") for tag in ("", "<lyco:A:0.02>")]
    assert distance(*stored) > 0 < distance(*half)  # a delta far below what 8 bits can tell apart acts nevertheless


def test_merged_tokens_and_tiles_run_beside(real_webui):
    prompt = next(fresh)
    plain = real_webui.picture(prompt)
    with options(real_webui, {"token_merging_ratio": 0.0}, token_merging_ratio=0.5):
        assert_sound(real_webui)
        assert real_webui.picture(prompt).pictures != plain.pictures
    with options(real_webui, {"hypertile_enable_unet": False, "hypertile_enable_unet_secondpass": False}, hypertile_enable_unet=True):
        assert_sound(real_webui)


def run_with(tmp_path, offset: int, *flags: str):
    """A headless WebUI with these flags, as a context."""
    return contextmanager(start_real)(tmp_path, offset, ("--nowebui", *flags))


@pytest.mark.parametrize(("offset", "flags"), [(2, ("--medvram",)), (3, ("--lowvram", "--opt-channelslast"))])
def test_flags_that_move_the_model_or_turn_its_memory_change_nothing(tmp_path, offset, flags):
    with run_with(tmp_path, offset, *flags) as webui:
        assert_sound(webui)


def test_half_precision_differs_from_the_built_in_by_its_rounding(tmp_path):
    with run_with(tmp_path, 5, "--precision", "half") as webui:
        assert_sound(webui, theirs=4 * ROUNDING)
        assert webui.model()["dtypes"] == ["torch.float16"]


def test_a_program_in_the_unets_place_is_told_and_its_name_is_no_markup(real_webui):
    prompt = next(fresh)
    with options(real_webui, {"sd_unet": "None"}, sd_unet="[probe] <b>plain</b>"):
        replies = [real_webui.picture(f"{prompt} {tag}") for tag in ("", "<lyco:A:0:1>")]
        page = real_webui.ask("/probe/v1/comments-as-html")
    assert replies[0].pictures == replies[1].pictures
    assert not replies[0].comments and len(replies[1].comments) == 1 and "[probe]" in replies[1].comments[0]
    assert "&lt;b&gt;plain" in page and "<b>" not in page


def test_a_stored_picture_is_the_same_with_and_without_flags(tmp_path, real_webui):
    prompt = next(fresh)
    wanted = [real_webui.picture(f"{prompt} {tag}") for tag in ("", *TAGS)]
    with run_with(tmp_path, 4, "--medvram", "--opt-channelslast") as webui:
        made = [webui.picture(f"{prompt} {tag}") for tag in ("", *TAGS)]
    assert max(distance(*pair) for pair in zip(made, wanted, strict=True)) <= ROUNDING < CHANGED
