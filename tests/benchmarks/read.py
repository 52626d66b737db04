"""How long opening a network file takes, as multiples of the least that touching every byte of it once can take; `--help` says how to run it.

The floor is the faster of two ways to add up all bytes: over the mapped file, and through a small buffer that is read into again and again. The file
lies in the system's cache. All are measured in turns within one run; a ratio is the median over the turns of (this / floor in the same turn).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib_lycoris.files.safetensors import read_header, read_tensors, write_tensors
from lib_lycoris.library.load import open_network, read_network

# Widths in and out of a LoRA on the linear layers of Stable Diffusion 1.5's UNet and text encoder.
SIZES = [(320, 320)] * 60 + [(640, 640)] * 60 + [(1280, 1280)] * 72 + [(768, 768)] * 72


def make_file(path: Path, rank: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for number, (rows, columns) in enumerate(SIZES):
        name = f"lora_unet_layer_{number}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(rank, columns, generator=draw).to(dtype)
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, rank, generator=draw).to(dtype)
        tensors[f"{name}.alpha"] = torch.tensor(float(rank)).to(dtype)
    write_tensors(path, tensors, {"ss_network_dim": str(rank)})


def add_mapped(path: Path) -> int:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        values = np.frombuffer(data, np.int64, len(data) // 8)
        total = int(values.sum())
        del values
        return total


def add_read(path: Path) -> int:
    buffer, total = bytearray(1 << 20), 0
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            total += int(np.frombuffer(buffer, np.int64, count // 8).sum())
    return total


def safetensors_own(path: Path) -> object:
    from safetensors.torch import load_file

    return {name: torch.isfinite(tensor.sum(dtype=torch.float32)) for name, tensor in load_file(path).items()}


WAYS: dict[str, Callable[[Path], object]] = {
    "floor, mapped": add_mapped,
    "floor, small buffer": add_read,
    "read() into one bytes": lambda path: path.read_bytes(),
    "safetensors' load_file, sums": safetensors_own,
    "header": read_header,
    "read_tensors, mapped, checked": lambda path: read_tensors(path, check=True, mapped=True),
    "read_tensors, copied, checked": lambda path: read_tensors(path, check=True),
    "open_network": open_network,
    "read_network (the cache's)": read_network,
    "open_network, all layers built": lambda path: list(open_network(path).layers.values()),
}


def measure(path: Path, rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(rounds + 1):
        for name, way in WAYS.items():
            begin = time.perf_counter()
            held = way(path)
            spent = time.perf_counter() - begin
            del held  # giving the memory back is not part of it
            if number:
                seconds[name].append(spent)
    return seconds


def report(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    floors = [min(turn) for turn in zip(seconds["floor, mapped"], seconds["floor, small buffer"], strict=True)]
    return {
        name: {"ms": statistics.median(each) * 1e3, "ratio": statistics.median(one / floor for one, floor in zip(each, floors, strict=True))}
        for name, each in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=94, help="of the file that is made: 94 in float32, 188 in float16 take 149 MB")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.safetensors")
        make_file(path, arguments.rank, getattr(torch, arguments.dtype))
        result = report(measure(path, arguments.rounds))
        if arguments.json:
            print(json.dumps({"bytes": os.path.getsize(path), "dtype": arguments.dtype, "ways": result}))
            return
        print(f"{os.path.getsize(path) / 1e6:.0f} MB, {arguments.dtype}, median of {arguments.rounds} turns")
        for name, numbers in result.items():
            print(f"  {name:32s} {numbers['ms']:8.1f} ms  {numbers['ratio']:6.2f} x the floor")


if __name__ == "__main__":
    main()
