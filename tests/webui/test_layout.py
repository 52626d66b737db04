"""Which row is whose, which step it is, and how schedules of encoded prompts are put together; for hosts' cases that no picture here reaches."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch


def params(rows: int, conds: int, pictures: int, parts: list[int] | None = None, as_dict: bool = False) -> SimpleNamespace:
    cond = SimpleNamespace(batch=[[None] * number for number in parts]) if parts else SimpleNamespace()
    uncond = torch.zeros(pictures, 77, 8)
    return SimpleNamespace(x=torch.zeros(rows, 4, 8, 8), text_cond=torch.zeros(conds, 77, 8), text_uncond={"crossattn": uncond} if as_dict else uncond,
                           denoiser=SimpleNamespace(sampler=SimpleNamespace(sampler_extra_args={"cond": cond})))


@pytest.fixture
def rows(stand_in_webui):
    from lib_lycoris.webui import rows

    return rows


@pytest.mark.parametrize("as_dict", [False, True])
def test_negative_rows_come_last_and_parts_of_a_prompt_one_after_the_other(rows, as_dict):
    assert rows.rows_of(params(6, 4, 2, [3, 1], as_dict)) == [(0, False), (0, False), (0, False), (1, False), (0, True), (1, True)]


def test_a_model_that_edits_pictures_has_two_negative_rows_for_each(rows):
    assert rows.rows_of(params(6, 2, 2, [1, 1])) == [(0, False), (1, False), (0, True), (1, True), (0, True), (1, True)]


def test_where_the_prompts_parts_are_not_known_all_pictures_have_as_many(rows):
    assert rows.rows_of(params(6, 4, 2)) == [(0, False), (0, False), (1, False), (1, False), (0, True), (1, True)]


@pytest.mark.parametrize(("call", "total", "steps", "wanted"), [(0, 20, 20, 0), (19, 20, 20, 19), (7, 40, 20, 3), (39, 40, 20, 19), (25, 20, 20, 19),
                                                               (3, None, None, 0), (1, 1, 1, 0)])
def test_a_step_is_one_for_all_calls_of_the_denoiser_in_it(rows, call, total, steps, wanted):
    assert rows.step_of(SimpleNamespace(step=call, total_steps=total, steps=steps)) == (wanted, steps or 1)


@pytest.mark.parametrize("seed", range(20))
def test_a_spliced_schedule_gives_at_each_call_what_its_part_gives(stand_in_webui, seed):
    from modules import prompt_parser

    from lib_lycoris.webui.conds import _splice

    choice, calls = random.Random(seed), 12
    starts = [0, *sorted(choice.sample(range(1, calls), choice.randint(0, 4)))]
    ends = [[*sorted(choice.sample(range(1, calls), choice.randint(0, 3))), calls] for _ in starts]
    parts = [[prompt_parser.ScheduledPromptConditioning(end, (number, end)) for end in each] for number, each in enumerate(ends)]
    made = _splice(list(zip(starts, parts, strict=True)))
    for call in range(calls):
        number = max(index for index, start in enumerate(starts) if start <= call)
        wanted = next(entry.cond for entry in parts[number] if call <= entry.end_at_step)
        assert next(entry.cond for entry in made if call <= entry.end_at_step) == wanted
    assert made[-1].end_at_step == calls
