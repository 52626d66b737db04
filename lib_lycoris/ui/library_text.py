"""The library's HTML: what a file is, figures, work in the background. Whatever a file or a user named is put in as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from . import charts
from .library_list import base, day, megabytes, vectors

CSS = charts.CSS + """
table.lycoris-table { border-collapse: collapse; width: 100%; font-size: 0.9rem; margin: 0 0 0.6rem; border: 0; }
.lycoris-table tr { border: 0; border-bottom: 1px solid rgba(128, 128, 128, 0.25); }
.lycoris-table tr:last-child { border-bottom: 0; }
table.lycoris-table th, table.lycoris-table td { border: 0; text-align: left; vertical-align: top; padding: 0.2rem 0.9rem 0.2rem 0 !important; }
table.lycoris-table th { font-weight: 500; opacity: 0.75; white-space: nowrap; width: 1%; }
table.lycoris-table td { overflow-wrap: anywhere; white-space: pre-line; }
#lycoris_library_said:not(:has(p)), #lycoris_library_work:not(:has(p)), #lycoris_library_comparison:not(:has(p)) { display: none; }
#lycoris_library_work p { font-size: 0.9rem; }
#lycoris_library_refresh, #lycoris_library_stop { flex-grow: 0; min-width: 9rem; }
.lycoris-name { font-size: 1.15rem; font-weight: 600; margin: 0 0 0.3rem; overflow-wrap: anywhere; }
.lycoris-quiet { opacity: 0.75; font-size: 0.9rem; margin: 0.2rem 0; }
.lycoris-files .wrap { flex-direction: column; flex-wrap: nowrap; gap: 4px; max-height: 34rem; overflow-y: auto; }
.lycoris-files .wrap > label { width: 100%; align-items: flex-start; }
.lycoris-files .wrap > label > span { white-space: pre; overflow: hidden; text-overflow: ellipsis; font-size: 0.82rem; line-height: 1.35; }
#lycoris_library_picture img { width: 100%; height: 100%; object-fit: contain; }
#lycoris_library_shelf .wrap { gap: 0.3rem; }
#lycoris_library_shelf .wrap > label { padding: 0.3rem 0.45rem; }
#lycoris_library_count .html-container, #lycoris_library_said .html-container, #lycoris_library_work .html-container, #lycoris_library_about .html-container {
  padding: 0 0.3rem; }
.lycoris-files .wrap > label > span::first-line { font-weight: 600; font-size: 0.95rem; }
.lycoris-files .wrap > label > input { margin-top: 0.2rem; }
"""

_METADATA = {
    "ss_sd_model_name": "Trained on", "ss_num_train_images": "Pictures", "ss_resolution": "Resolution", "ss_steps": "Steps", "ss_num_epochs": "Epochs",
    "ss_learning_rate": "Learning rate", "ss_optimizer": "Optimiser", "ss_network_alpha": "Alpha", "ss_clip_skip": "Clip skip",
    "ss_training_comment": "Comment", "modelspec.author": "Author", "modelspec.license": "Licence",
    "modelspec.usage_hint": "How to use it", "lyco.recipe": "Made by",
}
_LONGEST = 600
_JOBS = 4
_PHASES = {"waiting": "waits", "running": "is under way", "done": "done", "failed": "failed", "stopped": "stopped"}
NOTHING_CHOSEN = '<p class="lycoris-quiet">Choose a file in the list to see what it is.</p>'


def describe(seen: Mapping[str, Any]) -> str:
    """HTML of what is known of a file without its tensors being read."""
    metadata = seen.get("metadata") or {}
    kind = (seen.get("kind") or "unknown") + (f", rank {seen['rank']}" if seen.get("rank") else "")
    rows = {
        "Can't be used": seen.get("problem"), "Kind": kind, "Base model": base(seen) or seen.get("base_model") or "not told",
        **_embedding(seen), **_adapter(seen),
        "Write into the prompt": None if seen.get("problem") else seen.get("tag"),
        "Trigger words": seen.get("trigger_phrase"), "Title": _unlike(seen.get("title"), seen["name"]),
        "Name from the training": _unlike(seen.get("alias"), seen["name"]), "Tags": seen.get("tags"), "Description": seen.get("description"),
        **{title: metadata.get(key) for key, title in _METADATA.items()},
        "File": seen.get("file"), "Size": f"{megabytes(seen.get('bytes') or 0)}, changed {day(seen.get('modified'))}", "Hash": (seen.get("hash") or "")[:12],
    }
    return f'<p class="lycoris-name" dir="auto">{escape(seen["name"])}</p>{table(rows)}'


def _embedding(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of an embedding alone."""
    if not seen.get("vectors"):
        return {}
    lengths = [f"{encoder}: {', '.join(f'{norm:.3g}' for norm in norms)}" for encoder, norms in (seen.get("norms") or {}).items()]
    return {"Vectors": vectors(seen), "Their lengths": "\n".join(lengths), "Trained steps": seen.get("step")}


