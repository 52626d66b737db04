"""What a training step costs over the frozen model alone, in time and memory, beside LyCORIS and PEFT: `python tests/benchmarks/train.py [--json]`.

One UNet with SD 1.5's blocks (on a CPU at a quarter of its width), latents 32×32, batch 1, float32, one core. The floor is the frozen UNet's forward pass
and its backward pass to the input. Every method trains the same 278 linear layers and convolutions; all share the UNet's weights. Times are medians over
rounds in which each method has its turn, in processor seconds, which other programs on the machine change little. Memory is what torch allocates.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

sys.path.insert(0, str(Path(__file__).parents[2]))

from lib_lycoris.patching.session import attach
from lib_lycoris.patching.targets import find_targets
from lib_lycoris.training.config import NetworkSettings, TrainConfig, TrainingSettings
from lib_lycoris.training.draws import make_generator
from lib_lycoris.training.flat import Flat
from lib_lycoris.training.loop import train
from lib_lycoris.training.methods import make_method
from lib_lycoris.training.optimizers import make_optimizer
from lib_lycoris.training.selection import select_targets

RANK, HALF = 16, 8
"""LoRA's and AdaLoRA's rank, and LoHa's, which gives as many parameters."""
STEPS = 100
MIB = 2**20
_IN_PLACE = {torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm], torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm]}
"""What torch's counter leaves out."""


@dataclass
class Case:
    """A method on its own copy of the model's tree: what it runs in a step, and what it holds."""

    name: str
    run: Callable[[], None]
    parameters: list[nn.Parameter] = field(default_factory=list)
    optimise: Callable[[], None] = lambda: None
    allocate: Callable[[int], None] | None = None
    attached: Callable[[], object] = lambda: None


@dataclass
class Figures:
    """What was measured of a case; times in processor seconds, memory in bytes."""

    name: str
    arithmetic: float
    seconds: float
    over_floor: float
    optimiser: float
    allocator: float
    parameters: int
    held: int
    """Parameters, gradients, the optimiser's and allocator's state."""
    activations: int
    """Peak of what a step allocates, beyond the floor's."""


class Model:
    """The UNet and a step's inputs; trees that share its weights."""

    def __init__(self, width: float, device: str):
        from diffusers import UNet2DConditionModel

        self.device = torch.device(device)
        widths = tuple(int(channels * width) for channels in (320, 640, 1280, 1280))
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(
            sample_size=32, block_out_channels=widths, cross_attention_dim=int(768 * width), attention_head_dim=8, norm_num_groups=20 if width < 1 else 32,
        ).requires_grad_(False).eval().to(self.device)
        self.x = torch.randn(1, 4, 32, 32, device=self.device, requires_grad=True)
        self.noise = torch.randn(1, 4, 32, 32, device=self.device)
        self.context = torch.randn(1, 77, int(768 * width), device=self.device)
        self.t = torch.tensor([500], device=self.device)

    def tree(self) -> nn.Module:
        """Modules of its own over the same weights."""
        return copy.deepcopy(self.unet, {id(value): value for value in (*self.unet.parameters(), *self.unet.buffers())})

    def step(self, tree: nn.Module) -> Callable[[], None]:
        """Forward and backward pass of that tree."""

        def run() -> None:
            self.x.grad = None
            torch.nn.functional.mse_loss(tree(self.x, self.t, self.context).sample, self.noise).backward()

        return run


def floor(model: Model) -> Case:
    return Case("floor", model.step(model.tree()))


