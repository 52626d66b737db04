"""`inspect`: what a network file is."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import ConfigError, shown

NAME = "inspect"
SUMMARY = "say what a network file is"
DESCRIPTION = """\
Says what a network file is: its kind, base model, ranks, how much it changes each block, the words that call it, how it was trained, and what is wrong with it.
FILE may be a PEFT folder too, or an embedding (textual inversion), of which the vectors and their lengths are told."""
EXAMPLES = """\
examples:
  python -m lib_lycoris inspect my-cat.safetensors
  python -m lib_lycoris inspect my-cat.safetensors --plot my-cat.png
  python -m lib_lycoris inspect my-cat.safetensors --json
"""
_BAR = 30
_NAMES = {"sd_v1": "Stable Diffusion 1.x", "sd_v2": "Stable Diffusion 2.x", "sdxl_base_v1-0": "SDXL"}
_MOST_TAGS = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    parser.add_argument("file", metavar="FILE", help="a network or T2I-Adapter: .safetensors, .pt, .ckpt, .bin, or a PEFT folder; or an embedding")
    parser.add_argument("--json", action="store_true", help="print one JSON object: kind, algorithms, base_model, layers, ranks, norms, metadata, …")
    parser.add_argument("--plot", metavar="FILE.png", help="draw norms by block and singular values; needs the package matplotlib")


def run(arguments: argparse.Namespace) -> None:
    """Inspects and prints."""
    from ..tools.adapters import inspect_adapter
    from ..tools.embedding_report import holds_embedding
    from ..tools.inspect import report_on
    from ..tools.plot import block_spectra, checked_plot, plot
    from ..tools.source import layers_by_target, open_source
    from .bar import layer_bar

    if holds_embedding(arguments.file):
        _tell_of_embedding(arguments)
        return
    picture = None if arguments.plot is None else checked_plot(arguments.plot)
    adapter = inspect_adapter(arguments.file)
    if adapter is not None:
        if picture is not None:
            raise ConfigError("--plot draws networks; a T2I-Adapter has nothing to draw: leave it out")
        print(json.dumps(adapter, ensure_ascii=False) if arguments.json else "\n".join(render_adapter(adapter)), flush=True)
        return
    network = open_source(arguments.file)
    with layer_bar("reading") as on_step:
        report = report_on(network, on_step)
    if picture is not None:
        with layer_bar("singular values") as on_step:
            plot(report, block_spectra(layers_by_target(network), on_step), picture)
    if arguments.json:
        print(json.dumps(report.as_json(), ensure_ascii=False), flush=True)
    else:
        print("\n".join(render(report, min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120))), flush=True)


def _tell_of_embedding(arguments: argparse.Namespace) -> None:
    """Prints the report on a textual inversion.

    Raises:
        ConfigError: a plot is asked for, which it has nothing for.
        NetworkFileError: it can't be used.
    """
    from ..tools.embedding_report import inspect_embedding

    if arguments.plot is not None:
        raise ConfigError(f"--plot {shown(arguments.plot)}: an embedding has no layers to draw; leave it out")
    found = inspect_embedding(arguments.file).as_json()
    print(json.dumps(found, ensure_ascii=False) if arguments.json else "\n".join(render_embedding(found)), flush=True)


def render_embedding(found: dict[str, Any], width: int = 100) -> list[str]:
    """The report on a textual inversion as lines for a person."""
    vectors = ", ".join(f"{count} of width {wide} for {encoder}" for encoder, (count, wide) in found["vectors"].items())
    rows = [("kind", "embedding (textual inversion)"), ("base model", _NAMES[found["base_model"]]), ("vectors", vectors),
            ("steps", "" if found["step"] is None else str(found["step"])), ("word in a prompt", found["word"]),
            ("called in the file", "" if found["name"] == found["word"] else found["name"])]
    rows += [(f"lengths for {encoder}", ", ".join(f"{norm:.3g}" for norm in norms)) for encoder, norms in found["norms"].items()]
    lines = [shown(Path(found["file"]).name), "", *(line for title, text in rows for line in _row(title, text, width))]
    told = [line for key, text in found["metadata"].items() for line in _row(f"  {shown(key, 24)}", text, width)]
    return [*lines, *(["", "metadata", *told] if told else [])]


def render(report: Any, width: int = 100) -> list[str]:
    """The report as lines for a person, none much longer than `width`. Text of the file is made fit for a terminal."""
    lines = [shown(report.path.name), ""]
    rows = [
        ("kind", _kinds(report)),
        ("base model", _NAMES.get(report.base_model, "unknown: neither metadata nor layers tell")),
        ("layers", ", ".join(f"{count} {component}" for component, count in report.components.items())),
        ("rank", _spread(report.ranks.values())),
        ("alpha", "the rank of each layer" if report.alphas == report.ranks else _spread(report.alphas.values())),
        ("size", f"{report.parameters:,} parameters, {report.nbytes / 1e6:.1f} MB, {', '.join(report.dtypes)}"),
        ("trigger words", ", ".join(report.trigger_words) or "none are named"),
        ("embeddings in it", ", ".join(report.embeddings)),
        ("tags", ", ".join(f"{tag} ({count})" for tag, count in list(report.tags.items())[:_MOST_TAGS])),
    ]
    for title, text in rows:
        lines += _row(title, text, width)
    if report.training:
        lines += ["", "training"]
        for title, text in report.training.items():
            lines += _row(f"  {title}", text, width)
    lines += ["", "how much each block changes (‖ΔW‖ at strength 1)", *_bars(report.norms)]
    if report.problems:
        lines += ["", "problems", *(line for problem in report.problems for line in _row("  !", problem, width, 4))]
    return lines


def render_adapter(report: dict[str, Any]) -> list[str]:
    """The report on a T2I-Adapter as lines for a person."""
    base = _NAMES.get(report["base_model"] or "") or {"sd": "Stable Diffusion 1.x or 2.x (neither tensors nor metadata tell which)"}.get(report["layout"])
    rows = [
        ("kind", f"{report['kind']} T2I-Adapter, {report['spelling']}'s spelling".replace("tencent's", "TencentARC's")),
        ("base model", base or "unknown"),
        ("pictures", f"{'gray' if report['in_channels'] == 1 else 'RGB'}, {report['downscale']} pixels a cell" if report["in_channels"] else ""),
        ("maps", f"{', '.join(map(str, report['channels']))} channels" if report["channels"] else f"{report['tokens']} words of width {report['context']}"),
        ("preprocessor", report["preprocessor"] or report["task"] or "not named"),
        ("resolution", f"{report['resolution']} pixels" if report["resolution"] else ""),
        ("size", f"{report['parameters']:,} parameters, {report['bytes'] / 1e6:.1f} MB, {', '.join(report['dtypes'])}"),
    ]
    return [shown(report["file"].replace("\\", "/").rpartition("/")[2]), "", *(line for title, text in rows for line in _row(title, text, 100))]


def _kinds(report: Any) -> str:
    if len(report.layer_kinds) == 1:
        return report.kind
    return f"{report.kind} ({', '.join(f'{count} {kind}' for kind, count in report.layer_kinds.items())})"


def _spread(values: Any) -> str:
    """"16", or "4 (12 layers), 8 (3 layers)", or a range where there are many."""
    counts: dict[float, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if not counts:
        return "none"
    if len(counts) == 1:
        return f"{next(iter(counts)):g}"
    if len(counts) > 6:
        return f"{min(counts):g} to {max(counts):g}, mean {sum(value * count for value, count in counts.items()) / sum(counts.values()):.1f}"
    return ", ".join(f"{value:g} ({count} layers)" for value, count in sorted(counts.items()))


def _row(title: str, text: str, width: int, indent: int = 28) -> list[str]:
    """A titled text, broken at words; nothing for an empty text."""
    import textwrap

    text = shown(" ".join(text.split()), 1500)
    return textwrap.wrap(text, width, initial_indent=f"{title:<{indent}}", subsequent_indent=" " * indent) if text else []


def _bars(norms: dict[str, float | None]) -> list[str]:
    longest = max((norm for norm in norms.values() if norm), default=1.0)
    drawn = {block: "needs a checkpoint" if norm is None else f"{norm:>10.4g}  {'█' * round(_BAR * norm / longest)}".rstrip() for block, norm in norms.items()}
    return [f"  {block:<6}{bar}" for block, bar in drawn.items()]
