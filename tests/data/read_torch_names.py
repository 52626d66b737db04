"""Writes torch_2_1_2.txt: the names that a torch wheel offers, read out of its source files without importing it.

    pip download torch==2.1.2 --no-deps --only-binary=:all: --python-version 3.10 -d FOLDER
    python tests/data/read_torch_names.py FOLDER/torch-2.1.2-cp310-….whl > tests/data/torch_2_1_2.txt

One line a module or class: its name, then what it has; `name(a,b)` where the arguments are known, with `**` for any keyword.
"""

from __future__ import annotations

import ast
import sys
import zipfile

Signature = frozenset[str] | None  # the names that a call may use as keywords; None: not known

ROOMS = (
    *("amp", "autograd", "backends", "compiler", "cpu", "cuda", "distributed", "distributions", "fft", "func", "hub", "jit", "library", "linalg"),
    *("masked", "mps", "multiprocessing", "nested", "nn", "ops", "optim", "overrides", "package", "profiler", "random", "return_types"),
    *("serialization", "signal", "sparse", "special", "storage", "types", "utils", "version", "_utils"),
)
LEFT_OUT = (
    *("torch.distributed.", "torch.testing", "torch.nn.quantiz", "torch.nn.intrinsic", "torch.nn.qat", "torch.nn.backends", "torch.jit."),
    *("torch.utils.benchmark", "torch.utils.tensorboard", "torch.utils.bottleneck", "torch.utils.hipify"),
)
# Made in C++ and named in no stub; the WebUI v1.10.1 uses them with torch 2.1.2.
UNLISTED = ("float8_e4m3fn", "float8_e5m2", "chalf")
CLASSES = {
    "torch.Tensor": [("torch._C", "_TensorBase"), ("torch._tensor", "Tensor")],
    "torch.Generator": [("torch._C", "Generator")],
    "torch.device": [("torch._C", "device")],
    "torch.dtype": [("torch._C", "dtype")],
    "torch.nn.Module": [("torch.nn.modules.module", "Module")],
    "torch.optim.Optimizer": [("torch.optim.optimizer", "Optimizer")],
    "torch.autograd.Function": [("torch.autograd.function", "Function"), ("torch.autograd.function", "FunctionCtx")],
}


