"""Times of putting networks on, switching and taking them off, as multiples of the least that any way could need; `--help` says how to run it.

Weights have the shapes of Stable Diffusion 1.5's UNet. The floor of a low-rank network is an in-place `addmm_` of the same factors on the same weights,
that of another kind its ΔW added in place; the floor of a removal is the copy of the touched weights back from a backup. All are measured in turns within
one run, and a ratio is the median over the turns of (this / floor in the same turn), with the 95 % interval of that median.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_lycoris.networks.kinds import build_layer
from lib_lycoris.networks.network import Network
from lib_lycoris.patching.session import Session
from tests.patching import trees

SD1 = {"widths": (320, 640, 1280, 1280), "depths": (1, 1, 1, 0)}
CONTEXT = 768
RANK = 16


def make_unet(device: str, dtype: torch.dtype) -> nn.Module:
    trees.CONTEXT = CONTEXT
    with torch.device(device):
        return trees.LdmUNet(**SD1).to(dtype).requires_grad_(False)


def make_network(session: Session, kind: str, seed: int) -> Network:
    """Half-precision tensors as files have them, for the layers that trainers choose by default: those of the transformers, or all ("locon")."""
    draw = torch.Generator().manual_seed(seed)
    layers, homes = {}, {}
    for key, target in session.targets.items():
        if len(target.shape) < 2 or (kind != "locon" and "attentions" not in key[1]):
            continue
        tensors = {name: (0.02 * torch.randn(shape, generator=draw)).half() for name, shape in shapes(kind, tuple(target.shape)).items()}
        name = "_".join(key)
        layers[name], homes[name] = build_layer(name, {**tensors, **({} if kind == "oft" else {"alpha": torch.tensor(8.0)})}), key
    return Network(layers=layers, targets=homes, path=Path(f"{kind}-{seed}"))


def shapes(kind: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    outer, inner, kernel = shape[0], shape[1], shape[2:]
    ones = (1,) * len(kernel)
    if kind == "loha":
        flat = inner * torch.Size(kernel).numel()
        return {"hada_w1_a": (outer, RANK), "hada_w1_b": (RANK, flat), "hada_w2_a": (outer, RANK), "hada_w2_b": (RANK, flat)}
    if kind == "lokr":
        return {"lokr_w1": (8, 8), "lokr_w2_a": (outer // 8, RANK), "lokr_w2_b": (RANK, inner // 8 * torch.Size(kernel).numel())}
    if kind == "oft":
        return {"oft_blocks": (outer // 32, 32, 32)}
    return {"lora_up.weight": (outer, RANK, *ones), "lora_down.weight": (RANK, inner, *kernel)}


class Bench:
    """One model and two networks of a kind."""

    def __init__(self, kind: str, device: str, unet: nn.Module):
        self.device, self.kind = device, kind
        self._room: dict[int, torch.Tensor] = {}
        # with one thread the processor's time is the same as the wall's, less what other programs took
        self.clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
        self.session = Session(unet)
        self.networks = [make_network(self.session, kind, seed) for seed in (1, 2)]
        self.weights = [self.session.targets[home].module.weight for home in self.networks[0].targets.values()]
        self.backup = [weight.detach().clone() for weight in self.weights]
        self.deltas = [self._floor(layer, weight) for layer, weight in zip(self.networks[0].layers.values(), self.weights, strict=True)]
        self.bytes = sum(weight.numel() * weight.element_size() for weight in self.weights)

    def timed(self, work: Callable[[], object]) -> float:
        self._wait()
        start = self.clock()
        work()
        self._wait()
        return self.clock() - start

    def floor(self) -> None:
        for add in self.deltas:
            add()

    def copy_back(self) -> None:
        for weight, kept in zip(self.weights, self.backup, strict=True):
            weight.copy_(kept)

    def on(self, number: int) -> None:
        self.session.apply([(self.networks[number], 0.8)])
        self.session.merge()

    def _floor(self, layer: object, weight: torch.Tensor) -> Callable[[], object]:
        """The arithmetic of this layer alone, everything but the product itself prepared."""
        flat = weight.view(weight.shape[0], -1)
        tensors = {name: tensor.to(weight.device, torch.float32) for name, tensor in layer.tensors().items()}
        one, two = (self._scratch(number, flat.shape) for number in (0, 1))
        if self.kind == "loha":
            a, b, c, d = (tensors[f"hada_{part}"] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
            return lambda: flat.add_(torch.mm(a, b, out=one).mul_(torch.mm(c, d, out=two)), alpha=0.8)
        if self.kind == "lokr":
            first, a, b = tensors["lokr_w1"], tensors["lokr_w2_a"], tensors["lokr_w2_b"]
            outer, inner = first[:, None, :, None], (len(first), len(flat) // len(first), first.shape[1], flat.shape[1] // first.shape[1])
            return lambda: flat.add_(torch.mul(outer, (a @ b)[None, :, None, :], out=one.view(inner)).view_as(flat), alpha=0.8)
        if self.kind == "oft":
            blocks = tensors["oft_blocks"]
            turn = torch.linalg.solve(torch.eye(32, device=flat.device) - blocks, 2 * blocks)
            parts = (len(turn), 32, flat.shape[1])
            return lambda: flat.add_(torch.bmm(turn, flat.float().view(parts), out=one.view(parts)).view_as(flat), alpha=0.8)
        up, down = (tensors[f"lora_{part}.weight"].flatten(1).to(weight.dtype) for part in ("up", "down"))
        return lambda: flat.addmm_(up, down, alpha=0.8)

    def _scratch(self, number: int, shape: torch.Size) -> torch.Tensor:
        """Room for a product in float32, the same for all weights, so that a floor pays for no fresh memory."""
        largest = max(weight.numel() for weight in self.weights)
        if number not in self._room:
            self._room[number] = torch.zeros(largest, device=self.weights[0].device)
        return self._room[number][:shape.numel()].view(shape)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def measure_switches(bench: Bench, turns: int) -> dict:
    found: dict[str, list[float]] = {name: [] for name in ("floor", "copy", "first", "switch", "removal")}
    for _ in range(turns + 1):
        found["floor"].append(bench.timed(bench.floor))
        found["copy"].append(bench.timed(bench.copy_back))
        found["first"].append(bench.timed(lambda: bench.on(0)))
        found["switch"].append(bench.timed(lambda: bench.on(1)))
        found["removal"].append(bench.timed(bench.session.restore))
    found = {name: values[1:] for name, values in found.items()}  # the first turn warms up
    return {
        "layers": len(bench.weights), "bytes": bench.bytes,
        "floor_seconds": statistics.median(found["floor"]), "copy_seconds": statistics.median(found["copy"]),
        "first": ratio(found["first"], found["floor"]), "switch": ratio(found["switch"], found["floor"]), "removal": ratio(found["removal"], found["copy"]),
    }


def measure_steps(bench: Bench, unet: nn.Module, pairs: int, dtype: torch.dtype) -> dict:
    """A UNet step with a merged network over one without, alternating."""
    place = {"device": bench.device, "dtype": dtype}
    x = torch.randn(2, 4, 8, 8, **place), torch.ones(2, device=bench.device), torch.randn(2, 8, CONTEXT, **place)
    found: dict[str, list[float]] = {"with": [], "without": []}
    bench.on(0)
    hooks = [(held, dict(held)) for held in (unet._forward_pre_hooks, unet._forward_hooks)]
    with torch.no_grad():
        for number in range(2 * pairs + 2):
            name = ("with", "without")[number % 2]
            for held, ours in hooks:  # all that a merged network puts on the model: without them it is one without a network
                held.clear()
                held.update(ours if name == "with" else {})
            found[name].append(bench.timed(lambda: unet(*x)))
    for held, ours in hooks:
        held.update(ours)
    bench.session.restore()
    return {"pairs": pairs, "seconds_without": statistics.median(found["without"][1:]), "step": ratio(found["with"][1:], found["without"][1:])}


def measure_swap(bench: Bench, unet: nn.Module, turns: int) -> dict:
    """What the root's two hooks take per forward: whether all copies still hold, putting them in, and the own ones back."""
    bench.on(0)
    forward, unet.forward = unet.forward, lambda: None
    try:
        with torch.no_grad():
            unet()
            found = [bench.timed(unet) for _ in range(turns)]
    finally:
        unet.forward = forward
        bench.session.restore()
    return {"layers": len(bench.weights), "seconds": statistics.median(found)}