def _adapter(seen: Mapping[str, Any]) -> dict[str, Any]:
    """What is told of an adapter alone."""
    if not seen.get("spelling"):
        return {}
    layout = {"sd": "Stable Diffusion 1 and 2", "sdxl": "SDXL"}.get(seen.get("layout") or "")
    spelling = {"tencent": "TencentARC's", "diffusers": "diffusers'"}.get(seen["spelling"], seen["spelling"])
    takes = {1: "1 channel (gray)", 3: "3 channels (RGB)"}.get(seen.get("in_channels") or 0)
    return {"Sizes of its maps": layout, "Picture it takes": takes, "Channels of its maps": ", ".join(map(str, seen.get("channels") or ())),
            "Preprocessor": seen.get("preprocessor"), "Made for maps of": f"{seen['resolution']} pixels" if seen.get("resolution") else None,
            "Task": seen.get("task"), "Spelling": spelling}


def table(rows: Mapping[str, Any]) -> str:
    """HTML of a table of titles and values; empty ones are left out."""
    told = [(title, value) for title, value in rows.items() if value not in (None, "", "None")]
    lines = [f"<tr><th scope='row'>{escape(title)}</th><td>{escape(_short(value))}</td></tr>" for title, value in told]
    return f'<table class="lycoris-table">{"".join(lines)}</table>'


def measured(figures: Mapping[str, Any] | None) -> str:
    """HTML of norms by block and of singular values; a sentence where nothing was measured."""
    if not figures:
        return '<p class="lycoris-quiet">Not measured yet. It reads the whole file, which takes some seconds.</p>'
    kinds = ", ".join(f"{count} {kind}" for kind, count in (figures.get("layers_by_kind") or {}).items())
    rows = {"Layers": f"{figures.get('layers')} ({kinds})", "Numbers": f"{figures.get('parameters') or 0:,}, {', '.join(figures.get('dtypes') or ())}",
            "Embeddings in it": ", ".join(figures.get("embeddings") or ()), "To know": "\n".join(figures.get("problems") or ())}
    return f"{table(rows)}{charts.norm_bars(figures.get('norms') or {})}{charts.spectrum_lines(figures.get('spectra') or {})}"


def compared(result: Mapping[str, Any] | None) -> str:
    """HTML of two networks beside each other."""
    if not result:
        return ""
    first, second = result["first"], result["second"]
    titles = {"kind": "Kind", "rank": "Rank", "base_model": "Base model", "layers": "Layers", "parameters": "Numbers", "bytes": "Bytes"}
    rows = [(title, first.get(key), second.get(key)) for key, title in titles.items()]
    rows += [(key, *pair) for key, pair in (result.get("training") or {}).items()]
    lines = [f"<tr><th scope='row'>{escape(title)}</th><td>{escape(_short(left))}</td><td>{escape(_short(right))}</td></tr>" for title, left, right in rows]
    names = [escape(_short(result[side])) for side in ("name", "other")]
    head = f"<tr><th></th><td class='lycoris-first'>{names[0]}</td><td class='lycoris-second'>{names[1]}</td></tr>"
    shared = f"{result['common']} layers in both, {result['only_first']} only in the first, {result['only_second']} only in the second."
    note = "Alike: 100 % where both change a block in the same direction, 0 % where they have nothing in common, below 0 where they work against each other."
    return (f'<table class="lycoris-table">{head}{"".join(lines)}</table><p class="lycoris-quiet">{escape(shared)} {escape(note)}</p>'
            f"{charts.compared_bars(first.get('norms') or {}, second.get('norms') or {}, result.get('alikeness') or {})}")


def jobs(states: Sequence[Mapping[str, Any]]) -> str:
    """HTML of the work that is not done yet, the newest first, and of the piece that ended last; nothing where there is none."""
    ended = [state for state in states if state["phase"] not in ("waiting", "running")]
    told = [state for state in states if state not in ended or state is ended[-1]]
    return "".join(_job(state) for state in list(reversed(told))[:_JOBS])


def _job(state: Mapping[str, Any]) -> str:
    phase = state["phase"]
    words = f"{state['title']}: {_PHASES.get(phase, phase)}"
    result = state.get("result") or {}
    if phase == "done" and "file" in result:
        words += f". {result['name']}, {megabytes(result['bytes'])}"
    notes = [str(note) for note in result.get("notes") or ()]
    if phase == "running" and state.get("total"):
        words += f", {state['done']} of {state['total']}"
    bar = (f'<progress aria-label="{escape(str(state["title"]))}" max="{int(state.get("total") or 1)}" value="{int(state.get("done") or 0)}"></progress>'
           if phase == "running" else "")
    error = f'<div role="alert"><p>{escape(state["error"])}</p></div>' if phase == "failed" and state.get("error") else ""
    return f"<p>{escape(' · '.join([words, *notes]))}</p>{bar}{error}"


def said(words: str) -> str:
    """HTML of what was done, which screen readers tell at once."""
    return f'<p role="status" class="lycoris-quiet">{escape(words)}</p>' if words else ""


def _short(value: Any) -> str:
    text = "–" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _unlike(text: Any, name: str) -> Any:
    return None if text == name else text
