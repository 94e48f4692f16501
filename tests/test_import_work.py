"""Nothing happens at import: no module computes, reads the environment or loads what it may not need."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("app", "encoders", "eval", "mm_rwkv7", "training")

HEAVY = {"torch", "gradio", "fastapi", "transformers", "timm", "matplotlib"}
HARMLESS = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.Pass)
GUARDS = {"TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'"}
PURE_CALLS = {
    *(
        "bool",
        "dict",
        "enumerate",
        "float",
        "frozenset",
        "int",
        "len",
        "list",
        "max",
        "min",
        "range",
        "round",
    ),
    *("set", "sorted", "str", "sum", "tuple", "zip", "math.exp", "math.log", "math.sqrt", "re.compile"),
    *("ContextVar", "MappingProxyType", "NewType", "ParamSpec", "Path", "TypeVar", "cast", "field"),
    *("logging.getLogger", "threading.Lock", "typer.Argument", "typer.Option", "typer.Typer"),
}
PURE_METHODS = {"encode", "format", "items", "join", "keys", "lower", "resolve", "split", "upper", "values"}


def work_at_import(sources: dict[str, str]) -> list[str]:
    trees = {name: ast.parse(text, name) for name, text in sources.items()}
    values = _value_classes(list(trees.values()))
    return [f"{name}:{line} {what}" for name, tree in trees.items() for line, what in _work(tree, values)]


def _value_classes(trees: list[ast.Module]) -> set[str]:
    """Dataclasses, named tuples and enums of the project: making one at import is a constant."""
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and (
            any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)
            or any(ast.unparse(base).endswith(("NamedTuple", "Enum")) for base in node.bases)
        )
    }


def _work(scope: ast.Module | ast.ClassDef, values: set[str]) -> Iterator[tuple[int, str]]:
    for node in scope.body:
        if isinstance(node, ast.ClassDef):
            yield from _work(node, values)
        elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            if node.value is not None:
                yield from _work_in_value(node.value, values)
        elif isinstance(node, ast.If):
            if ast.unparse(node.test) not in GUARDS:
                yield node.lineno, f"decides at import: if {ast.unparse(node.test)}"
        elif isinstance(node, ast.Expr):
            if not isinstance(node.value, ast.Constant):
                yield node.lineno, f"does work at import: {ast.unparse(node)}"
        elif not isinstance(node, HARMLESS):
            yield node.lineno, f"does work at import: {type(node).__name__.lower()} statement"


def _work_in_value(node: ast.AST, values: set[str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Lambda):
        return
    if isinstance(node, ast.Attribute) and node.attr == "environ":
        yield node.lineno, "reads the environment at import"
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        pure_method = isinstance(node.func, ast.Attribute) and node.func.attr in PURE_METHODS
        if not (name in PURE_CALLS or name in values or pure_method):
            yield node.lineno, f"calls {name} at import"
    for child in ast.iter_child_nodes(node):
        yield from _work_in_value(child, values)


def test_the_project_does_no_work_at_import() -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert paths
    assert work_at_import({str(path.relative_to(ROOT)): path.read_text("utf-8") for path in paths}) == []


@pytest.mark.parametrize(
    "text",
    [
        "import math\nLOWEST = -math.exp(-0.5)",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        "cli = typer.Typer()\nif __name__ == '__main__':\n    cli()",
        "@dataclass(frozen=True)\nclass Look:\n    size: int = 1\nLOOK = Look(size=2)",
        "HERE = Path(__file__).resolve().parent",
        "NAMES = {name: load for name in ('a', 'b')}\nlater = lambda: load()",
        "def f():\n    torch.set_num_threads(1)",
    ],
)
def test_constants_and_definitions_pass(text: str) -> None:
    assert work_at_import({"module.py": text}) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("torch.set_num_threads(1)", "does work at import: torch.set_num_threads(1)"),
        ("DEVICE = torch.device('cpu')", "calls torch.device at import"),
        ("class A:\n    table = load('x')", "calls load at import"),
        ("HOME = os.environ['HOME']", "reads the environment at import"),
        ("try:\n    import x\nexcept ImportError:\n    x = None", "does work at import: try statement"),
        ("for i in range(3):\n    pass", "does work at import: for statement"),
        ("if cuda:\n    x = 1", "decides at import: if cuda"),
    ],
)
def test_planted_work_is_caught(text: str, expected: str) -> None:
    found = work_at_import({"module.py": text})
    assert len(found) == 1
    assert found[0].endswith(expected)


@pytest.mark.parametrize("module", ["mm_rwkv7", "encoders", "training", "eval.__main__", "app", "app.cli"])
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({HEAVY} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("program", "arguments", "code"),
    [
        ("app.cli", ["serve", "--host", "0.0.0.0"], 2),
        ("app.cli", ["serve", "--fetch-from", "x"], 2),
        ("app.cli", ["serve", "--model", "nowhere"], 2),
        ("app.cli", ["app", "--host", "0.0.0.0"], 2),
        ("app.cli", ["app", "--model", "nowhere"], 2),
        ("app.cli", ["ask", "--model", "nowhere", "What?"], 2),
        ("app.cli", ["ask", "--temperature", "-1", "What?"], 2),
        ("app.cli", ["inspect", "nowhere"], 2),
        ("app.cli", ["convert", "nowhere", "out"], 2),
        ("mm_rwkv7.bench.__main__", [], 2),
        ("mm_rwkv7.bench.__main__", ["nothing"], 2),
        ("mm_rwkv7.bench.__main__", ["--help"], 0),
        ("app.cli", ["serve", "--help"], 0),
    ],
)
def test_help_and_refusals_load_nothing_heavy(program: str, arguments: list[str], code: int) -> None:
    text = f"""
import sys
from {program} import main
try:
    code = main({arguments})
except SystemExit as ended:
    code = ended.code
print(code, *sorted({HEAVY} & sys.modules.keys()), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].split() == [str(code)], done.stderr


def test_public_names_load_and_unknown_ones_are_refused() -> None:
    import mm_rwkv7

    assert all(getattr(mm_rwkv7, name) for name in mm_rwkv7.__all__)
    assert set(mm_rwkv7.__all__) <= set(dir(mm_rwkv7))
    with pytest.raises(AttributeError, match="no attribute 'Mamba'"):
        _ = mm_rwkv7.Mamba