def measure_memory(bench: Bench) -> dict:
    """Bytes of the process (or of the GPU's allocator) more than before: with a network on, and after its removal."""
    gc.collect()
    before = resident(bench.device)
    bench.on(0)
    on = resident(bench.device)
    bench.session.restore()
    return {"touched": bench.bytes, "on": on - before, "after": resident(bench.device) - before}


def resident(device: str) -> int:
    if device == "cuda":
        return torch.cuda.memory_allocated()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0


def ratio(values: list[float], floor: list[float]) -> dict:
    """Median of the quotients and the 95 % interval of that median, from the order of the values alone."""
    quotients = sorted(value / least for value, least in zip(values, floor, strict=True))
    count = len(quotients)
    reach = max(0, int(count / 2 - 0.98 * count**0.5))
    return {"median": statistics.median(quotients), "low": quotients[reach], "high": quotients[count - 1 - reach]}


def run(args: argparse.Namespace) -> dict:
    dtype = getattr(torch, args.dtype)
    torch.manual_seed(0)
    unet = make_unet(args.device, dtype)
    result: dict = {"device": args.device, "dtype": args.dtype, "threads": torch.get_num_threads(), "torch": torch.__version__, "kinds": {}}
    for kind in args.kinds.split(","):
        bench = Bench(kind, args.device, unet)
        result["kinds"][kind] = measure_switches(bench, args.turns)
        if kind in ("lora", "locon"):
            result["kinds"][kind]["memory"] = measure_memory(bench)
        if kind == "locon":
            result["swap"] = measure_swap(bench, unet, 50)
            result["steps"] = measure_steps(bench, unet, args.pairs, dtype)
        del bench
        gc.collect()
    return result


