"""A picture's way through the host, from its prompts to its latents: every call to scripts, networks and caches in the host's order."""

from types import SimpleNamespace

import torch
from PIL import Image
from torch.nn import functional

from modules import extra_networks, prompt_parser, sd_hijack, sd_models, sd_samplers, sd_samplers_common, shared

CACHES = ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc")


class StableDiffusionProcessing:
    cached_c, cached_uc, cached_hr_c, cached_hr_uc = [None, None], [None, None], [None, None], [None, None]

    def __init__(self, scripts, settings):
        self.scripts, self.comments, self.extra_generation_params, self.is_hr_pass = scripts, {}, {}, False
        for name in CACHES:
            setattr(self, name, getattr(StableDiffusionProcessing, name))
        for name, value in settings.items():
            setattr(self, name, value)
        self.c = self.uc = self.hr_c = self.hr_uc = self.hr_extra_network_data = self.prompts = None
        self.iteration, self.width, self.height, self.firstpass_steps = 0, 64, 64, None

    def comment(self, text):
        self.comments[text] = 1

    def close(self):
        self.c = self.uc = self.hr_c = self.hr_uc = None

    def setup_prompts(self):
        count = self.batch_size * self.n_iter
        self.all_prompts, self.all_negative_prompts = [self.prompt] * count, [self.negative_prompt] * count
        self.all_hr_prompts = [self.hr_prompt or self.prompt] * count
        self.all_hr_negative_prompts = [self.hr_negative_prompt or self.negative_prompt] * count

    def of_batch(self, texts):
        return texts[self.iteration * self.batch_size : (self.iteration + 1) * self.batch_size]

    def parse_extra_network_prompts(self):
        self.prompts, self.extra_network_data = extra_networks.parse_prompts(self.prompts)
        if self.enable_hr:
            self.hr_negative_prompts = self.of_batch(self.all_hr_negative_prompts)
            self.hr_prompts, self.hr_extra_network_data = extra_networks.parse_prompts(self.of_batch(self.all_hr_prompts))

    def get_conds_with_caching(self, function, required_prompts, steps, caches, extra_network_data, hires_steps=None):
        key = (required_prompts, steps, hires_steps, shared.sd_model().sd_checkpoint_info, extra_network_data)
        for cache in caches:
            if cache[0] is not None and cache[0] == key:
                return cache[1]
        caches[0][:] = [key, function(shared.sd_model(), required_prompts, steps, hires_steps)]
        return caches[0][1]

    def setup_conds(self):
        if self.is_hr_pass:
            self.hr_c = None
            self.calculate_hr_conds()
            return
        self.firstpass_steps = steps = sd_samplers.total_steps(self.sampler_name, self.steps)
        negative = prompt_parser.SdConditioning(self.negative_prompts, is_negative_prompt=True)
        self.uc = self.get_conds_with_caching(prompt_parser.get_learned_conditioning, negative, steps, [self.cached_uc], self.extra_network_data)
        self.c = self.get_conds_with_caching(prompt_parser.get_multicond_learned_conditioning, prompt_parser.SdConditioning(self.prompts), steps,
                                             [self.cached_c], self.extra_network_data)
        self.hr_c = self.hr_uc = None
        if not self.enable_hr or self.hr_checkpoint_name:
            return
        if shared.opts.hires_fix_use_firstpass_conds:
            self.calculate_hr_conds()
        elif shared.cmd_opts.lowvram:
            extra_networks.activate(self, self.hr_extra_network_data)
            self.calculate_hr_conds()
            extra_networks.activate(self, self.extra_network_data)

    def calculate_hr_conds(self):
        if self.hr_c is not None:
            return
        base, steps = self.firstpass_steps, sd_samplers.total_steps(self.sampler_name, self.hr_second_pass_steps or self.steps)
        negative, positive = prompt_parser.SdConditioning(self.hr_negative_prompts, is_negative_prompt=True), prompt_parser.SdConditioning(self.hr_prompts)
        data = self.hr_extra_network_data
        self.hr_uc = self.get_conds_with_caching(prompt_parser.get_learned_conditioning, negative, base, [self.cached_hr_uc, self.cached_uc], data, steps)
        self.hr_c = self.get_conds_with_caching(prompt_parser.get_multicond_learned_conditioning, positive, base, [self.cached_hr_c, self.cached_c], data,
                                                steps)

    def get_conds(self):
        return (self.hr_c, self.hr_uc) if self.is_hr_pass else (self.c, self.uc)

    def args_of(self, script):
        return getattr(self, "script_args", {}).get(script.title().lower(), ())

    def tell_scripts(self, latents, cond, uncond):
        for script in self.scripts:
            try:
                script.process_before_every_sampling(self, *self.args_of(script), x=latents, noise=latents, c=cond, uc=uncond)
            except Exception as error:
                print("Error running process_before_every_sampling:", error)

    def sample(self, latents):
        sampler, steps = sd_samplers.Sampler(self.sampler_name), self.steps
        if hasattr(self, "init_images"):
            steps = sd_samplers_common.setup_img2img_steps(self)[1] + 1
            latents = (1 - self.denoising_strength) * self.init_images[0] + self.denoising_strength * latents
        self.tell_scripts(latents, self.c, self.uc)
        latents = sampler.sample(self, latents, self.c, self.uc, steps)
        if not self.enable_hr:
            return latents
        if self.hr_checkpoint_name:
            sd_models.reload_model_weights(self.hr_checkpoint_name)
        if shared.state.interrupted:
            return latents
        self.is_hr_pass = True
        if not self.disable_extra_networks:
            extra_networks.activate(self, self.hr_extra_network_data)
        self.calculate_hr_conds()
        latents = functional.interpolate(latents, scale_factor=2)
        self.tell_scripts(latents, self.hr_c, self.hr_uc)
        latents = sampler.sample(self, latents, self.hr_c, self.hr_uc, self.hr_second_pass_steps or self.steps)
        self.is_hr_pass = False
        return latents


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    """A picture without a user interface, as a program asks for it."""

    def __init__(self, sd_model, override_settings, **settings):
        plain = {"n_iter": 1, "batch_size": 1, "enable_hr": False, "hr_prompt": "", "hr_negative_prompt": "", "refiner_checkpoint": None,
                 "disable_extra_networks": False}
        super().__init__([], {**plain, **settings})
        self.override_settings = override_settings


