"""Prompts with a schedule ([before:after:step]) and parts (AND), and their encodings over the sampling."""

import re
from collections import namedtuple

import torch

ScheduledPromptConditioning = namedtuple("ScheduledPromptConditioning", ["end_at_step", "cond"])
_EDIT = re.compile(r"\[([^\[\]:]*):([^\[\]:]*):(\d+)\]")


class SdConditioning(list):
    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None, copy_from=None):
        super().__init__(prompts)
        source = prompts if copy_from is None else copy_from
        self.is_negative_prompt = is_negative_prompt or getattr(source, "is_negative_prompt", False)
        self.width, self.height = width or getattr(source, "width", None), height or getattr(source, "height", None)


class ComposableScheduledPromptConditioning:
    def __init__(self, schedules, weight=1.0):
        self.schedules, self.weight = schedules, weight


class MulticondLearnedConditioning:
    def __init__(self, shape, batch):
        self.shape, self.batch = shape, batch


def get_learned_conditioning_prompt_schedules(prompts, base_steps, hires_steps=None, use_old_scheduling=False):
    steps, offset = (base_steps, 0) if hires_steps is None else (hires_steps, base_steps)

    def schedule(prompt):
        ends = sorted({steps, *(min(steps, int(found[3]) - offset) for found in _EDIT.finditer(prompt) if int(found[3]) - offset >= 1)})
        return [[end, _EDIT.sub(lambda found, end=end: found[1] if end <= int(found[3]) - offset else found[2], prompt)] for end in ends]

    return [schedule(prompt) for prompt in prompts]


def get_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    made = []
    for schedule in get_learned_conditioning_prompt_schedules(prompts, steps, hires_steps):
        conds = model.get_learned_conditioning(SdConditioning([text for _, text in schedule], copy_from=prompts))
        made.append([ScheduledPromptConditioning(end, cond) for (end, _), cond in zip(schedule, conds, strict=True)])
    return made


def get_multicond_learned_conditioning(model, prompts, steps, hires_steps=None, use_old_scheduling=False):
    batch = []
    for prompt in prompts:
        parts = [re.fullmatch(r"(.*?)(?:\s*:\s*([\d.]+))?\s*", part, re.S) for part in re.split(r"\bAND\b", prompt)]
        conds = get_learned_conditioning(model, SdConditioning([part[1] for part in parts], copy_from=prompts), steps, hires_steps)
        batch.append([ComposableScheduledPromptConditioning(cond, float(part[2] or 1)) for cond, part in zip(conds, parts, strict=True)])
    return MulticondLearnedConditioning((len(prompts),), batch)


def _at(schedule, step):
    return next((entry for entry in schedule if step <= entry.end_at_step), schedule[0]).cond


def reconstruct_cond_batch(conds, step):
    return torch.stack([_at(schedule, step) for schedule in conds])


def reconstruct_multicond_batch(conds, step):
    """(for each picture the rows and weights of its parts, the rows)."""
    tensors = [_at(part.schedules, step) for parts in conds.batch for part in parts]
    longest = max(len(tensor) for tensor in tensors)
    rows = iter(range(len(tensors)))
    found = [[(next(rows), part.weight) for part in parts] for parts in conds.batch]
    return found, torch.stack([torch.cat([tensor, tensor[-1:].repeat(longest - len(tensor), 1)]) for tensor in tensors])