def ours(model: Model, name: str, **settings: object) -> Case:
    """A kind of ours, attached as in training."""
    tree = model.tree()
    chosen = NetworkSettings(text_encoder=False, targets=("q", "k", "v", "out", "ff", "proj", "resnet", "sampler"), **settings)
    targets = find_targets(tree)
    method = make_method(chosen, select_targets(targets, chosen), STEPS, 0, model.device)
    named = {f"{component}.{key}.{part}": value for (component, key), layer in method.layers.items() for part, value in layer.named_parameters()}
    flat = Flat(named)
    _off_zero([flat.vector])
    optimizer = make_optimizer([{"params": [flat.vector], "lr": 1e-6}], TrainingSettings())

    def allocate(step: int) -> None:
        method.add_penalty()
        method.after_step(step)

    attachment = attach(targets, method.layers)
    run = model.step(tree)

    def whole() -> None:
        flat.zero_gradients()
        run()

    return Case(name, whole, list(named.values()), optimizer.step, allocate if chosen.kind == "adalora" else None, lambda: attachment)


def lycoris(model: Model, name: str, algorithm: str, rank: int, **settings: object) -> Case:
    """LyCORIS' wrapper of the same modules."""
    from lycoris import LycorisNetwork

    tree = model.tree()
    targets = _targets(tree)
    others = [name for name, module in tree.named_modules() if isinstance(module, nn.Linear | nn.Conv2d) and name not in targets]
    LycorisNetwork.apply_preset({"target_module": ["Linear", "Conv2d"], "target_name": [], "exclude_name": others, "use_fnmatch": True})
    wrapper = LycorisNetwork(tree, 1.0, rank, rank, rank, rank, network_module=algorithm, **settings)
    _check_count(name, len(wrapper.loras), len(targets))
    wrapper.apply_to()
    wrapper.to(model.device)
    return _foreign(name, model, tree, list(wrapper.parameters()), keep=wrapper)


def peft(model: Model, name: str, config: str, **settings: object) -> Case:
    """PEFT's modules in the place of the same ones."""
    library = importlib.import_module("peft")
    tree = model.tree()
    targets = _targets(tree)
    adapted = getattr(library, config)(target_modules=sorted(targets), **settings)
    tuner = None
    if config == "AdaLoraConfig":
        tuner = library.tuners.adalora.AdaLoraModel(tree, adapted, "default")
    else:
        library.inject_adapter_in_model(adapted, tree)
    parameters = [value for value in tree.parameters() if value.requires_grad]
    _check_count(name, sum(hasattr(module, "base_layer") for module in tree.modules()), len(targets))
    return _foreign(name, model, tree, parameters, allocate=None if tuner is None else tuner.update_and_allocate, keep=tuner)


def _foreign(name: str, model: Model, tree: nn.Module, parameters: list[nn.Parameter], allocate: Callable | None = None, keep: object = None) -> Case:
    _off_zero(parameters)
    optimizer = make_optimizer([{"params": parameters, "lr": 1e-6}], TrainingSettings())
    run = model.step(tree)

    def whole() -> None:
        optimizer.zero_grad()
        run()

    return Case(name, whole, parameters, optimizer.step, allocate, lambda: keep)


def _targets(tree: nn.Module) -> dict[str, nn.Module]:
    """The modules that ours train, by dotted name."""
    chosen = NetworkSettings(kind="locon", text_encoder=False)
    modules = {target.module for target in select_targets(find_targets(tree), chosen).values()}
    return {name: module for name, module in tree.named_modules() if module in modules}


def _off_zero(parameters: list[nn.Parameter]) -> None:
    """Away from where training starts, so that nothing is spared because it is zero."""
    generator = make_generator(0, "benchmark")
    with torch.no_grad():
        for value in parameters:
            value.add_(torch.randn(value.shape, generator=generator).to(value.device), alpha=1e-3)


