"""Two samplers, and what guides them: the rows of a batch, in one UNet call or in several."""

from types import SimpleNamespace

import torch

from modules import prompt_parser, script_callbacks, sd_samplers_common, shared


def total_steps(name, steps):
    return 2 * steps if name == "Heun" else steps


class Denoiser:
    def __init__(self, sampler, p, steps):
        self.sampler, self.p, self.step, self.steps = sampler, p, 0, steps
        self.total_steps, self.image_cfg_scale = total_steps(sampler.name, steps), None

    def update_inner_model(self):
        self.sampler.sampler_extra_args["cond"], self.sampler.sampler_extra_args["uncond"] = self.p.get_conds()

    def __call__(self, x, time):
        if shared.state.interrupted or shared.state.skipped:
            raise sd_samplers_common.InterruptedException
        sd_samplers_common.apply_refiner(self)
        parts, cond = prompt_parser.reconstruct_multicond_batch(self.sampler.sampler_extra_args["cond"], self.step)
        uncond = prompt_parser.reconstruct_cond_batch(self.sampler.sampler_extra_args["uncond"], self.step)
        x_in = torch.cat([x[number : number + 1] for number, picture in enumerate(parts) for _ in picture] + [x])
        params = SimpleNamespace(x=x_in, text_cond=cond, text_uncond=uncond, denoiser=self, sampling_step=shared.state.sampling_step)
        script_callbacks.run("cfg_denoiser", params)
        x_in, cond, uncond = params.x, params.text_cond, params.text_uncond
        out = self._run(x_in, cond, uncond, time, skip=self.step / self.total_steps < shared.opts.skip_early_cond)
        self.step += 1
        if len(out) == len(cond):
            out = torch.cat([out, torch.stack([out[picture[0][0]] for picture in parts])])
        negative = out[len(cond) :]
        return torch.stack([negative[number] + sum((out[row] - negative[number]) * weight * self.p.cfg_scale for row, weight in picture)
                            for number, picture in enumerate(parts)])

    def _run(self, x_in, cond, uncond, time, skip):
        batch, whole = len(uncond), shared.opts.batch_cond_uncond
        if skip:
            x_in = x_in[:-batch]
        if cond.shape[1] == uncond.shape[1] or skip:
            text, size = cond if skip else torch.cat([cond, uncond]), len(x_in) if whole else batch
            calls = [(x_in[start : start + size], text[start : start + size]) for start in range(0, len(x_in), size)]
        else:
            size = 2 * batch if whole else batch
            calls = [(x_in[start : min(start + size, len(cond))], cond[start : start + size]) for start in range(0, len(cond), size)]
            calls.append((x_in[-batch:], uncond))
        return torch.cat([shared.sd_model().apply_model(x, torch.full((len(x),), time), text) for x, text in calls])


class Sampler:
    def __init__(self, name):
        self.name = name

    def sample(self, p, x, cond, uncond, steps):
        self.sampler_extra_args = {"cond": cond, "uncond": uncond}
        denoise = Denoiser(self, p, steps)
        shared.state.sampling_step = 0
        try:
            for step in range(steps):
                slope = denoise(x, float(step))
                shared.state.sampling_step = step
                if self.name == "Heun" and step < steps - 1:
                    slope = (slope + denoise(x - 0.3 * slope, step + 1.0)) / 2
                x = x - 0.3 * slope
        except sd_samplers_common.InterruptedException:
            pass
        return x
