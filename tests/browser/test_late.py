"""What the server fills in while somebody types: nothing typed is ever overwritten, however slow the server and however fast the user."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from tests.browser.studio import box, choose, holds, open_tab, says

pytestmark = pytest.mark.browser


@contextmanager
def slow_server(page):
    """Keeps all of the page's requests to its functions waiting until the end of the block."""
    waiting, held = [], True

    def keep(route):
        if held:
            waiting.append(route)
        else:
            route.continue_()

    page.route("**/run/predict*", keep)
    yield waiting
    held = False
    for route in waiting:
        route.continue_()
    page.unroute("**/run/predict*")


@pytest.fixture(scope="module")
def apply():
    """The page's own function, as JavaScript, for two fields and an offer."""
    from lib_lycoris.ui.late import _APPLY

    return _APPLY.replace("COUNT", "2").replace("OFFERS", "1")


STILL = {"__type__": "update"}


@pytest.mark.parametrize(("changes", "whole", "now", "expected"), [
    ([[0, ["a"], "b"], [1, [512, 64], 96]], False, ["a", 64], [{**STILL, "value": "b"}, {**STILL, "value": 96}, False]),
    ([[0, ["a"], "b"], [1, [512], 96]], False, ["typed", 512], [STILL, {**STILL, "value": 96}, False]),
    ([[0, ["a"], "b"], [1, [512], 96]], True, ["typed", 512], [STILL, STILL, True]),
    ([[0, ["a"], "b"], [1, [512], 96]], True, ["a", "512"], [{**STILL, "value": "b"}, {**STILL, "value": 96}, False]),
    ([[0, [""], "b"], [1, [["q"]], []]], True, [None, ["q"]], [{**STILL, "value": "b"}, {**STILL, "value": []}, False]),
    ([[0, [["q", "k"]], []]], False, [["q"], 1], [STILL, STILL, False]),
    ([[0, [False], True]], False, [False, 1], [{**STILL, "value": True}, STILL, False]),
    ([[0, [], "b"]], False, ["a", 1], [STILL, STILL, False]),
    ([], True, ["a", 1], [STILL, STILL, True]),
])
def test_a_field_is_filled_in_only_where_it_holds_what_it_held(blank, apply, changes, whole, now, expected):
    answer = blank.evaluate(f"([told, now]) => ({apply})(JSON.stringify(told), ...now)", [{"changes": changes, "whole": whole}, now])
    assert answer == ["", *expected[:2], {**STILL, "visible": expected[2]}]


def test_nothing_told_changes_nothing(blank, apply):
    assert blank.evaluate(f"({apply})('', 'a', 1)") == [STILL] * 4


def test_a_preset_leaves_what_is_typed_while_it_is_on_its_way(page):
    open_tab(page, "Train")
    with slow_server(page) as waiting:
        choose(page, "preset", "first try · embedded model")
        page.wait_for_timeout(200)
        box(page, "training_steps").fill("77")
        assert waiting
    holds(page, "training_learning_rate", "0.001")
    assert box(page, "training_steps").input_value() == "77"


def test_the_models_size_leaves_what_is_typed_before_it_is_known(studio, blank):
    with slow_server(blank) as waiting:
        blank.goto(studio.address)
        box(blank, "generate_width").fill("96")
        while not waiting:
            blank.wait_for_timeout(100)
    holds(blank, "generate_height", "64")
    assert box(blank, "generate_width").input_value() == "96"


def test_a_page_that_is_opened_while_something_is_trained_shows_its_settings_but_not_over_what_was_typed(studio, blank, pictures):
    page = blank
    page.goto(studio.address)
    open_tab(page, "Train")
    box(page, "data_folders").fill(str(pictures))
    box(page, "output_name").fill("long")
    box(page, "training_steps").fill("30000")
    page.locator("#lycoris_start").click()
    says(page, "Training (long)")
    page.locator("#lycoris_pause").click()
    says(page, "Paused")

    with slow_server(page):
        page.reload()
        open_tab(page, "Train")
        page.wait_for_timeout(300)
        box(page, "output_name").fill("next")
    page.locator("#lycoris_last").get_by_text("A training, long, is under way").wait_for()
    assert (box(page, "output_name").input_value(), box(page, "training_steps").input_value()) == ("next", "")
    page.locator("#lycoris_last_take").click()
    holds(page, "output_name", "long")
    holds(page, "training_steps", "30000")
    page.locator("#lycoris_last").wait_for(state="hidden")

    with slow_server(page):
        page.reload()
        open_tab(page, "Train")
        page.wait_for_timeout(300)
    holds(page, "training_steps", "30000")
    assert page.locator("#lycoris_last").is_hidden()
    page.locator("#lycoris_stop").click()
    says(page, "Stopped, and saved")

    page.reload()
    open_tab(page, "Train")
    page.locator("#lycoris_last").get_by_text("The last training, long, was stopped.").wait_for()
    assert box(page, "training_steps").input_value() == ""
    page.locator("#lycoris_last_take").click()
    holds(page, "data_folders", str(pictures))
