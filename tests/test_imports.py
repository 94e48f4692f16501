"""The import rules of docs/architecture.md, read from the sources: one direction and no cycles."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Each top-level package, and the others that it may import.
MAY_IMPORT = {
    "encoders": set(),
    "mm_rwkv7": {"encoders"},
    "training": {"mm_rwkv7", "encoders"},
    "eval": {"mm_rwkv7", "encoders"},
    "app": {"mm_rwkv7", "encoders"},
}
OUTERMOST = {"app.cli", "app.__main__"}
LAYERS = ("mm_rwkv7.ops", "mm_rwkv7.rwkv7", "mm_rwkv7.model", "mm_rwkv7.pipeline")
BELOW_ENCODERS = LAYERS[:2]


@dataclass(frozen=True)
class Import:
    source: str
    target: str
    name: str  # what `from target import name` takes; empty for a module
    line: int
    at_load: bool  # False inside a function or under TYPE_CHECKING

    def __str__(self) -> str:
        return f"{self.source}:{self.line} imports {self.target}" + (f".{self.name}" if self.name else "")


def violations(root: Path) -> list[str]:
    sources = {_module_name(root, path): path for path in _sources(root)}
    trees = {module: ast.parse(path.read_text("utf-8"), str(path)) for module, path in sources.items()}
    packages = {module for module, path in sources.items() if path.name == "__init__.py"}
    imports = [found for module in trees for found in _imports(module, trees, packages)]
    python_kernels = [path.relative_to(root) for path in root.glob("kernels/**/*.py")]
    return [
        *(f"{path}: no Python file belongs here" for path in python_kernels),
        *_wrong_direction(imports),
        *_wrong_layer(imports),
        *_cycles(imports),
    ]


def _sources(root: Path) -> list[Path]:
    return sorted(path for package in MAY_IMPORT for path in (root / package).rglob("*.py"))


def _module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def _imports(module: str, trees: dict[str, ast.Module], packages: set[str]) -> Iterator[Import]:
    def visit(node: ast.AST, at_load: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, "", node.lineno, at_load)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = module.split(".") if module in packages else module.split(".")[:-1]
                base = ".".join([*home[: len(home) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                target, name = (whole, "") if whole in trees else (base, alias.name)
                yield Import(module, target, name, node.lineno, at_load)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (
                Import(module, argument.value, "", node.lineno, at_load)
                for argument in node.args[:1]
                if isinstance(argument, ast.Constant)
            )
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        deferred = is_function or _is_type_checking(node)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_load and not deferred)

    return visit(trees[module], True)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _wrong_direction(imports: list[Import]) -> list[str]:
    def top(module: str) -> str:
        return module.partition(".")[0]

    return [
        f"{i}: {top(i.source)} may import {sorted(MAY_IMPORT[top(i.source)]) or 'no other package'}"
        for i in imports
        if top(i.target) in MAY_IMPORT
        and i.source not in OUTERMOST
        and top(i.target) not in {top(i.source), *MAY_IMPORT[top(i.source)]}
    ]


def _wrong_layer(imports: list[Import]) -> list[str]:
    inner = [i for i in imports if _is_under(i.source, "mm_rwkv7") and i.source != "mm_rwkv7"]
    found = [
        f"{i}: inside mm_rwkv7 import from the module that defines it"
        for i in inner
        if i.target == "mm_rwkv7" and i.name != "__version__"
    ]
    found += [
        f"{i}: ops stands below the rest of mm_rwkv7"
        for i in inner
        if _is_under(i.source, LAYERS[0]) and _is_under(i.target, "mm_rwkv7") and not _is_under(i.target, LAYERS[0])
    ]
    for rank, layer in enumerate(LAYERS):
        above = [*LAYERS[rank + 1 :], *(["encoders"] if layer in BELOW_ENCODERS else [])]
        direct = [i for i in inner if _is_under(i.source, layer)]
        found += [
            f"{i}, which stands above {layer} (reached from {layer})"
            for i in [*direct, *_reached_at_load(layer, inner)]
            if any(_is_under(i.target, other) for other in above)
        ]
    return sorted(set(found))


def _reached_at_load(layer: str, imports: list[Import]) -> list[Import]:
    reached: list[Import] = []
    seen: set[str] = set()
    waiting = [i for i in imports if i.at_load and _is_under(i.source, layer)]
    while waiting:
        step = waiting.pop()
        reached.append(step)
        if step.target not in seen:
            seen.add(step.target)
            waiting += [i for i in imports if i.at_load and i.source == step.target]
    return reached


def _cycles(imports: list[Import]) -> list[str]:
    loads: dict[str, set[str]] = {}
    for i in imports:
        if i.at_load and i.target != i.source:
            loads.setdefault(i.source, set()).add(i.target)
    found: set[str] = set()
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            found.add("import cycle: " + " -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(loads.get(module, ())):
                visit(target, (*path, module))
            done.add(module)

    for module in sorted(loads):
        visit(module, ())
    return sorted(found)


def test_the_project_keeps_the_rules() -> None:
    assert violations(ROOT) == []


def _plant(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        if name.startswith(tuple(MAY_IMPORT)):
            (path.parent / "__init__.py").touch()


CLEAN = {
    "kernels/wkv7.cu": "",
    "encoders/tower.py": "import torch\n",
    "mm_rwkv7/__init__.py": "from typing import TYPE_CHECKING\n\n__version__ = '1'\nif TYPE_CHECKING:\n"
    "    from mm_rwkv7.pipeline import Pipeline\n",
    "mm_rwkv7/ops/reference.py": "LOWEST = -0.6\n",
    "mm_rwkv7/ops/__init__.py": "from mm_rwkv7.ops.reference import LOWEST\n",
    "mm_rwkv7/rwkv7.py": "from .ops import LOWEST\n\ndef load():\n    from mm_rwkv7 import checkpoint\n",
    "mm_rwkv7/checkpoint.py": "from mm_rwkv7 import __version__, rwkv7\n",
    "mm_rwkv7/model.py": "from encoders import tower\nfrom . import rwkv7\n",
    "mm_rwkv7/pipeline.py": "from .model import MMRWKV7\n",
    "training/loop.py": "from mm_rwkv7 import Pipeline\n",
    "app/cli.py": "import training.loop\n",
    "app/web/page.py": "import gradio\n",
}


def test_a_clean_tree_passes(tmp_path: Path) -> None:
    _plant(tmp_path, CLEAN)
    assert violations(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("encoders/sound.py", "from mm_rwkv7.ops import wkv7", "encoders may import no other package"),
        ("encoders/sound.py", "def f():\n    import mm_rwkv7", "encoders may import no other package"),
        ("mm_rwkv7/extra.py", "import training.loop", "mm_rwkv7 may import"),
        ("mm_rwkv7/extra.py", "def f():\n    importlib.import_module('app.web.page')", "mm_rwkv7 may import"),
        ("training/data.py", "from app import page", "training may import"),
        ("eval/run.py", "import training", "eval may import"),
        ("app/web/page.py", "from eval.run import run", "app may import"),
        ("mm_rwkv7/ops/fast.py", "from mm_rwkv7.config import Config", "ops stands below"),
        ("mm_rwkv7/ops/fast.py", "from ..config import Config", "ops stands below"),
        ("mm_rwkv7/rwkv7.py", "def f():\n    from mm_rwkv7.model import M", "stands above mm_rwkv7.rwkv7"),
        ("mm_rwkv7/rwkv7.py", "from encoders.tower import Tower", "stands above mm_rwkv7.rwkv7"),
        ("mm_rwkv7/model.py", "from mm_rwkv7.pipeline import Pipeline", "stands above mm_rwkv7.model"),
        ("mm_rwkv7/model.py", "from mm_rwkv7 import Pipeline", "import from the module that defines it"),
        ("mm_rwkv7/ops/reference.py", "import mm_rwkv7.ops", "import cycle"),
        ("kernels/build.py", "", "no Python file belongs here"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, text: str, expected: str) -> None:
    _plant(tmp_path, CLEAN | {file: text})
    found = violations(tmp_path)
    assert any(expected in line for line in found), found


def test_a_layer_reached_through_another_module_is_caught(tmp_path: Path) -> None:
    files = {"mm_rwkv7/model.py": "import mm_rwkv7.helper", "mm_rwkv7/helper.py": "import mm_rwkv7.pipeline"}
    _plant(tmp_path, CLEAN | {"mm_rwkv7/pipeline.py": ""} | files)
    assert any("reached from mm_rwkv7.model" in line for line in violations(tmp_path))
