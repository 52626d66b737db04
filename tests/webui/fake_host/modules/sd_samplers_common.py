"""What ends a sampling, img2img's steps, and the switch to a refiner."""

from modules import sd_models, shared


class InterruptedException(BaseException):
    pass


def setup_img2img_steps(p, steps=None):
    """(steps of the whole schedule, the number of those that are run less one)."""
    if steps is not None:
        return int(steps / min(p.denoising_strength, 0.999)), steps - 1
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)


def apply_refiner(denoiser, sigma=None):
    p = denoiser.p
    model = shared.sd_model()
    if not p.refiner_checkpoint or denoiser.step / denoiser.total_steps < p.refiner_switch_at or model.sd_checkpoint_info.name == p.refiner_checkpoint:
        return False
    sd_models.reload_model_weights(p.refiner_checkpoint)
    p.setup_conds()
    denoiser.update_inner_model()
    return True
