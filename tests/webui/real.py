"""A real WebUI in its own process, asked over HTTP."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .network_files import Shapes, read_shapes, write_sibling
from .reply import Reply

ROOT = Path(__file__).parents[2]
USER, PASSWORD = "tester", "a secret"
SECONDS_TO_START = 900
WHOLE_PRECISION = ("--no-half", "--no-half-vae", "--precision", "full")
FLAGS = ("--skip-prepare-environment", "--use-cpu", "all", "--skip-torch-cuda-test",
         "--skip-version-check", "--skip-python-version-check", "--no-download-sd-model", "--do-not-download-clip", "--api",
         "--server-name", "127.0.0.1", "--enable-insecure-extension-access")
OPTIONS = {"live_previews_enable": False, "save_images_add_number": False, "samples_save": False, "grid_save": False, "enable_pnginfo": True,
           "lora_add_hashes_to_infotext": True, "CLIP_stop_at_last_layers": 1}


class RealWebUI:
    """Starts the WebUI of $WEBUI_DIR on CPU with this checkout as an extension, and makes pictures with it.

    Args:
        webui: its folder.
        python: what it runs with.
        data: its --data-dir; nothing is written elsewhere.
        port: on which it listens.
        flags: more of its command line.
        beside: folders of other extensions that run beside.
        packages: folders of packages that those need and the host lacks, as PYTHONPATH has them.
        ours: the name that this checkout has among the extensions: the host calls them in the order of their names. "": it is not there.
    """

    kind = "real"

    def __init__(self, webui: Path, python: Path, data: Path, port: int, flags: tuple[str, ...] = (), beside: Sequence[Path] = (), packages: str = "",
                 ours: str = "lyco-studio"):
        self.data, self._url = data, f"http://127.0.0.1:{port}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._lines: list[str] = []
        self.base, self.same_config, self.own_config = _install_checkpoints(data)
        self.shapes: Shapes = read_shapes(data / "models" / "Stable-diffusion" / self.base)
        for name in ("LyCORIS", "Lora", "embeddings"):
            (data / "models" / name).mkdir(parents=True)
        self.host_embeddings.mkdir()
        extensions = data / "extensions"
        extensions.mkdir()
        if ours:
            (extensions / ours).symlink_to(ROOT, target_is_directory=True)
        (extensions / "lyco-probe").symlink_to(Path(__file__).parent / "probe_extension", target_is_directory=True)
        for extension in beside:
            (extensions / extension.name).symlink_to(extension, target_is_directory=True)
        (data / "config.json").write_text(json.dumps(OPTIONS | {"sd_model_checkpoint": self.base}))
        precision = () if "--precision" in flags else WHOLE_PRECISION
        command = [str(python), "launch.py", *FLAGS, *precision, "--port", str(port), "--data-dir", str(data), "--api-auth", f"{USER}:{PASSWORD}",
                   "--ckpt", str(data / "models" / "Stable-diffusion" / self.base), *flags]
        environment = _environment() | ({"PYTHONPATH": packages} if packages else {})
        self._process = subprocess.Popen(command, cwd=webui, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                         errors="replace")
        self._reader = threading.Thread(target=self._read_output, daemon=True)
        self._reader.start()
        self._wait_for_start(1)

    @property
    def networks(self) -> Path:
        """The folder for network files."""
        return self.data / "models" / "LyCORIS"

    @property
    def embeddings(self) -> Path:
        """Our folder for embeddings."""
        return self.data / "models" / "embeddings"

    @property
    def host_embeddings(self) -> Path:
        """The host's own folder for embeddings."""
        return self.data / "embeddings"

    def output(self) -> str:
        """Everything that the WebUI has printed."""
        return "".join(self._lines)

    def picture(self, prompt: str, **settings: Any) -> Reply:
        """Pictures for a prompt; `init` (a Reply) makes it img2img, `checkpoint` a checkpoint's name, the rest is the API's own."""
        body: dict[str, Any] = {"prompt": prompt, "seed": 1, "steps": 6, "width": 64, "height": 64, "sampler_name": "Euler", "scheduler": "Automatic",
                                "cfg_scale": 5, **settings}
        init, checkpoint = body.pop("init", None), body.pop("checkpoint", None)
        if checkpoint is not None:
            body |= {"override_settings": {"sd_model_checkpoint": checkpoint}, "override_settings_restore_afterwards": False}
        if init is not None:
            body |= {"init_images": [base64.b64encode(init.files[0]).decode()], "denoising_strength": body.get("denoising_strength", 0.7)}
        answer = self.ask("/sdapi/v1/txt2img" if init is None else "/sdapi/v1/img2img", body)
        files = [base64.b64decode(image) for image in answer["images"]]
        info = json.loads(answer["info"])
        pictures = [Image.open(io.BytesIO(file)).convert("RGB").tobytes() for file in files]
        return Reply(pictures, self.ask("/probe/v1/comments"), info["extra_generation_params"], "\n".join(info["infotexts"]), files)

    def plan_prompts(self, positive: list[str], negative: list[str] | None = None, **more: Any) -> None:
        """Has the next picture made with these prompts, one for each picture of its batch, as a script would that writes prompts."""
        self.ask("/probe/v1/prompts", {"positive": positive, "negative": negative, **more})

    def plan_turns(self, **wanted: Any) -> None:
        """Has the next picture's sampling turned by the probe, call by call: strengths of the built-in's networks, texts kept or swapped."""
        self.ask("/probe/v1/turn", wanted)

    def failing_picture(self, prompt: str, **settings: Any) -> None:
        """A picture in which an exception comes up."""
        try:
            self.picture(prompt, **settings)
        except urllib.error.HTTPError as error:
            assert error.code == 500
        else:
            raise AssertionError("the picture was made although it had to fail")

    def break_at(self, step: int, what: str, layer: str = "") -> None:
        """Has the next picture's sampling break at a step: "interrupt", "exception" or "interrupt in a layer"."""
        self.ask("/probe/v1/plan", {"step": step, "what": what, "layer": layer})

    def model(self) -> dict[str, Any]:
        """What is on the model: hooks, the parameters' bits and identities."""
        return self.ask("/probe/v1/model")

    def empty_cond(self) -> str:
        """A digest of the empty prompt's encoding, as the host makes it after a load."""
        return self.ask("/probe/v1/empty-cond", {})

    def interrupt(self) -> None:
        """What the button Interrupt does."""
        self.ask("/sdapi/v1/interrupt", {})

    def set_options(self, **options: Any) -> None:
        """Changes the WebUI's settings."""
        self.ask("/sdapi/v1/options", options)

    def reload_ui(self) -> None:
        """What the button Reload UI does."""
        starts = self._starts()
        self.ask("/probe/v1/reload-ui", {})
        self._wait_for_start(starts + 1)

    def ask(self, path: str, body: Any = None, timeout: float = 600, authorised: bool = True, headers: dict[str, str] | None = None) -> Any:
        """The JSON that a route answers with: POST with a body, else GET."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        if authorised:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        with self._opener.open(urllib.request.Request(self._url + path, data, headers), timeout=timeout) as reply:
            return json.load(reply)

    def close(self) -> None:
        """Ends the WebUI that was started here."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(20)
        self._reader.join(20)
        self._process.stdout.close()

    def _read_output(self) -> None:
        for line in self._process.stdout:
            self._lines.append(line)

    def _starts(self) -> int:
        return self.output().count("Startup time: ")

    def _wait_for_start(self, count: int) -> None:
        end = time.monotonic() + SECONDS_TO_START
        while self._starts() < count:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the WebUI did not start:\n{self.output()[-6000:]}")
            time.sleep(0.05)
        while True:  # headless, the port opens a moment later
            try:
                self.ask("/probe/v1/comments")
                return
            except (urllib.error.URLError, ConnectionError):
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"the WebUI does not answer:\n{self.output()[-6000:]}") from None
                time.sleep(0.1)


