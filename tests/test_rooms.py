"""The house rules of docs/architecture.md that can be read out of the source: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "lib_lycoris"
FILES = [*sorted(LIBRARY.rglob("*.py")), *sorted((ROOT / "scripts").glob("*.py"))]
ANYTHING = "*"

# Packages that belong to one room; the rooms that join others (scripts/, cli) may use them too.
OWNERS = {
    "gradio": {"ui"},
    "fastapi": {"api"},
    "starlette": {"api"},
    "uvicorn": set(),
    "diffusers": {"studio"},
    "transformers": {"studio"},
    "accelerate": {"studio"},
    "modules": {"webui"},
    "ldm": {"webui"},
    "sgm": {"webui"},
}
# Rooms that are pure mathematics or pure text: what they may import beside the standard library.
PURE = {
    "errors": set(), "setting": set(), "prompt": set(), "generation": {"torch"}, "functional": {"torch"}, "networks": {"torch"}, "patching": {"torch"},
    "library": {"torch"},
}


def read_table(text: str) -> dict[str, set[str]]:
    """{room: the rooms that it may import}, from the table in docs/architecture.md; `*` for those that join others."""
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|$", text, flags=re.MULTILINE)
    table: dict[str, set[str]] = {}
    for left, right in rows:
        allowed = right.partition(";")[0]
        if allowed.startswith("join"):
            names = {ANYTHING}
        elif allowed.startswith("all above"):
            names = set(table) - set(re.findall(r"but ([a-z]+)", allowed))
        else:
            names = set(re.findall(r"[a-z_]+(?:\.[a-z_]+)?", allowed))
        table.update({room.strip("/"): names for room in re.findall(r"`([\w/]+)`", left)})
    return table


TABLE = read_table((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))


def room_of(module: str) -> str:
    """The room of `lib_lycoris.training.loop`: "training"; of the package itself: ""."""
    return (module.split(".") + [""])[1]


def module_name(path: Path) -> str:
    """lib_lycoris/training/loop.py as "lib_lycoris.training.loop", scripts/lycoris.py as "lib_lycoris.scripts.lycoris" (so that scripts is a room too)."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "lib_lycoris" else ("lib_lycoris", *parts))


def imports(source: str, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, full name) of everything that a source imports, at the top or inside a function; relative names resolved; what only type checkers see too."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            found += [(node.lineno, ".".join([*package, *filter(None, [node.module]), alias.name])) for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module", "__import__"):
            found += [(node.lineno, node.args[0].value)] if isinstance(node.args[0], ast.Constant) else []
    return found