def process_images(p):
    """The latents of all pictures, and a text for each with its prompts and parameters."""
    checkpoint = getattr(p, "override_settings", {}).get("sd_model_checkpoint", shared.opts.sd_model_checkpoint)
    for script in p.scripts:
        script.before_process(p)
    sd_models.reload_model_weights(checkpoint)
    p.setup_prompts()
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings()
    for script in p.scripts:
        script.process(p, *p.args_of(script))
    made, texts = [], []
    with torch.no_grad():
        for number in range(p.n_iter):
            p.iteration = number
            if shared.state.interrupted:
                break
            shared.state.skipped = False
            sd_models.reload_model_weights(checkpoint)
            p.prompts, p.negative_prompts = p.of_batch(p.all_prompts), p.of_batch(p.all_negative_prompts)
            p.seeds = [p.seed + p.iteration * p.batch_size + row for row in range(p.batch_size)]
            for script in p.scripts:
                script.before_process_batch(p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds, subseeds=p.seeds)
            p.parse_extra_network_prompts()
            if not p.disable_extra_networks:
                extra_networks.activate(p, p.extra_network_data)
            for script in p.scripts:
                script.process_batch(p, batch_number=p.iteration, prompts=p.prompts, seeds=p.seeds, subseeds=p.seeds)
            p.setup_conds()
            made += p.sample(torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in p.seeds]))
            p.prompts, p.negative_prompts = p.of_batch(p.all_prompts), p.of_batch(p.all_negative_prompts)
            texts += [_infotext(p, row) for row in range(len(p.prompts))]
    p.processed = SimpleNamespace(images=[], infotexts=list(texts))
    if not p.disable_extra_networks and p.extra_network_data:
        extra_networks.deactivate(p, p.extra_network_data)
    for script in p.scripts:
        script.postprocess(p, p.processed, *p.args_of(script))
    return Processed(made, texts)


class Processed(tuple):
    """(latents, texts); also with pictures."""

    def __new__(cls, made, texts):
        return super().__new__(cls, (made, texts))

    @property
    def images(self):
        return [Image.fromarray((128 + 60 * latents[:3]).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()) for latents in self[0]]


def _infotext(p, index):
    known = {"p": p, "index": index, "prompt_text": p.prompts[index], "negative_prompt": p.negative_prompts[index]}
    values = {key: value(**known) if callable(value) else value for key, value in p.extra_generation_params.items()}
    listed = ", ".join(f'{key}: "{value}"' if "," in str(value) else f"{key}: {value}" for key, value in values.items() if value is not None)
    return f"{p.prompts[index]}\nNegative prompt: {p.negative_prompts[index]}\n{listed}"
