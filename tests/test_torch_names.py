"""What runs in the WebUI calls nothing that torch 2.1.2 lacks (the version that the WebUI v1.10.1 installs), or has a fallback."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LIST = Path(__file__).parent / "data" / "torch_2_1_2.txt"
SOURCES = [path for folder in ("lib_lycoris", "scripts") for path in sorted((ROOT / folder).rglob("*.py")) if "studio" not in path.relative_to(ROOT).parts]

# Attributes of a Tensor or a Module of today that have everyday names: nothing can be told from them.
EVERYDAY = {"name", "index"}
# Methods that are only a Module's or an Optimizer's, so that their keywords can be checked without knowing the object.
TELLING = ("register_", "named_", "load_state_dict", "state_dict")


def read_list() -> dict[str, dict[str, set[str] | None]]:
    """{module or class: {name: its keywords, or None where they are not known}}."""
    found: dict[str, dict[str, set[str] | None]] = {}
    for line in LIST.read_text(encoding="utf-8").splitlines():
        module, *words = line.split()
        split = (word.partition("(") for word in words)
        found[module] = {name: set(rest[:-1].split(",")) if bracket else None for name, bracket, rest in split}
    return found


KNOWN = read_list()
NEWER_ATTRIBUTES = {
    name
    for kind, title in ((torch.Tensor, "torch.Tensor"), (torch.nn.Module, "torch.nn.Module"), (torch.optim.Optimizer, "torch.optim.Optimizer"))
    for name in dir(kind)
    if not name.startswith("_") and name not in KNOWN[title]
} - {name for title in ("torch.Tensor", "torch.nn.Module", "torch.optim.Optimizer") for name in KNOWN[title]}
NEWER_ATTRIBUTES -= EVERYDAY


class Reader(ast.NodeVisitor):
    """Collects the uses of torch that the list does not have. `hasattr(x, "name")` and `except AttributeError/ImportError` around a use are its fallback."""

    def __init__(self, tree: ast.AST) -> None:
        self.problems: list[str] = []
        self.aliases: dict[str, str] = {}
        self.guarded: list[set[str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                inside = [alias for alias in node.names if alias.name.split(".")[0] == "torch"]
                self.aliases.update({alias.asname or "torch": alias.name if alias.asname else "torch" for alias in inside})
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
                self.aliases.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        self.visit(tree)

    def dotted(self, node: ast.expr) -> str | None:
        """The full name of `nn.functional.relu`, if it starts at an import of torch."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        start = self.aliases.get(node.id) if isinstance(node, ast.Name) else None
        return ".".join([start, *reversed(parts)]) if start else None

    def report(self, node: ast.AST, name: str, words: str) -> None:
        if not any(name in names or "*" in names for names in self.guarded):
            self.problems.append(f"line {node.lineno}: {words}")

    def check(self, node: ast.AST, name: str) -> None:
        """Reports the first part of a full name that torch 2.1.2 lacks."""
        at = "torch"
        for part in name.split(".")[1:]:
            names = KNOWN.get(at)
            private = part.startswith("_") and at not in ("torch", "torch._utils")
            if names is None or private or part.startswith("__"):
                return
            if part not in names:
                return self.report(node, part, f"torch 2.1.2 has no {at}.{part}")
            at += f".{part}"

    @contextlib.contextmanager
    def guard(self, names: set[str]) -> Iterator[None]:
        self.guarded.append(names)
        yield
        self.guarded.pop()

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.split(".")[0] == "torch":
                self.check(node, alias.name)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if (node.module or "").split(".")[0] == "torch":
            for alias in node.names:
                self.check(node, f"{node.module}.{alias.name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self.dotted(node)
        if name:
            return self.check(node, name)
        if node.attr in NEWER_ATTRIBUTES:
            self.report(node, node.attr, f"a Tensor or Module of torch 2.1.2 has no .{node.attr}")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self.dotted(node.func)
        keywords = None
        if name:
            module, _, last = name.rpartition(".")
            keywords = KNOWN.get(module, {}).get(last)
        elif isinstance(node.func, ast.Attribute) and node.func.attr.startswith(TELLING):
            name = node.func.attr
            either = [KNOWN[title][name] for title in ("torch.nn.Module", "torch.optim.Optimizer") if KNOWN[title].get(name)]
            keywords = set().union(*either) if either else None
        if keywords is not None and "**" not in keywords:
            for keyword in node.keywords:
                if keyword.arg and keyword.arg not in keywords:
                    self.report(node, keyword.arg, f"{name} of torch 2.1.2 takes no {keyword.arg}=")
        self.generic_visit(node)

    def visit_If(self, node: ast.If | ast.IfExp) -> None:
        calls = (call for call in ast.walk(node.test) if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "hasattr")
        with self.guard({call.args[1].value for call in calls if isinstance(call.args[1], ast.Constant)}):
            self.generic_visit(node)

    visit_IfExp = visit_If

    def visit_Try(self, node: ast.Try) -> None:
        caught = {name.id for handler in node.handlers if handler.type for name in ast.walk(handler.type) if isinstance(name, ast.Name)}
        with self.guard({"*"} if caught & {"AttributeError", "ImportError", "ModuleNotFoundError"} else set()):
            for each in node.body:
                self.visit(each)
        for each in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(each)


def problems(source: str) -> list[str]:
    """What a source uses of torch that torch 2.1.2 lacks."""
    return Reader(ast.parse(source)).problems


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_that_runs_in_the_webui_uses_only_what_torch_2_1_2_has(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.library.custom_op('a::b')",
        "import torch as th\nth.amp.GradScaler('cuda')",
        "from torch.serialization import safe_globals",
        "import torch.nn.attention",
        "from torch import nn\nclass A(nn.RMSNorm): pass",
        "import torch.nn.functional as F\nF.scaled_dot_product_attention(q, k, v, enable_gqa=True)",
        "from torch.nn import functional\nfunctional.rms_norm(x, (3,))",
        "def f(x):\n    return x.module_load(y)",
        "import torch\nx = torch.zeros(3, dtype=torch.uint16)",
        "def f(module):\n    module.register_forward_hook(g, no_such_keyword=True)",
        "def f(module):\n    module.set_submodule('a', b)",
        "import torch\nif hasattr(torch, 'uint16'):\n    torch.compiler.no_such_name()",
        "import torch\ntry:\n    torch.uint16\nexcept ValueError:\n    pass",
    ],
)
def test_a_newer_name_or_keyword_is_found(source: str) -> None:
    assert len(problems(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nif hasattr(torch.library, 'custom_op'):\n    torch.library.custom_op('a::b')",
        "import torch\nx = torch.uint16 if hasattr(torch, 'uint16') else torch.int32",
        "try:\n    from torch.serialization import safe_globals\nexcept ImportError:\n    safe_globals = None",
        "import torch\ngetattr(torch, 'uint16', torch.int32)",
        "import torch\ntorch.float8_e4m3fn, torch.nn.Linear(1, 2, bias=False), torch.linalg.svd(x), torch.finfo(torch.float16).max",
        "import torch.nn.functional as F\nF.scaled_dot_product_attention(q, k, v, scale=1.0, is_causal=True)\nF.conv2d(x, w, stride=2, groups=3)",
        "def f(module):\n    module.register_forward_hook(g, always_call=True, with_kwargs=True)",
        "from torch.nn.modules.conv import _ConvNd",
    ],
)
def test_a_name_with_a_fallback_and_an_old_name_are_left_alone(source: str) -> None:
    assert problems(source) == []


def test_the_list_is_of_the_torch_that_the_webui_installs() -> None:
    assert len(KNOWN["torch"]) > 1500
    assert {"relu", "conv2d", "scaled_dot_product_attention"} <= set(KNOWN["torch.nn.functional"])
    assert "always_call" in KNOWN["torch.nn.Module"]["register_forward_hook"]
    assert {"rms_norm", "grouped_mm"}.isdisjoint(KNOWN["torch.nn.functional"])
