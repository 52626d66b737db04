"""`library`: what is on disk, and everything that the page's Library tab does, from the command line."""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError, LycoError
from ..setting import Action, Setting
from .arguments import add_embeddings, add_networks, embedding_folders, network_folders
from .units import adapter_folders, add_adapters, sample_adapters

NAME = "library"
SUMMARY = "what is on disk: list, look, compare, rename, trash, …"
DESCRIPTION = """\
Does with the networks, embeddings and adapters in some folders what the page's Library tab does. A NAME is what the list calls a file. New files lie beside
the first one that is named; what is deleted goes to a folder .lyco-trash and can be restored."""
EXAMPLES = """\
examples:
  python -m lib_lycoris library list
  python -m lib_lycoris library show my-cat
  python -m lib_lycoris library list --shelf embeddings
  python -m lib_lycoris library compare my-cat my-dog
  python -m lib_lycoris library rename my-cat tabby
  python -m lib_lycoris library merge my-cat:0.8 my-dog:0.5 --out both
  python -m lib_lycoris library delete my-cat
  python -m lib_lycoris library trash
"""
_PLACES = ("name", "other", "new", "parts", "entry", "image")
"""Settings that stand on the command line by their place, in this order; the others are flags."""

_LOOKS = {"list": "What is on disk.", "show": "What is known of one file.", "trash": "What lies in the trash."}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an argument parser for each action, made from its record."""
    from ..tools.actions import ACTIONS, SHELVES

    kinds = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    for name, help_text in _LOOKS.items():
        one = kinds.add_parser(name, help=help_text)
        if name == "show":
            one.add_argument("name", metavar="NAME", help="a file, as the list calls it")
        if name != "trash":
            one.add_argument("--shelf", choices=SHELVES, default="networks", help="the list that it stands in" if name == "show" else "which list")
        _add_common(one)
    for action in ACTIONS:
        one = kinds.add_parser(action.name, help=_escaped(action.help), description=_escaped(action.help))
        for setting in sorted(action.settings, key=lambda each: _PLACES.index(each.name) if each.name in _PLACES else len(_PLACES)):
            _add_setting(one, setting)
        _add_common(one)


def run(arguments: argparse.Namespace) -> None:
    """Does it.

    Raises:
        LycoError: a bad value, or it can't be done.
    """
    from ..tools.actions import ACTIONS

    library = make_library(network_folders(arguments.networks), embedding_folders(arguments.embeddings), adapter_folders(arguments.adapters),
                           sample_adapters())
    action = next((each for each in ACTIONS if each.name == arguments.action), None)
    if action is None:
        given = {"list": lambda: library.rows(arguments.shelf), "trash": library.trash,
                 "show": lambda: library.describe(arguments.name, arguments.shelf)}[arguments.action]()
        print(json.dumps(given, ensure_ascii=False, indent=1) if arguments.json else _lines(arguments.action, given), flush=True)
        return
    done = _do(library, action, _values(action, arguments))
    print(json.dumps(done, ensure_ascii=False, indent=1) if arguments.json else _told(done), flush=True)


def make_library(folders: list[str], embeddings: Sequence[str] = (), adapters: Sequence[str] = (), samples: Mapping[str, Path] | None = None) -> Any:
    """The library of these folders of networks, and where folders are named of embeddings and of adapters; samples: adapters by name that are listed too."""
    from ..library.adapter_files import AdapterFiles
    from ..library.adapters import AdapterShelf
    from ..library.catalogue import Catalogue
    from ..library.embedding_shelf import EmbeddingShelf
    from ..library.shelf import Shelf
    from ..tools.library import Library

    paths, words, shelf = [Path(folder) for folder in folders], [Path(folder) for folder in embeddings], AdapterShelf(adapters, samples=samples)
    catalogue = Catalogue(paths)
    more: dict[str, Any] = {"embeddings": EmbeddingShelf(lambda: words)} if words else {}
    more |= {"adapters": AdapterFiles(lambda: shelf)} if shelf.folders else {}
    return Library({"networks": Shelf(lambda: catalogue, lambda: paths), **more})


def _add_common(parser: argparse.ArgumentParser) -> None:
    add_networks(parser)
    add_embeddings(parser)
    add_adapters(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_setting(parser: argparse.ArgumentParser, setting: Setting) -> None:
    about: dict[str, Any] = {"help": _escaped(setting.help)}
    if setting.choices:
        about["choices"] = setting.choices
    if setting.name in _PLACES:
        many = {"nargs": "+"} if setting.kind == "list of texts" else {"nargs": "?"} if setting.optional else {}
        parser.add_argument(setting.name, metavar=setting.name.upper(), **many, **about)
    else:
        metavar = {} if setting.choices else {"metavar": "N" if setting.kind in ("number", "whole number") else "TEXT"}
        parser.add_argument(f"--{setting.name.replace('_', '-')}", default=None, **metavar, **about)


def _values(action: Action, arguments: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for setting in action.settings:
        given = getattr(arguments, setting.name)
        if given is None:
            continue
        values[setting.name] = setting.parse(given) if setting.kind in ("number", "whole number") else given
    if "image" in values:
        try:
            values["image"] = base64.b64encode(Path(values["image"]).read_bytes()).decode("ascii")
        except OSError as error:
            raise ConfigError(f"{values['image']} can't be read: {error.strerror or error}") from error
    return values


def _do(library: Any, action: Action, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the action gives; of a long one, once it is done, with a bar.

    Raises:
        LycoError: it failed.
    """
    from .bar import layer_bar

    done = library.run(action.name, values)
    if not action.long:
        return done
    job = done["job"]["id"]
    with layer_bar(action.name, "part") as on_step:
        while True:
            state = library.jobs.wait(job, 0.1)
            if state["total"] and on_step is not None:
                on_step(state["done"], state["total"])
            if state["phase"] in ("done", "failed", "stopped"):
                break
    if state["phase"] != "done":
        raise LycoError(state["error"])
    return state["result"]


def _lines(action: str, given: Any) -> str:
    if action == "show":
        return "\n".join(f"{key}: {value}" for key, value in given.items() if value not in (None, "", {}, []))
    if not given:
        return "nothing"
    if action == "trash":
        return "\n".join(f"{each['entry']}  {each['name']}  {each['kind']}  {each['bytes'] / 1e6:.1f} MB  {', '.join(each['files'])}" for each in given)
    return "\n".join(_line(row) for row in given)


def _line(row: Mapping[str, Any]) -> str:
    """A file of any list."""
    kind, size = f"{row['kind'] or '?'} {row.get('rank') or row.get('vectors') or ''}", f"{row['bytes'] / 1e6:.1f} MB"
    problem = f"  can't be used: {row['problem']}" if row["problem"] else ""
    return f"{row['name']}  {kind}  {row['base_model'] or row.get('layout') or '?'}  {size}{problem}"


def _told(done: Mapping[str, Any]) -> str:
    """What came of an action, a line for each value."""
    plain = {key: value for key, value in done.items() if key not in ("spectra", "ranks", "alphas", "tags")}
    return "\n".join(f"{key}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}" for key, value in plain.items())


def _escaped(text: str) -> str:
    """A help text in which argparse finds no formats."""
    return text.replace("%", "%%")
