"""What stands in for the WebUI where there is none: its calls in its order, on a tiny model. The same tests run on both, so it can't drift."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from .network_files import Shapes
from .reply import Reply

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = (HERE / "probe_extension" / "scripts" / "lyco_probe.py", ROOT / "scripts" / "lycoris.py")


class Picture:
    """The host's `p`: what stands on the class are its caches, shared by all pictures."""

    cached_c, cached_uc, cached_hr_c, cached_hr_uc = [None, None], [None, None], [None, None], [None, None]

    def __init__(self, scripts: list):
        self.scripts, self.comments, self.extra_generation_params, self.is_hr_pass = scripts, {}, {}, False

    def comment(self, text: str) -> None:
        self.comments[text] = 1

    def close(self) -> None:
        self.scripts = None


class StandIn:
    """Makes "pictures" with a tiny model in this process."""

    kind = "stand-in"
    base, same_config, own_config = "base", "other weights", "other config"

    def __init__(self, folder: Path):
        self.networks = folder / "LyCORIS"
        self.networks.mkdir()
        self._modules_before = set(sys.modules)
        sys.path.insert(0, str(HERE / "fake_host"))
        import networks
        from modules import extra_networks, script_callbacks, sd_models, shared, tiny_model

        self._builtin, self._extra_networks, self._callbacks = networks, extra_networks, script_callbacks
        self._models, self._shared = sd_models, shared
        shared.models_path, networks.folder = str(folder), self.networks
        torch.manual_seed(0)
        first = tiny_model.TinyModel()
        configs = {self.base: "a", self.same_config: "a", self.own_config: "b"}
        for seed, (name, config) in enumerate(configs.items()):
            weights = copy.deepcopy(first.state_dict())
            noise = torch.Generator().manual_seed(seed)
            for tensor in weights.values():
                tensor += 0.1 * seed * torch.randn(tensor.shape, generator=noise)
            sd_models.checkpoints[name] = (config, weights)
        self.shapes = _shapes(first)
        self._start()
        sd_models.reload_model_weights(self.base)

    def picture(self, prompt: str, **settings: Any) -> Reply:
        """As the host's process_images: n_iter, batch_size, hires pass, refiner, checkpoint, init."""
        p = Picture(self._scripts)
        for script in self._scripts:
            script.before_process(p)
        with torch.no_grad():
            return self._process(p, prompt, SimpleNamespace(**{**DEFAULTS, **settings}))

    def failing_picture(self, prompt: str, **settings: Any) -> None:
        """A picture in which an exception comes up."""
        try:
            self.picture(prompt, **settings)
        except RuntimeError as error:
            assert "on purpose" in str(error)
        else:
            raise AssertionError("the picture was made although it had to fail")

    def break_at(self, step: int, what: str, layer: str = "") -> None:
        """Has the next picture's sampling break at a step."""
        self._probe.plan.clear()
        self._probe.plan.update(step=step, what=what, layer=layer)

    def model(self) -> dict[str, Any]:
        """What is on the model: hooks, the parameters' bits and identities."""
        bits, identity = self._probe.digest()
        return {"hooks": self._probe.count_hooks(), "bits": bits, "identity": identity,
                "networks": sorted(self._extra_networks.extra_network_registry),
                "checkpoint": self._models.model_data.sd_model.sd_checkpoint_info.name}

    def empty_cond(self) -> bytes:
        """The empty prompt's encoding, as the host makes it after a load."""
        with torch.no_grad():
            return self._models.get_empty_cond(self._models.model_data.sd_model).numpy().tobytes()

    def set_options(self, **options: Any) -> None:
        """Changes the settings."""
        self._shared.opts.data.update(options)

    def reload_ui(self) -> None:
        """What the button Reload UI does."""
        self._callbacks.run("script_unloaded")
        self._start()

    def close(self) -> None:
        """Ends the stand-in; nothing of it stays in the process."""
        self._callbacks.run("script_unloaded")
        sys.path.remove(str(HERE / "fake_host"))
        for name in set(sys.modules) - self._modules_before:
            if name.split(".")[0] in ("modules", "networks") or name.startswith("lib_lycoris.webui"):
                del sys.modules[name]

    def _start(self) -> None:
        self._callbacks.clear_callbacks()
        self._builtin.patch()
        self._callbacks.on_model_loaded(self._builtin.on_model)
        self._callbacks.on_script_unloaded(self._builtin.undo)
        self._callbacks.on_before_ui(self._builtin.before_ui)
        loaded = [_run_script(path) for path in SCRIPTS]
        self._probe = loaded[0]
        base = sys.modules["modules.scripts"].Script
        classes = [value for module in loaded for value in vars(module).values() if isinstance(value, type) and issubclass(value, base)]
        self._scripts = [made() for made in classes]
        self._extra_networks.initialize()
        self._callbacks.run("before_ui")

    def _process(self, p: Picture, prompt: str, wanted: SimpleNamespace) -> Reply:
        pictures = []
        self._shared.state.interrupted = False
        checkpoint = wanted.checkpoint or getattr(self, "_checkpoint", self.base)
        self._checkpoint = checkpoint
        try:
            for number in range(wanted.n_iter):
                if self._shared.state.interrupted:
                    break
                self._models.reload_model_weights(checkpoint)
                p.prompts = [prompt] * wanted.batch_size
                p.prompts, p.extra_network_data = self._extra_networks.parse_prompts(p.prompts)
                self._extra_networks.activate(p, p.extra_network_data)
                seeds = [wanted.seed + number * wanted.batch_size + row for row in range(wanted.batch_size)]
                latents = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
                if wanted.init is not None:
                    latents = 0.3 * _latents(wanted.init.pictures[0]) + 0.7 * latents
                latents = self._sample(p, latents, wanted, p.prompts, p.extra_network_data, Picture.cached_c)
                if wanted.enable_hr and not self._shared.state.interrupted:
                    latents = self._hires(p, latents, prompt, wanted)
                pictures += [_decode(row) for row in latents]
            if p.extra_network_data:
                self._extra_networks.deactivate(p, p.extra_network_data)
            for script in reversed(self._scripts):
                script.postprocess(p, None)
        finally:
            p.close()
        return Reply(pictures, list(p.comments), p.extra_generation_params, _infotext(p))

    def _hires(self, p: Picture, latents: torch.Tensor, prompt: str, wanted: SimpleNamespace) -> torch.Tensor:
        p.is_hr_pass = True
        if wanted.hr_checkpoint_name:
            self._models.reload_model_weights(wanted.hr_checkpoint_name)
        prompts, data = self._extra_networks.parse_prompts([wanted.hr_prompt or prompt] * len(latents))
        self._extra_networks.activate(p, data)
        latents = self._sample(p, functional.interpolate(latents, scale_factor=2), wanted, prompts, data, Picture.cached_hr_c)
        p.is_hr_pass = False
        return latents

    def _conds(self, prompts: list[str], data: dict, cache: list) -> torch.Tensor:
        key = (prompts, self._models.model_data.sd_model.sd_checkpoint_info, data)
        if cache[0] is None or cache[0] != key:
            cache[:] = [key, torch.cat([self._models.model_data.sd_model.encode(prompt) for prompt in prompts])]
        return cache[1]

    def _sample(self, p: Picture, x: torch.Tensor, wanted: SimpleNamespace, prompts: list[str], data: dict, cache: list) -> torch.Tensor:
        from modules.sd_samplers_common import InterruptedException

        context = self._conds(prompts, data, cache)
        try:
            for step in range(STEPS):
                if self._shared.state.interrupted:
                    raise InterruptedException
                if wanted.refiner_checkpoint and step >= wanted.refiner_switch_at * STEPS:
                    self._models.reload_model_weights(wanted.refiner_checkpoint)
                    context = self._conds(prompts, data, cache)
                for callback in self._callbacks.callbacks["cfg_denoiser"]:
                    callback(SimpleNamespace(sampling_step=step))
                x = x - 0.5 * self._models.model_data.sd_model.model.diffusion_model(x, torch.full((len(x),), float(step)), context)
        except InterruptedException:
            pass
        return x


