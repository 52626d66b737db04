"""Times of the WebUI's own Lora extension and of ours on one UNet, in turns; run by apply.py with the WebUI's Python where $WEBUI_DIR is set.

The UNet is the WebUI's own class with Stable Diffusion 1.5's settings and random weights. Of the built-in extension its own function is called on every
layer whose forward would call it, after its list of networks was set; nothing else of the WebUI runs. Its copies are dropped after each turn, so that
every turn has a first application.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--use-cpu", "all", "--no-half", "--precision", "full", "--skip-torch-cuda-test", "--data-dir")
RANK, ALPHA, STRENGTH = 16, 8.0, 0.8


def open_webui(folder: Path, data: str) -> tuple[Any, Any, type]:
    """The built-in extension's modules `networks` and `network`, and the class of SD 1.x's UNet."""
    os.chdir(folder)
    sys.argv = ["launch.py", *FLAGS, data]
    sys.path[:0] = [str(folder), str(folder / "extensions-builtin" / "Lora")]
    from modules import initialize
    initialize.imports()
    import network
    import networks
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    return networks, network, UNetModel


def make_unet(kind: type) -> Any:
    import torch
    with torch.device("meta"):
        unet = kind(image_size=32, in_channels=4, out_channels=4, model_channels=320, attention_resolutions=[4, 2, 1], num_res_blocks=2, num_heads=8,
                    channel_mult=[1, 2, 4, 4], use_spatial_transformer=True, transformer_depth=1, context_dim=768, use_checkpoint=False, legacy=False)
    unet.to_empty(device="cpu").requires_grad_(False)
    for parameter in unet.parameters():
        parameter.normal_(0, 0.02)
    return unet


def tensors_of(session: Any, kind: str, seed: int) -> dict:
    """By target, half-precision tensors as files have them: for the layers of the transformers, or for all ("locon")."""
    import torch
    draw, found = torch.Generator().manual_seed(seed), {}
    for key, target in session.targets.items():
        shape = tuple(target.shape)
        if len(shape) > 1 and (kind == "locon" or "attentions" in key[1]):
            up, down = (shape[0], RANK, *(1 for _ in shape[2:])), (RANK, *shape[1:])
            found[key] = {name: (0.02 * torch.randn(size, generator=draw)).half() for name, size in (("lora_up.weight", up), ("lora_down.weight", down))}
            found[key]["alpha"] = torch.tensor(ALPHA)
    return found


class Both:
    """The same two networks in both forms, on one UNet."""

    def __init__(self, networks: Any, network: Any, unet: Any, kind: str):
        import torch
        from torch import nn

        from lib_lycoris.networks.kinds import build_layer
        from lib_lycoris.networks.network import Network
        from lib_lycoris.patching.session import Session

        self.builtin, self.session = networks, Session(unet)
        names = {}
        for name, module in unet.named_modules():
            module.network_layer_name = names[module] = "diffusion_model_" + name.replace(".", "_")
        self.modules = [module for module in unet.modules() if isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm))]
        self.theirs, self.ours = [], []
        for seed in (1, 2):
            tensors = tensors_of(self.session, kind, seed)
            layers = {"_".join(key): build_layer("_".join(key), named) for key, named in tensors.items()}
            self.ours.append(Network(layers=layers, targets={"_".join(key): key for key in tensors}, path=Path(f"{kind}-{seed}")))
            net = network.Network(f"{kind}-{seed}", SimpleNamespace(name=f"{kind}-{seed}"))
            net.te_multiplier = net.unet_multiplier = STRENGTH
            for key, named in tensors.items():
                module = self.session.targets[key].module
                weights = network.NetworkWeights(network_key="_".join(key), sd_key=names[module], w=dict(named), sd_module=module)
                net.modules[names[module]] = next(filter(None, (sort.create_module(net, weights) for sort in networks.module_types)))
            self.theirs.append(net)
        self.weights = [self.session.targets[key].module.weight for key in tensors]
        copies = {weight.shape: weight.detach().clone() for weight in self.weights}
        self.backup = [copies[weight.shape] for weight in self.weights]
        self.factors = [[named[f"lora_{part}.weight"].flatten(1).float() for part in ("up", "down")] for named in tensors.values()]
        self.bytes = sum(weight.numel() * weight.element_size() for weight in self.weights)
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def floor(self) -> None:
        for weight, (up, down) in zip(self.weights, self.factors, strict=True):
            weight.view(len(weight), -1).addmm_(up, down, alpha=STRENGTH * ALPHA / RANK)

    def copy_back(self) -> None:
        for weight, kept in zip(self.weights, self.backup, strict=True):
            weight.copy_(kept)

    def set_theirs(self, nets: list) -> None:
        self.builtin.loaded_networks[:] = nets
        for module in self.modules:
            self.builtin.network_apply_weights(module)

    def set_ours(self, nets: list) -> None:
        self.session.apply([(net, STRENGTH) for net in nets])
        self.session.merge()

    def forget_theirs(self) -> None:
        for module in self.modules:
            self.builtin.network_reset_cached_weight(module)
        trim()

    def timed(self, work: Callable[[], object]) -> float:
        start = self.clock()
        work()
        return self.clock() - start

    def agreement(self) -> float:
        """Largest relative difference between what both make of a weight."""
        import torch
        self.set_ours(self.ours[:1])
        entries = [entry for patch in self.session._patches.values() for slot in patch.slots for entry in slot.entries]
        made = {id(parameters): ours for parameters, name, ours in entries if name == "weight"}
        self.set_theirs(self.theirs[:1])
        worst = max(float(torch.linalg.vector_norm(weight - made[id(module._parameters)]) / torch.linalg.vector_norm(weight))
                    for module in self.modules if (weight := module.weight) is not None and id(module._parameters) in made)
        del made, entries
        self.set_theirs([])
        self.forget_theirs()
        self.session.restore()
        return worst


def trim() -> None:
    """Gives freed memory back to the system, so that no part of a turn lives on another's."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library
        return