def _environment() -> dict[str, str]:
    """Offline, one thread (pictures repeat bit for bit only at a fixed number), and nothing of the test run's own Python."""
    dropped = ("PYTHONPATH", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    dead = "http://127.0.0.1:9"
    return kept | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONUNBUFFERED": "1", "SD_WEBUI_RESTARTING": "1",
        "COMMANDLINE_ARGS": "", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1",
        "no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost",
        "http_proxy": dead, "https_proxy": dead, "HTTP_PROXY": dead, "HTTPS_PROXY": dead,
    }


def _install_checkpoints(data: Path) -> tuple[str, str, str]:
    """Three checkpoints: the embedded one; other weights with the same yaml (loaded into the same model); other weights with their own yaml."""
    folder = data / "models" / "Stable-diffusion"
    folder.mkdir(parents=True)
    other = os.environ.get("LYCO_TEST_CHECKPOINT")
    if other:
        checkpoint, yaml = Path(other), Path(other).with_suffix(".yaml")
        shutil.copyfile(yaml, folder / "base.yaml")
        (folder / "base.safetensors").symlink_to(checkpoint)
    else:
        from lib_lycoris.studio.world.files import install_world

        checkpoint, yaml, *_ = install_world(data)
        checkpoint.rename(folder / "base.safetensors")
        yaml.rename(folder / "base.yaml")
    write_sibling(folder / "base.safetensors", folder / "base.SAFETENSORS", seed=1)
    write_sibling(folder / "base.safetensors", folder / "apart.safetensors", seed=2)
    shutil.copyfile(folder / "base.yaml", folder / "apart.yaml")
    return "base.safetensors", "base.SAFETENSORS", "apart.safetensors"


def find_webui() -> tuple[Path, Path] | None:
    """The WebUI's folder and its Python, or None where $WEBUI_DIR is unset."""
    folder = os.environ.get("WEBUI_DIR")
    if not folder:
        return None
    webui = Path(folder).expanduser().resolve()
    named = os.environ.get("WEBUI_PYTHON")
    candidates: Iterator[Path] = iter([Path(named)] if named else [webui / "venv" / "bin" / "python", webui.parent / "venv" / "bin" / "python"])
    python = next((path for path in candidates if path.exists()), None)
    if python is None:
        raise RuntimeError(f"no Python found for the WebUI in {webui}: set WEBUI_PYTHON to the one it runs with")
    return webui, python
