"""A real WebUI started with any flags, asked as a browser or a program would; it may be killed, and started again on the same folder."""

from __future__ import annotations

import base64
import http.cookiejar
import json
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .adapter_files import write_adapters
from .network_files import LINEAR, read_shapes, write_network
from .real import OPTIONS, ROOT, SECONDS_TO_START, WHOLE_PRECISION, _environment, _install_checkpoints, find_webui

_FLAGS = ("--skip-prepare-environment", "--use-cpu", "all", "--skip-torch-cuda-test", "--skip-version-check", "--skip-python-version-check",
          "--no-download-sd-model", "--do-not-download-clip")
_OF_THE_HOST = "do_read_info_from_repo"
"""What the host prints a traceback for by itself: an extension's folder that is a git checkout without a remote."""


class Started:
    """A WebUI of one start.

    Args:
        folder: its data; made where it is not there, else found as a former start left it.
        port: where it listens.
        flags: its command line, beside what a start offline and on the CPU needs.
        base: what stands before each path ("/sd" with --subpath /sd).
    """

    def __init__(self, folder: Path, port: int, flags: tuple[str, ...] = (), base: str = ""):
        found = find_webui()
        if found is None:
            pytest.skip("WEBUI_DIR is not set")
        webui, python = found
        self.folder, self.address = folder, f"http://127.0.0.1:{port}{base}"
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        if not (folder / "extensions").is_dir():
            _fill(folder)
        precision = () if "--upcast-sampling" in flags else WHOLE_PRECISION
        checkpoint = folder / "models" / "Stable-diffusion" / "base.safetensors"
        command = [str(python), "launch.py", *_FLAGS, *precision, "--port", str(port), "--data-dir", str(folder), "--ckpt", str(checkpoint), *flags]
        self._lines: list[str] = []
        self._process = subprocess.Popen(command, cwd=webui, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                         encoding="utf-8", errors="replace")
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def output(self) -> str:
        """Everything that it has printed."""
        return "".join(self._lines)

    def tracebacks(self) -> list[str]:
        """The tracebacks that it has printed, without the host's own."""
        found = re.findall(r"Traceback \(most recent call last\):\n(?:.+\n?)+", self.output())
        return [each for each in found if _OF_THE_HOST not in each]

    def ask(self, path: str, body: Any = None, user: tuple[str, str] | None = None, headers: Mapping[str, str] | None = None, timeout: float = 120,
            method: str | None = None) -> tuple[int, Any]:
        """(status, answer: JSON, or text where it is none) of a route; with a body it is a POST."""
        sent = {"Content-Type": "application/json", **(headers or {})}
        if user is not None:
            sent["Authorization"] = "Basic " + base64.b64encode(":".join(user).encode()).decode()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            with self._opener.open(urllib.request.Request(self.address + path, data, sent, method=method), timeout=timeout) as reply:
                return reply.status, _read_answer(reply)
        except urllib.error.HTTPError as error:
            return error.code, _read_answer(error)

    def log_in(self, user: tuple[str, str]) -> int:
        """The status with which the host's page answers to a log-in; its cookie is kept."""
        form = urllib.parse.urlencode({"username": user[0], "password": user[1]}).encode()
        return self.ask("/login", form, headers={"Content-Type": "application/x-www-form-urlencoded"})[0]

    def elements(self) -> set[str]:
        """The ids of the page's elements."""
        status, config = self.ask("/config")
        assert status == 200, (status, str(config)[:300])
        return {component["props"].get("elem_id") for component in config["components"]} - {None}

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Ends it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait(20)
        self._reader.join(20)
        self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._lines.append(line)

    def _wait(self) -> None:
        """Until it answers. Not asked before it says that it has started: an early request may end its start."""
        end = time.monotonic() + SECONDS_TO_START
        asked = False
        while not asked:
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the WebUI did not start:\n{self.output()[-6000:]}")
            if "Startup time: " in self.output():
                try:
                    self.ask("/internal/ping", timeout=5)
                    asked = True
                    continue
                except (urllib.error.URLError, ConnectionError, TimeoutError):
                    pass
            time.sleep(0.05)


@contextmanager
def start(folder: Path, port: int, flags: tuple[str, ...] = (), base: str = "") -> Iterator[Started]:
    """A WebUI that is ended afterwards."""
    webui = Started(folder, port, flags, base)
    try:
        yield webui
    finally:
        webui.close()


def _fill(folder: Path) -> None:
    """Checkpoints, a network, adapters, and this checkout as an extension."""
    name, *_ = _install_checkpoints(folder)
    shapes = read_shapes(folder / "models" / "Stable-diffusion" / name)
    for each in (folder / "models" / "LyCORIS", folder / "models" / "Lora", folder / "extensions"):
        each.mkdir(parents=True)
    write_network(folder / "models" / "LyCORIS" / "A.safetensors", shapes, seed=11, pattern=LINEAR)
    write_adapters(folder / "models" / "T2I-Adapter", shapes)
    (folder / "extensions" / "lyco-studio").symlink_to(ROOT, target_is_directory=True)
    (folder / "config.json").write_text(json.dumps({**OPTIONS, "sd_model_checkpoint": name}))


def _read_answer(reply: Any) -> Any:
    text = reply.read().decode("utf-8", errors="replace")
    try:
        return json.loads(text)
    except ValueError:
        return text
