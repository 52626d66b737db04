"""A network as a picture: how much it changes each block, and how its change is spread over ranks."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from lib_lycoris.errors import ConfigError, LycoError, shown
from lib_lycoris.networks.layer import Layer
from lib_lycoris.tools.inspect import Report
from lib_lycoris.tools.names import Key, block_name, block_order
from lib_lycoris.tools.products import singular_values

OnStep = Callable[[int, int], None]


def checked_plot(path: str | os.PathLike[str]) -> Path:
    """`path` as a picture to write, matplotlib being there.

    Raises:
        ConfigError: it does not end in .png.
        LycoError: matplotlib is missing.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"--plot {shown(path)}: expected a name that ends in .png")
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        advice = "run 'python3 install.py studio' and use the Python in .venv, or leave --plot out"
        raise LycoError(f"the package matplotlib is missing, without which nothing is drawn: {advice}") from error
    return path


def block_spectra(layers: Mapping[Key, Layer], on_step: OnStep | None = None) -> dict[str, Tensor]:
    """{block: singular values [R], largest first}, each the root mean square of the n-th one over the block's layers; blocks that have none are left out."""
    squares: dict[str, list[Tensor]] = {}
    for place, (key, layer) in enumerate(layers.items(), start=1):
        values = singular_values(layer)
        if values is not None:
            squares.setdefault(block_name(key), []).append(values.double().square())
        if on_step is not None:
            on_step(place, len(layers))
    return {block: _mean(squares[block]).sqrt() for block in sorted(squares, key=block_order)}


def plot(report: Report, spectra: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Writes a PNG: norms by block as bars, and a line of singular values for each block.

    Raises:
        ConfigError, LycoError: as checked_plot, or the file can't be written.
    """
    path = checked_plot(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_plain(f"{report.path.name}: {report.kind}, {report.base_model or 'unknown base model'}, {report.layers} layers"))
    bars, lines = figure.subplots(1, 2)
    _draw_norms(bars, report.norms)
    _draw_spectra(lines, spectra)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise LycoError(f"{shown(path)} could not be written: {error.strerror or error}") from error


def _draw_norms(axes, norms: Mapping[str, float | None]) -> None:
    axes.bar(range(len(norms)), [norm or 0.0 for norm in norms.values()], color="tab:blue")
    axes.set_xticks(range(len(norms)), [block if norm is not None else f"{block} ?" for block, norm in norms.items()], rotation=90)
    axes.set(title="‖ΔW‖ by block" + (" (?: needs a checkpoint)" if None in norms.values() else ""), ylabel="Frobenius norm at strength 1")


def _draw_spectra(axes, spectra: Mapping[str, Tensor]) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    axes.set(title="singular values of ΔW by block (root mean square over layers)", xlabel="n-th largest", ylabel="σ", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    colours = colormaps["turbo"]
    for place, (block, values) in enumerate(spectra.items()):
        seen = values[values > values[:1] * 1e-6]
        axes.plot(range(1, len(seen) + 1), seen.tolist(), marker="." if len(seen) < 3 else None, label=block, color=colours(place / max(len(spectra) - 1, 1)))
    if spectra:
        axes.legend(ncols=2, fontsize="x-small", loc="upper left", bbox_to_anchor=(1.01, 1.0))


def _mean(squares: list[Tensor]) -> Tensor:
    """The mean over layers of unlike ranks; a rank that a layer has not counts as zero."""
    total = torch.zeros(max(len(each) for each in squares), dtype=torch.float64)
    for each in squares:
        total[: len(each)] += each
    return total / len(squares)


def _plain(text: str) -> str:
    # a dollar sign would start matplotlib's formulas
    return shown(text).replace("$", r"\$")