def measure(both: Both, turns: int) -> dict:
    from tests.benchmarks.measuring import ratio, resident
    names = ("floor", "copy", *(f"{whose}_{what}" for whose in ("builtin", "ours") for what in ("first", "switch", "removal")))
    times: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, dict[str, list[int]]] = {whose: {"on": [], "after": []} for whose in ("builtin", "ours")}
    ways = [("builtin", both.set_theirs, both.theirs), ("ours", both.set_ours, both.ours)]
    for _ in range(turns + 1):
        times["floor"].append(both.timed(both.floor))
        times["copy"].append(both.timed(both.copy_back))
        ways.reverse()  # what the one gives back, the other may get
        for whose, put, nets in ways:
            trim()
            before = resident()
            times[f"{whose}_first"].append(both.timed(partial(put, nets[:1])))
            memory[whose]["on"].append(resident() - before)
            times[f"{whose}_switch"].append(both.timed(partial(put, nets[1:])))
            times[f"{whose}_removal"].append(both.timed(partial(put, [])))
            trim()
            memory[whose]["after"].append(resident() - before)
            if whose == "builtin":
                both.forget_theirs()
    times = {name: values[1:] for name, values in times.items()}  # the first turn warms up
    found: dict = {"layers": len(both.weights), "bytes": both.bytes, "floor_seconds": statistics.median(times["floor"]),
                   "copy_seconds": statistics.median(times["copy"])}
    for whose in ("builtin", "ours"):
        found[whose] = {what: ratio(times[f"{whose}_{what}"], times["copy" if what == "removal" else "floor"]) for what in ("first", "switch", "removal")}
        found[whose]["memory"] = {when: statistics.median(values) for when, values in memory[whose].items()}
    found["builtin_over_ours"] = {what: ratio(times[f"builtin_{what}"], times[f"ours_{what}"]) for what in ("first", "switch", "removal")}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("webui", type=Path)
    parser.add_argument("--kinds", default="lora,locon")
    parser.add_argument("--turns", type=int, default=9)
    args = parser.parse_args()
    sys.path.append(str(ROOT))
    sys.modules.pop("tests", None)
    with tempfile.TemporaryDirectory() as data:
        networks, network, kind = open_webui(args.webui.resolve(), data)
        import torch
        torch.set_num_threads(1)
        with torch.no_grad():
            unet = make_unet(kind)
            result = {"torch": torch.__version__, "kinds": {}}
            for name in args.kinds.split(","):
                both = Both(networks, network, unet, name)
                agreement = both.agreement()
                result["kinds"][name] = {**measure(both, args.turns), "agreement": agreement}
                del both
                gc.collect()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
