"""The built-in Lora extension in small: it merges into a layer's weights at the layer's forward, and copies its backup back."""

import torch
from modules import extra_networks, patches, sd_models, shared
from safetensors.torch import load_file
from torch import nn

from lib_lycoris.files.spelling import kohya_name, ldm_to_diffusers_unet

loaded_networks = []
folder = None


class Loaded:
    def __init__(self, name, te, unet):
        self.name, self.te_multiplier, self.unet_multiplier = name, te, unet
        self.tensors = load_file(str(folder / f"{name}.safetensors"))

    @property
    def key(self):
        return self.name, self.te_multiplier, self.unet_multiplier

    def strength(self, layer_name):
        return self.te_multiplier if layer_name.startswith("lora_te") else self.unet_multiplier


def assign_names(model):
    for path, module in model.model.diffusion_model.named_modules():
        module.network_layer_name = kohya_name("unet", ldm_to_diffusers_unet(path.replace(".", "_")))
    for path, module in model.cond_stage_model.wrapped.transformer.named_modules():
        module.network_layer_name = kohya_name("te1", path.replace(".", "_"))


def network_restore_weights_from_backup(self):
    for name, field in (("weight", "network_weights_backup"), ("bias", "network_bias_backup")):
        if getattr(self, field, None) is not None:
            getattr(self, name).copy_(getattr(self, field))


def network_reset_cached_weight(self):
    self.network_current_names, self.network_weights_backup, self.network_bias_backup = (), None, None


def network_apply_weights(self):
    name = getattr(self, "network_layer_name", None)
    if name is None:
        return
    current, wanted = getattr(self, "network_current_names", ()), tuple(network.key for network in loaded_networks)
    if getattr(self, "network_weights_backup", None) is None and wanted:
        if current:
            raise RuntimeError("no backup weights found and current weights are not unchanged")
        self.network_weights_backup = self.weight.detach().clone()
        self.network_bias_backup = None if self.bias is None else self.bias.detach().clone()
    if current == wanted:
        return
    network_restore_weights_from_backup(self)
    for network in loaded_networks:
        up = network.tensors.get(f"{name}.lora_up.weight")
        if up is None or up.shape[0] != self.weight.shape[0]:
            continue
        down, alpha = network.tensors[f"{name}.lora_down.weight"], network.tensors[f"{name}.alpha"].item()
        delta = (up.flatten(1) @ down.flatten(1)).reshape(self.weight.shape) * (alpha / down.shape[0])
        with torch.no_grad():
            self.weight.copy_(self.weight + delta * network.strength(name))
    self.network_current_names = wanted


def forward(kind):
    def network_forward(self, x):
        if shared.opts.lora_functional:
            return network_functional_forward(self, x, patches.original("lora_patches", kind, "forward"))
        network_apply_weights(self)
        return patches.original("lora_patches", kind, "forward")(self, x)

    return network_forward


def network_functional_forward(self, x, original):
    """The old way: the weights stay as they are, and each network's output is added."""
    if not loaded_networks:
        return original(self, x)
    network_restore_weights_from_backup(self)
    network_reset_cached_weight(self)
    y = original(self, x)
    name = getattr(self, "network_layer_name", None)
    for network in loaded_networks:
        up = network.tensors.get(f"{name}.lora_up.weight")
        if up is not None and up.shape[0] == self.weight.shape[0]:
            down = network.tensors[f"{name}.lora_down.weight"]
            scale = network.tensors[f"{name}.alpha"].item() / down.shape[0] * network.strength(name)
            low = nn.functional.linear(x, down) if x.dim() == 3 else nn.functional.conv2d(x, down, None, self.stride, self.padding)
            y = y + scale * (nn.functional.linear(low, up) if x.dim() == 3 else nn.functional.conv2d(low, up))
    return y


def load_state_dict(kind):
    def network_load_state_dict(self, *args, **kwargs):
        network_reset_cached_weight(self)
        return patches.original("lora_patches", kind, "_load_from_state_dict")(self, *args, **kwargs)

    return network_load_state_dict


KINDS = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)


def patch():
    for kind in KINDS:
        patches.patch("lora_patches", kind, "forward", forward(kind))
        patches.patch("lora_patches", kind, "_load_from_state_dict", load_state_dict(kind))


def undo():
    for kind in KINDS:
        patches.undo("lora_patches", kind, "forward")
        patches.undo("lora_patches", kind, "_load_from_state_dict")


def load_networks(names):
    loaded_networks[:] = [Loaded(name, 1.0, 1.0) for name in names]


class ExtraNetworkLora(extra_networks.ExtraNetwork):
    def __init__(self):
        super().__init__("lora")

    def activate(self, p, params_list):
        load_networks([])
        for params in params_list:
            te = float(params.named.get("te", params.positional[1] if len(params.positional) > 1 else 1.0))
            unet = float(params.named.get("unet", params.positional[2] if len(params.positional) > 2 else te))
            loaded_networks.append(Loaded(params.positional[0], te, unet))
        hashes = ", ".join(f"{network.name}: {short(network.name)}" for network in loaded_networks)
        if hashes:
            p.extra_generation_params["Lora hashes"] = hashes

    def deactivate(self, p):
        """Leaves the weights as they are until the next picture."""


def short(name):
    from modules import hashes

    return hashes.sha256(str(folder / f"{name}.safetensors"), name, use_addnet_hash=True)[:12]


def before_ui():
    network = ExtraNetworkLora()
    extra_networks.register_extra_network(network)
    extra_networks.register_extra_network_alias(network, "lyco")


def on_model(model):
    assign_names(sd_models.model_data.sd_model)