def broken_rules(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of a source that the table forbids."""
    room = room_of(module)
    allowed = TABLE[room]
    problems = []
    for line, name in imports(source, module, is_package):
        top = name.split(".")[0]
        if top == "lib_lycoris":
            other = room_of(name)
            parts = tuple(f"lib_lycoris.{part}" for part in allowed if "." in part)
            fits = other in ("", room) or ANYTHING in allowed or other in allowed or name.startswith(parts)
        elif top in OWNERS:
            fits = ANYTHING in allowed or room in OWNERS[top]
        else:
            fits = room not in PURE or top in PURE[room] or top in sys.stdlib_module_names
        if not fits:
            problems.append(f"line {line}: {room} imports {name}")
    return problems


BUSY = {
    *("open", "print", "exec", "eval", "input", "run", "Popen", "connect", "start"),
    *("read_text", "read_bytes", "write_text", "iterdir", "glob", "rglob", "mkdir", "exists", "is_file", "is_dir", "listdir"),
}
DEFINITIONS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)
NOT_ON_IMPORT = ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")


def is_quiet(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module only defines names."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in NOT_ON_IMPORT or all(is_quiet(each) for each in (*node.body, *node.orelse))
    if isinstance(node, ast.Try):
        return all(is_quiet(each) for part in (node, *node.handlers) for each in part.body)
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        calls = (call.func for call in ast.walk(node) if isinstance(call, ast.Call))
        return BUSY.isdisjoint(ast.unparse(call).rpartition(".")[2] for call in calls)
    return isinstance(node, DEFINITIONS) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def work_on_import(source: str) -> list[str]:
    """What a module does when it is imported, beyond defining names, as far as its text tells."""
    return [f"line {node.lineno}: {ast.unparse(node).splitlines()[0]}" for node in ast.parse(source).body if not is_quiet(node)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_room_imports_only_what_the_table_allows(path: Path) -> None:
    module = module_name(path)
    if module != "lib_lycoris.__init__":  # the public interface: it names the rooms' functions, and resolves them when first used
        assert broken_rules(path.read_text(encoding="utf-8"), module.removesuffix(".__init__"), path.name == "__init__.py") == []


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_is_written_in_the_grammar_of_python_3_10(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "scripts"], ids=name)
def test_a_module_only_defines_names_when_it_is_imported(path: Path) -> None:
    assert work_on_import(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py" and path.parent != LIBRARY], ids=name)
def test_a_package_below_the_top_is_an_empty_file(path: Path) -> None:
    assert path.read_text(encoding="utf-8").strip() == ""


def test_the_table_has_every_room_and_no_other() -> None:
    rooms = {room_of(module_name(path).removesuffix(".__init__")) for path in FILES} - {""}
    assert rooms <= set(TABLE)
    assert TABLE["functional"] == {"errors"} and "studio" not in TABLE["webui"] and "training" in TABLE["studio"] and "training.config" in TABLE["ui"]


def run_quietly(code: str) -> str:
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_library_brings_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'gradio', 'diffusers', 'transformers', 'fastapi', 'PIL', 'safetensors', 'tqdm'}"
    assert run_quietly(f"import sys, lib_lycoris, lib_lycoris.__main__; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_importing_every_room_that_needs_no_face_prints_starts_and_writes_nothing() -> None:
    modules = [module_name(path) for path in FILES if room_of(module_name(path)) in (*PURE, "files", "training") and path.name != "__init__.py"]
    code = f"""
import importlib, sys, torch, PIL.Image, numpy, tqdm
did = []
def watch(event, arguments):
    if event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.mkdir", "socket.connect", "_thread.start_new_thread"):
        did.append((event, str(arguments[0])))
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+") and "__pycache__" not in str(arguments[0]):
        did.append((event, str(arguments[0])))
sys.addaudithook(watch)
for module in {modules!r}:
    importlib.import_module(module)
print(did)
"""
    assert run_quietly(code) == "[]"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lib_lycoris.functional.a", "import lib_lycoris.networks.kinds"),
        ("lib_lycoris.functional.a", "from ..files import safetensors"),
        ("lib_lycoris.prompt.a", "import torch"),
        ("lib_lycoris.networks.a", "def f():\n    from ..library.load import open_network"),
        ("lib_lycoris.networks.a", "from .. import library"),
        ("lib_lycoris.webui.a", "import gradio as gr"),
        ("lib_lycoris.webui.a", "from lib_lycoris.studio.checkpoint import load_checkpoint"),
        ("lib_lycoris.studio.a", "from modules import shared"),
        ("lib_lycoris.training.a", "import diffusers"),
        ("lib_lycoris.ui.a", "from lib_lycoris.training.loop import train"),
        ("lib_lycoris.api.a", "import importlib\nimportlib.import_module('lib_lycoris.studio.generate')"),
        ("lib_lycoris.generation", "from .networks import kinds"),
    ],
)
def test_an_import_that_breaks_the_table_is_found(module: str, source: str) -> None:
    assert len(broken_rules(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("lib_lycoris.functional.a", "import torch\nfrom ..errors import ConfigError\nfrom .b import c"),
        ("lib_lycoris.ui.a", "import gradio\nfrom lib_lycoris.training.config import TrainConfig\nfrom ..training import config"),
        ("lib_lycoris.studio.world.a", "from ...training.loop import train\nfrom . import scenes\nimport diffusers"),
        ("lib_lycoris.scripts.a", "import gradio\nfrom modules import shared\nfrom lib_lycoris.webui import host"),
        ("lib_lycoris.cli.a", "import gradio, fastapi\nfrom ..studio import generate"),
    ],
)
def test_an_import_that_the_table_allows_is_left_alone(module: str, source: str) -> None:
    assert broken_rules(source, module) == []


@pytest.mark.parametrize(
    "source",
    ["print(1)", "for x in y:\n    pass", "A = open('b').read()", "B = sorted(Path('.').glob('*'))", "with a:\n    b = 1", "register(f)", "if a:\n    b()"],
)
def test_work_on_import_is_found(source: str) -> None:
    assert len(work_on_import(source)) == 1