def table(result: dict) -> str:
    def cell(value: dict, digits: int = 2) -> str:
        return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"

    lines = ["| kind | layers | touched | floor | first / floor | switch / floor | removal / copy back |", "|---|---|---|---|---|---|---|"]
    for kind, found in result["kinds"].items():
        lines.append(f"| {kind} | {found['layers']} | {found['bytes'] / 1e9:.2f} GB | {found['floor_seconds'] * 1e3:.0f} ms |"
                     f" {cell(found['first'])} | {cell(found['switch'])} | {cell(found['removal'], 3)} |")
    for kind, found in result["kinds"].items():
        if "memory" in found:
            memory = {name: f"{size / 1e9:.2f} GB" for name, size in found["memory"].items()}
            lines.append(f"\nMemory, {kind}: {memory['touched']} touched, {memory['on']} more with it on, {memory['after']} more after its removal.")
    if "steps" in result:
        steps, swap = result["steps"], result["swap"]
        lines.append(f"\nA step with a merged network / one without: {cell(steps['step'], 4)}, {steps['pairs']} pairs of"
                     f" {steps['seconds_without'] * 1e3:.0f} ms; the root's two hooks: {swap['seconds'] * 1e3:.2f} ms for {swap['layers']} layers.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--kinds", default="lora,locon,loha,lokr,oft")
    parser.add_argument("--turns", type=int, default=9, help="how often each is timed")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of UNet steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = run(args)
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
