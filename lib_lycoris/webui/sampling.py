"""A picture through the WebUI's own sampler, for previews: what a user would get with the network as it is attached now."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
from modules import processing, shared

from lib_lycoris.errors import TrainingError
from lib_lycoris.prompt.request import split_prompt

from .settled import attributes, state_kept

DEFAULTS = {"steps": 20, "cfg_scale": 7.0, "negative": "", "sampler": "Euler"}


def make_picture(model: Any, prompt: str, seed: int, clip_skip: int, **settings: Any) -> np.ndarray:
    """uint8 [H,W,3], with the checkpoint that is loaded and no network beside what is attached; nothing is written, and the user's last prompt stays theirs.

    Args:
        model: the one that is loaded.
        prompt: tags in it are cut out.
        seed: of the picture.
        clip_skip: as in the training's config.
        settings: steps, cfg_scale, negative, sampler, width, height.

    Raises:
        TrainingError: it was interrupted.
    """
    wanted = {**DEFAULTS, **settings}
    pinned = {"sd_model_checkpoint": model.sd_checkpoint_info.title, "CLIP_stop_at_last_layers": clip_skip, "sd_unet": "None"}
    p = processing.StableDiffusionProcessingTxt2Img(
        sd_model=model, prompt=split_prompt(prompt)[0], negative_prompt=split_prompt(wanted["negative"])[0], seed=seed, steps=wanted["steps"],
        cfg_scale=wanted["cfg_scale"], width=wanted["width"], height=wanted["height"], sampler_name=wanted["sampler"], tiling=False, restore_faces=False,
        do_not_save_samples=True, do_not_save_grid=True, do_not_reload_embeddings=True, override_settings=pinned,
    )
    p.disable_extra_networks = True
    for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):  # texts in training are not to be found again by the user's next picture
        setattr(p, name, [None, None])
    with closing(p), state_kept(), attributes(shared.cmd_opts, no_prompt_history=True):
        images = processing.process_images(p).images
    if not images:
        raise TrainingError("the preview was interrupted")
    return np.asarray(images[0].convert("RGB"))
