"""Options, flags and state."""

from types import SimpleNamespace


class Options:
    def __init__(self):
        self.data = {"lora_add_hashes_to_infotext": True, "sd_checkpoints_limit": 1, "lora_functional": False, "sd_model_checkpoint": "base",
                     "batch_cond_uncond": True, "skip_early_cond": 0.0, "hires_fix_use_firstpass_conds": False}

    def __getattr__(self, name):
        return self.data[name]

    def onchange(self, key, function, call=True):
        options_templates[key].onchange = function


class State:
    interrupted = skipped = stopping_generation = False
    sampling_step = sampling_steps = job_no = job_count = 0
    job, textinfo = "", None

    def begin(self, job):
        self.interrupted = self.skipped = self.stopping_generation = False
        self.job, self.job_no, self.job_count, self.textinfo = job, 0, -1, None

    def end(self):
        self.job, self.job_count = "", 0

    def interrupt(self):
        self.interrupted = True

    def skip(self):
        self.skipped = True

    def request_restart(self):
        raise NotImplementedError("ask the stand-in's reload_ui")


data_path = None
opts = Options()
cmd_opts = SimpleNamespace(api_auth=None, lowvram=False, api=True, no_prompt_history=False, embeddings_dir="embeddings")
loaded_hypernetworks = []
state = State()
models_path = None


def sd_model():
    """The loaded model (the host has it as an attribute that may load one)."""
    from modules import sd_models

    return sd_models.model_data.sd_model


class OptionInfo:
    def __init__(self, default, label, component, component_args):
        self.default, self.label, self.component, self.component_args, self.section, self.onchange = default, label, component, component_args, None, None

    def info(self, text):
        return self


def options_section(section, infos):
    for info in infos.values():
        info.section = section
    return infos


options_templates = {}
opts.data.update(samples_format="png", extra_networks_card_description_is_html=False)