class Wheel:
    """The modules of a wheel, as syntax trees."""

    def __init__(self, path: str) -> None:
        with zipfile.ZipFile(path) as archive:
            self.files = {name: archive.read(name) for name in archive.namelist() if name.startswith("torch/") and name.endswith((".py", ".pyi"))}
        self.known: dict[str, dict[str, Signature]] = {}

    def trees(self, module: str) -> list[ast.Module]:
        """The source and the stub of a module, as far as there are any."""
        stem = module.replace(".", "/")
        found = (self.files.get(stem + end) for end in (".py", "/__init__.py", ".pyi", "/__init__.pyi"))
        return [ast.parse(text) for text in found if text is not None]

    def submodules(self, module: str) -> set[str]:
        """The names of the modules inside a package."""
        stem = module.replace(".", "/") + "/"
        inside = (name[len(stem) :] for name in self.files if name.startswith(stem))
        return {name.split("/")[0].partition(".")[0] for name in inside} - {"__init__", ""}

    def names(self, module: str) -> dict[str, Signature]:
        """What a module offers, with arguments where known. Modules import each other in circles: one that is being read answers with what it has so far."""
        if module in self.known:
            return self.known[module]
        found = self.known[module] = dict.fromkeys(self.submodules(module))
        for tree in self.trees(module):
            self._read(module, tree.body, found)
        if module == "torch":
            merge(found, dict.fromkeys(UNLISTED))
            for source in ("torch._C", "torch._C._VariableFunctions"):
                merge(found, {name: value for name, value in self.names(source).items() if not name.startswith("__")})
        return found

    def _read(self, module: str, body: list[ast.stmt], found: dict[str, Signature]) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                merge(found, {node.name: arguments(node)})
            elif isinstance(node, ast.ClassDef):
                merge(found, {node.name: initialiser(node)})
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for name in (leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)):
                    merge(found, {name: self._documented(node.value)})
                if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets) and isinstance(node.value, ast.List):
                    merge(found, {item.value: None for item in node.value.elts if isinstance(item, ast.Constant)})
            elif isinstance(node, ast.Import):
                merge(found, {alias.asname or alias.name.split(".")[0]: None for alias in node.names})
            elif isinstance(node, ast.ImportFrom):
                self._imported(module, node, found)
            for inner in ("body", "orelse", "finalbody"):
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                    self._read(module, getattr(node, inner, []), found)
            for handler in getattr(node, "handlers", []):
                self._read(module, handler.body, found)

    def _documented(self, value: ast.expr | None) -> Signature:
        """The arguments of `name = _add_docstr(torch.other, …)`: those of the other."""
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "_add_docstr" and isinstance(value.args[0], ast.Attribute):
            for source in ("torch._C._VariableFunctions", "torch._C._nn"):
                signature = self.names(source).get(value.args[0].attr)
                if signature:
                    return signature
        return None

    def _imported(self, module: str, node: ast.ImportFrom, found: dict[str, Signature]) -> None:
        package = module if f"{module.replace('.', '/')}/__init__.py" in self.files else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        source = ".".join(filter(None, (package if node.level else "", node.module)))
        inside = source == "torch._C" or source.startswith("torch.")
        for alias in node.names:
            if alias.name == "*":
                if source != "torch._C":
                    merge(found, {name: value for name, value in self.names(source).items() if not name.startswith("_")})
            else:
                known = self.names(source).get(alias.name) if inside and source != module else None
                merge(found, {alias.asname or alias.name: known})

    def members(self, module: str, name: str) -> dict[str, Signature]:
        """What a class offers, its own part only."""
        found: dict[str, Signature] = {}
        for tree in self.trees(module):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef) and node.name == name:
                    self._read(module, node.body, found)
                    merge(found, {leaf.attr: None for leaf in ast.walk(node) if isinstance(leaf, ast.Attribute) and ast.unparse(leaf.value) == "self"})
        return found


def merge(found: dict[str, Signature], more: dict[str, Signature]) -> None:
    """Adds names; of two known signatures (overloads, source and stub) the union."""
    for name, signature in more.items():
        known = found.get(name)
        found[name] = signature if known is None else known if signature is None else known | signature


def arguments(node: ast.FunctionDef) -> Signature:
    """The names that a call may use as keywords."""
    names = {arg.arg for arg in (*node.args.args, *node.args.kwonlyargs)} - {"self", "cls"}
    return frozenset(names | ({"**"} if node.args.kwarg else set()))


def initialiser(node: ast.ClassDef) -> Signature:
    """The keywords that make an object of a class, if it says so itself."""
    found: dict[str, Signature] = {}
    for each in node.body:
        if isinstance(each, ast.FunctionDef) and each.name in ("__init__", "__new__"):
            merge(found, {"made": arguments(each)})
    return found.get("made")


def modules(wheel: Wheel) -> list[str]:
    """The modules that are worth listing: public, and of the parts of torch that a model or a trainer touches."""
    stems = {name.rpartition(".")[0].removesuffix("/__init__").replace("/", ".") for name in wheel.files}
    chosen = (name for name in stems if name.split(".")[1:2] and name.split(".")[1] in ROOMS and not any(part.startswith("_") for part in name.split(".")[2:]))
    return ["torch", *sorted(name for name in chosen if not name.startswith(LEFT_OUT))]


def line(name: str, found: dict[str, Signature]) -> str:
    """One line of the list."""
    words = (each + ("" if signature is None else f"({','.join(sorted(signature))})") for each, signature in sorted(found.items()))
    return " ".join([name, *words])


def main(path: str) -> None:
    """Prints the list for the wheel at `path`."""
    wheel = Wheel(path)
    for module in modules(wheel):
        print(line(module, {name: value for name, value in wheel.names(module).items() if module in ("torch", "torch._utils") or not name.startswith("_")}))
    for name, parts in CLASSES.items():
        found: dict[str, Signature] = {}
        for part in parts:
            merge(found, wheel.members(*part))
        print(line(name, found))


if __name__ == "__main__":
    main(sys.argv[1])
