"""What stands in for the WebUI where there is none: its calls in its order, on a tiny model. The same tests run on both, so it can't drift."""

from __future__ import annotations

import copy
import importlib.util
import io
import sys
import urllib.error
from pathlib import Path
from typing import Any

import torch

from .network_files import Shapes
from .reply import Reply

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPTS = (HERE / "probe_extension" / "scripts" / "lyco_probe.py", ROOT / "scripts" / "lycoris.py")


class StandIn:
    """Makes "pictures" with a tiny model in this process."""

    kind = "stand-in"
    base, same_config, own_config = "base", "other weights", "other config"

    def __init__(self, folder: Path):
        self.networks = folder / "LyCORIS"
        self.networks.mkdir()
        sys.path.insert(0, str(HERE / "fake_host"))
        import networks
        from modules import call_queue, extra_networks, script_callbacks, sd_hijack, sd_models, shared, tiny_model  # noqa: F401

        self._builtin, self._extra_networks, self._callbacks = networks, extra_networks, script_callbacks
        self._models, self._shared = sd_models, shared
        shared.models_path, shared.data_path, networks.folder = str(folder), str(folder / "data"), self.networks
        self.embeddings, self.host_embeddings = folder / "embeddings", folder / "embeddings of the host"
        self.embeddings.mkdir()
        self.host_embeddings.mkdir()
        shared.cmd_opts.embeddings_dir = str(self.host_embeddings)
        sd_hijack.model_hijack.embedding_db.add_embedding_dir(str(self.host_embeddings))
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
        """As the host makes pictures: n_iter, batch_size, hires pass, refiner, checkpoint, init (a Reply: img2img)."""
        from modules import processing

        wanted = {**DEFAULTS, **settings, "prompt": prompt}
        init, checkpoint = wanted.pop("init"), wanted.pop("checkpoint")
        wanted["script_args"] = {name: given["args"] for name, given in wanted.pop("alwayson_scripts", {}).items()}
        if checkpoint is not None:
            self._shared.opts.data["sd_model_checkpoint"] = checkpoint
        if init is not None:
            wanted["init_images"] = [_latents(init.pictures[0])]
        p = processing.StableDiffusionProcessing(self._scripts, wanted)
        with sys.modules["modules.call_queue"].queue_lock:
            self._shared.state.begin("picture")
            try:
                latents, texts = processing.process_images(p)
            finally:
                p.close()
        maps = [picture.tobytes() for picture in p.processed.images]
        return Reply([self.decode(each) for each in latents] + maps, list(p.comments), p.extra_generation_params, "\n".join(texts))

    @staticmethod
    def decode(latents: torch.Tensor) -> bytes:
        """The picture of one row of latents."""
        return (128 + 60 * latents).clamp(0, 255).to(torch.uint8).numpy().tobytes()

    def plan_prompts(self, positive: list[str], negative: list[str] | None = None, **more: Any) -> None:
        """Has the next picture made with these prompts, one for each picture of its batch, as a script would that writes prompts."""
        self._probe.planned.update({"positive": positive, "negative": negative, **more})

    def plan_turns(self, **wanted: Any) -> None:
        """Has the next picture's sampling turned by the probe, call by call."""
        self._probe.turned.clear()
        self._probe.turned.update(wanted)

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
        self._probe.set_break({"step": step, "what": what, "layer": layer})

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

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON that a route answers with: POST with a body, else GET."""
        if self._client is None:
            from fastapi import FastAPI
            from fastapi.testclient import TestClient

            app = FastAPI()
            self._callbacks.run("app_started", None, app)
            self._client = TestClient(app, "http://127.0.0.1:7860")
        answer = self._client.get(path) if body is None else self._client.post(path, json=body)
        if answer.status_code >= 400:
            raise urllib.error.HTTPError(path, answer.status_code, answer.reason_phrase, {}, io.BytesIO(answer.content))
        return answer.json()

    def take_model_away(self) -> None:
        """Loads another checkpoint without asking whether the model is in use, as an extension may."""
        self._models.reload_model_weights(self.own_config)

    def interrupt(self) -> None:
        """What the button Interrupt does."""
        self._shared.state.interrupt()

    def close(self) -> None:
        """Ends the stand-in; nothing of it stays in the process."""
        self._callbacks.run("script_unloaded")
        sys.path.remove(str(HERE / "fake_host"))
        for name in list(sys.modules):
            # Also what a test file had imported before: a package that stayed would hand the next stand-in this one's `host` and `settings`.
            if name.split(".")[0] in ("modules", "networks") or name == "lib_lycoris.webui" or name.startswith("lib_lycoris.webui."):
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
        sys.modules["modules.ui_extra_networks"].initialize()
        self._callbacks.run("before_ui")
        self._client = None


DEFAULTS = {"seed": 1, "steps": 4, "n_iter": 1, "batch_size": 1, "negative_prompt": "", "sampler_name": "Euler", "cfg_scale": 2.0, "init": None,
            "checkpoint": None, "denoising_strength": 0.7, "enable_hr": False, "hr_prompt": "", "hr_negative_prompt": "", "hr_second_pass_steps": 0,
            "hr_checkpoint_name": None, "refiner_checkpoint": None, "refiner_switch_at": 0.5, "disable_extra_networks": False}


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


def _latents(picture: bytes) -> torch.Tensor:
    return (torch.frombuffer(bytearray(picture), dtype=torch.uint8).float().reshape(1, 4, 8, 8) - 128) / 60
