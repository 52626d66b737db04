"""Loading: into the same model where the config is the same, into a new one else, or back to one that is kept."""

from contextlib import nullcontext
from types import SimpleNamespace

import torch

from modules import extra_networks, script_callbacks, sd_hijack, shared
from modules.tiny_model import TinyModel

model_data = SimpleNamespace(sd_model=None, loaded_sd_models=[], get_sd_model=lambda: model_data.sd_model)
checkpoints = {}
"""name → (config, state dict)."""


class CheckpointInfo:
    def __init__(self, name):
        self.name = self.title = self.name_for_extra = self.filename = name
        self.sha256 = None

    def __eq__(self, other):
        return isinstance(other, CheckpointInfo) and other.name == self.name

    __hash__ = None


class SkipWritingToConfig(nullcontext):
    """Loads what is asked for; the option stays."""


def select_checkpoint():
    return CheckpointInfo(shared.opts.sd_model_checkpoint)


class Checkpoints(dict):
    def get(self, name, default=None):
        return CheckpointInfo(name) if name in checkpoints else default


checkpoint_aliases, checkpoints_list = Checkpoints(), {}


def get_empty_cond(sd_model):
    p = SimpleNamespace(scripts=None, prompt="", comments={}, extra_generation_params={})
    extra_networks.activate(p, {})
    return sd_model.get_learned_conditioning([""])


def make_current(model):
    model_data.sd_model = model
    if model in model_data.loaded_sd_models:
        model_data.loaded_sd_models.remove(model)
    model_data.loaded_sd_models.insert(0, model)


def load_model(name):
    if model_data.sd_model is not None:
        model_data.sd_model.to("meta")
        model_data.loaded_sd_models.remove(model_data.sd_model)
        model_data.sd_model = None
    model = TinyModel()
    model.config = checkpoints[name][0]
    load_weights(model, name)
    make_current(model)
    sd_hijack.model_hijack.embedding_db.load_textual_inversion_embeddings(force_reload=True)
    script_callbacks.run("model_loaded", model)
    with torch.no_grad():
        get_empty_cond(model)


def load_weights(model, name):
    model.load_state_dict(checkpoints[name][1])
    model.sd_checkpoint_info = CheckpointInfo(name)


def reload_model_weights(name=None, info=None):
    name = info.name if info is not None else name
    model, limit = model_data.sd_model, shared.opts.sd_checkpoints_limit
    if model is not None and model.sd_checkpoint_info.name == name:
        return
    kept = next((other for other in model_data.loaded_sd_models if other.sd_checkpoint_info.name == name), None)
    while len(model_data.loaded_sd_models) > limit:
        model_data.loaded_sd_models.pop().to("meta")
    if kept in model_data.loaded_sd_models:
        make_current(kept)
    elif model is None or len(model_data.loaded_sd_models) < limit:
        model_data.sd_model = None
        load_model(name)
    elif checkpoints[name][0] != model.config:
        load_model(name)
    else:
        load_weights(model, name)
        script_callbacks.run("model_loaded", model)