def _check_count(name: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise RuntimeError(f"{name} covers {found} layers instead of {wanted}: the comparison would not be fair")


def make_cases(model: Model, texts: Sequence[str] = ("",)) -> list[Case]:
    """The floor and every method whose name holds one of these texts; packages that are missing are told and left out."""
    makers: dict[str, Callable[[str], Case]] = {
        f"Lyco LoRA r{RANK}": partial(ours, model, kind="locon", rank=RANK),
        f"Lyco LoHa r{HALF}": partial(ours, model, kind="loha", rank=HALF),
        "Lyco LoKr f8": partial(ours, model, kind="lokr", rank=RANK, factor=8),
        f"Lyco DoRA r{RANK}": partial(ours, model, kind="locon", rank=RANK, dora=True),
        f"Lyco AdaLoRA r{RANK}": partial(ours, model, kind="adalora", target_rank=RANK // 2, init_rank=RANK, interval=1, warmup=0),
        f"LyCORIS LoRA r{RANK}": partial(lycoris, model, algorithm="locon", rank=RANK),
        f"LyCORIS LoRA r{RANK} bypass": partial(lycoris, model, algorithm="locon", rank=RANK, bypass_mode=True),
        f"LyCORIS LoHa r{HALF}": partial(lycoris, model, algorithm="loha", rank=HALF),
        "LyCORIS LoKr f8": partial(lycoris, model, algorithm="lokr", rank=RANK, factor=8),
        f"PEFT LoRA r{RANK}": partial(peft, model, config="LoraConfig", r=RANK, lora_alpha=RANK, init_lora_weights=False),
        f"PEFT LoHa r{HALF}": partial(peft, model, config="LoHaConfig", r=HALF, alpha=HALF, init_weights=False),
        f"PEFT AdaLoRA r{RANK}": partial(
            peft, model, config="AdaLoraConfig", init_r=RANK, target_r=RANK // 2, lora_alpha=RANK, tinit=0, tfinal=10, total_step=STEPS
        ),
    }
    cases = [floor(model)]
    for name, make in makers.items():
        if any(text in name for text in texts):
            try:
                cases.append(make(name=name))
            except ImportError as error:
                print(f"left out: {error}", file=sys.stderr)
    return cases


def measure(model: Model, cases: list[Case], rounds: int) -> list[Figures]:
    """Every case's figures, their turns mixed anew in each round."""
    times: dict[str, list[list[float]]] = {case.name: [[], [], []] for case in cases}
    arithmetic, peaks, held = {}, {}, {}
    for case in cases:  # the first run of each is not timed
        with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:
            case.run()
        arithmetic[case.name] = counter.get_total_flops()
        case.optimise()
        peaks[case.name] = peak_bytes(model, case.run)
        held[case.name] = sum(value.numel() * value.element_size() for value in case.parameters)
    order, mixed = list(cases), random.Random(0)
    for step in range(1, rounds + 1):
        mixed.shuffle(order)
        for case in order:
            calls = (case.run, case.optimise, partial(case.allocate, step) if case.allocate else lambda: None)
            for own, call in zip(times[case.name], calls, strict=True):
                own.append(seconds_of(model, call))
    bare = cases[0].name
    return [
        Figures(
            name=case.name,
            arithmetic=arithmetic[case.name] / arithmetic[bare] - 1,
            seconds=statistics.median(times[case.name][0]),
            over_floor=statistics.median(own / floor for own, floor in zip(times[case.name][0], times[bare][0], strict=True)),
            optimiser=statistics.median(times[case.name][1]),
            allocator=statistics.median(times[case.name][2]),
            parameters=sum(value.numel() for value in case.parameters),
            held=held[case.name] * (6 if case.allocate else 4),
            activations=peaks[case.name] - (peaks[bare] if case.name != bare else 0),
        )
        for case in cases
    ]


def seconds_of(model: Model, part: Callable[[], object]) -> float:
    """Processor seconds of a call; on a GPU those until it is done."""
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    _wait(model)
    began = clock()
    part()
    _wait(model)
    return clock() - began


def _wait(model: Model) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(model: Model, part: Callable[[], None]) -> int:
    """The most that torch had allocated at once during a call, beyond what it had before."""
    gc.collect()
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        part()
        return torch.cuda.max_memory_allocated() - before
    with _silent(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        part()
    events = [(event.start_ns(), event.nbytes()) for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        now += size
        most = max(most, now)
    return most


@contextmanager
def _silent() -> Iterator[None]:
    """What the profiler's libraries print on their own is not shown."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class _Backbone:
    """The UNet as a training sees it; the clock of what is spent in it."""

    base_model, checkpoint_name, checkpoint_hash, prediction = "sd_v1", "benchmark", None, "eps"

    def __init__(self, model: Model):
        self.unet, self.text_encoders, self.device = model.tree(), (), model.device
        self.alphas_cumprod = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
        self._model = model
        self.spent = 0.0

    def encode_pictures(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        return self._model.x.detach()

    def encode_captions(self, captions: list[str]) -> Tensor:
        return self._model.context.expand(len(captions), -1, -1)

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Tensor) -> Tensor:
        began = time.process_time()
        predicted = self.unet(x_t, t, conditioning).sample
        self.spent += time.process_time() - began
        return predicted

    def preview(self, prompt: str, seed: int, **settings: object) -> None:
        return None

    @contextmanager
    def training(self) -> Iterator[None]:
        yield


def share_outside(model: Model, steps: int = 6) -> float:
    """The share of a whole training's steps, the first left out, that is spent outside of forward pass, backward pass and the optimiser's step."""
    from PIL import Image

    backbone = _Backbone(model)
    marks: list[tuple[float, float]] = []

    def clocked(call: Callable) -> Callable:
        def timed(*args: object, **options: object) -> object:
            began = time.process_time()
            result = call(*args, **options)
            backbone.spent += time.process_time() - began
            return result
        return timed

    own = Tensor.backward, torch.optim.AdamW.step
    with tempfile.TemporaryDirectory() as folder:
        Image.new("RGB", (256, 256), (90, 60, 30)).save(Path(folder) / "a.png")
        Path(folder, "a.txt").write_text("a square", encoding="utf-8")
        config = TrainConfig.from_dict({
            "data": {"folders": [folder], "resolution": 256}, "network": {"kind": "locon", "rank": RANK, "text_encoder": False},
            "training": {"steps": steps}, "output": {"folder": folder, "name": "benchmark"},
        })
        try:
            Tensor.backward, torch.optim.AdamW.step = clocked(own[0]), clocked(own[1])
            train(config, backbone, on_step=lambda report: marks.append((time.process_time(), backbone.spent)))
        finally:
            Tensor.backward, torch.optim.AdamW.step = own
    whole, inside = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
    return 1 - inside / whole


def table(figures: list[Figures], outside: float) -> str:
    """The figures as text."""
    base = figures[0]
    lines = [
        f"floor: {base.seconds:.3f} s of processor time, {base.activations / MIB:.0f} MiB",
        f"{'':24}{'of floor':>9}{'arithmetic':>12}{'optimiser':>11}{'allocator':>11}{'held MiB':>10}{'+ step MiB':>12}",
    ]
    for one in figures[1:]:
        whole = one.seconds + one.optimiser + one.allocator
        lines.append(
            f"{one.name:24}{one.over_floor:9.3f}{1 + one.arithmetic:12.3f}{one.optimiser / whole:11.1%}{one.allocator / whole:11.1%}"
            f"{one.held / MIB:10.1f}{one.activations / MIB:12.1f}"
        )
    return "\n".join([*lines, f"whole loop: {outside:.1%} of a step outside of forward, backward and optimiser"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=7, help="how often each method has its turn (7)")
    parser.add_argument("--device", default="cpu", help="cpu (one core, a quarter of the width) or cuda (full width)")
    parser.add_argument("--only", default="", help="only methods whose name holds one of these texts, with commas between them")
    parser.add_argument("--width", type=float, help="share of SD 1.5's width (0.25 on a CPU, 1 on a GPU)")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    model = Model(options.width or (0.25 if options.device == "cpu" else 1.0), options.device)
    cases = make_cases(model, options.only.split(","))
    figures = measure(model, cases, options.rounds)
    outside = 0.0 if options.only else share_outside(model)
    if options.json:
        print(json.dumps({"outside": outside, "torch": torch.__version__, "methods": [asdict(one) for one in figures]}))
    else:
        print(table(figures, outside))


if __name__ == "__main__":
    main()