STEPS = 3
DEFAULTS = {"seed": 1, "n_iter": 1, "batch_size": 1, "init": None, "checkpoint": None, "enable_hr": False, "hr_prompt": "",
            "hr_checkpoint_name": None, "refiner_checkpoint": None, "refiner_switch_at": 0.5}


def _run_script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _shapes(model: torch.nn.Module) -> Shapes:
    from lib_lycoris.files.spelling import ldm_to_diffusers_unet

    trees = (("unet", model.model.diffusion_model, ldm_to_diffusers_unet), ("te1", model.cond_stage_model.wrapped.transformer, str))
    return {(component, translate(path.replace(".", "_"))): tuple(module.weight.shape) for component, tree, translate in trees
            for path, module in tree.named_modules() if getattr(module, "weight", None) is not None}


def _decode(latents: torch.Tensor) -> bytes:
    return (128 + 60 * latents).clamp(0, 255).to(torch.uint8).numpy().tobytes()


def _latents(picture: bytes) -> torch.Tensor:
    return (torch.frombuffer(bytearray(picture), dtype=torch.uint8).float().reshape(1, 4, 8, 8) - 128) / 60


def _infotext(p: Picture) -> str:
    values = {key: value() if callable(value) else value for key, value in p.extra_generation_params.items()}
    return ", ".join(f'{key}: "{value}"' if "," in str(value) else f"{key}: {value}" for key, value in values.items() if value is not None)
