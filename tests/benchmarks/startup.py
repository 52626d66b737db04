"""How much longer the WebUI's start takes with this extension than without it; `--help` says how to run it.

The real WebUI of $WEBUI_DIR is started in turns with and without the extension (no checkpoint is loaded), each until its server answers. Told are the
seconds that the host itself counts ("Startup time"), the processor's seconds of its process up to then, which a busy machine changes less, and what the host
says that our script alone took to load. The first pair warms the caches and does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.webui.real import FLAGS, _environment, find_webui  # noqa: E402

SECONDS = 600
_TICKS = os.sysconf("SC_CLK_TCK")


def start(webui: Path, python: Path, port: int, extension: bool) -> dict:
    """One start: {"seconds", "processor", "records"}."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        for name in ("extensions", "models/Stable-diffusion", "models/LyCORIS", "models/Lora"):
            (data / name).mkdir(parents=True)
        if extension:
            (data / "extensions" / "lyco-studio").symlink_to(ROOT, target_is_directory=True)
        (data / "config.json").write_text("{}")
        command = [str(python), "launch.py", *FLAGS, "--skip-load-model-at-start", "--port", str(port), "--data-dir", str(data)]
        environment = {**_environment(), "PYTHONDONTWRITEBYTECODE": ""}
        process = subprocess.Popen(command, cwd=webui, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        try:
            return _measure(process, port)
        finally:
            process.terminate()
            process.communicate(timeout=60)


def _measure(process: subprocess.Popen, port: int) -> dict:
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"Startup time: ([\d.]+)s", line):
            processor = _processor_seconds(process.pid)
            return {"seconds": float(found[1]), "processor": processor, "records": _records(port)}
    raise RuntimeError(f"the WebUI did not start:\n{''.join(lines)[-3000:]}")


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _records(port: int) -> dict[str, float]:
    """What the host says that the parts of its start took, in seconds."""
    end = time.monotonic() + SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while time.monotonic() < end:
        try:
            with opener.open(f"http://127.0.0.1:{port}/internal/profile-startup", timeout=30) as reply:
                return json.load(reply)["records"]
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise RuntimeError("the WebUI does not answer")


def main() -> None:
    """Measures and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="starts with and without it that count (5)")
    parser.add_argument("--port", type=int, default=7990)
    arguments = parser.parse_args()
    found = find_webui()
    if found is None:
        parser.error("$WEBUI_DIR is not set: it has to name the folder of the WebUI v1.10.1")
    pairs = []
    for number in range(arguments.pairs + 1):
        order = (True, False) if number % 2 else (False, True)
        pair = {which: start(*found, arguments.port, which) for which in order}
        ours = {key: value for key, value in pair[True]["records"].items() if "lycoris" in key}
        told = {f"{what} {'with' if which else 'without'}": round(pair[which][what], 3) for which in pair for what in ("seconds", "processor")}
        line = {"pair": number, **told, "our script": ours, "load": os.getloadavg()[0]}
        print(json.dumps(line), file=sys.stderr, flush=True)
        if number:
            pairs.append(pair)
    result = {"pairs": len(pairs)}
    for what in ("seconds", "processor"):
        more = [pair[True][what] - pair[False][what] for pair in pairs]
        result[what] = {"without": statistics.median(pair[False][what] for pair in pairs), "more with it": statistics.median(more),
                        "least": min(more), "most": max(more)}
    names = sorted({key for pair in pairs for key in pair[True]["records"] if "lycoris" in key})
    result["our script"] = {name: statistics.median(pair[True]["records"].get(name, 0.0) for pair in pairs) for name in names}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
