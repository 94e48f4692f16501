"""What setuptools ships: the package list is the folders, and kernels/ travels inside mm_rwkv7 as data."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
TOP_LEVEL = {"app", "encoders", "eval", "mm_rwkv7", "training"}


def test_package_list_is_the_folders() -> None:
    on_disk = {
        ".".join(init.parent.relative_to(ROOT).parts)
        for name in TOP_LEVEL
        for init in (ROOT / name).rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == on_disk | {"mm_rwkv7.kernels"}


def test_no_top_level_package_named_kernels() -> None:
    tops = {name.partition(".")[0] for name in SETUPTOOLS["packages"]}
    assert tops <= TOP_LEVEL


def test_every_module_lies_in_a_package() -> None:
    modules = [path for name in TOP_LEVEL for path in (ROOT / name).rglob("*.py")]
    homeless = [path for path in modules if not (path.parent / "__init__.py").is_file()]
    assert modules
    assert not homeless


def test_version_is_said_twice_alike() -> None:
    import mm_rwkv7

    assert mm_rwkv7.__version__ == PYPROJECT["project"]["version"]


def test_lock_holds_pins_only() -> None:
    pin = re.compile(r"[a-z0-9-]+==[\w.+!]+( ; [\w\s.'()<>=!]+)?")
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    assert [line for line in lines if not pin.fullmatch(line)] == []


def test_lock_meets_every_declared_range() -> None:
    pins: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text("utf-8").splitlines():
        name, version = line.partition(" ; ")[0].split("==")
        pins.setdefault(name, set()).add(version)
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    declared = [*project["dependencies"], *extras["train"], *extras["dev"]]
    for requirement in map(Requirement, declared):
        assert pins.get(requirement.name), f"{requirement.name} is not in requirements.lock: renew it"
        for version in pins[requirement.name]:
            assert requirement.specifier.contains(version), f"{requirement}: the lock says {version}, renew it"


def test_wheel_carries_code_and_data(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    source = tmp_path / "source"
    _copy_sources(source)
    built = subprocess.run(
        [*pip, "--wheel-dir", str(tmp_path), str(source)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    expected = {
        str(path.relative_to(ROOT))
        for name in TOP_LEVEL
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    expected |= {f"mm_rwkv7/{path.relative_to(ROOT)}" for path in (ROOT / "kernels").iterdir()}
    assert {name for name in names if ".dist-info/" not in name} == expected


def _copy_sources(target: Path) -> None:
    """Copy what a build reads, so that it leaves nothing behind in the working tree."""
    target.mkdir()
    for name in ("LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, target)
    for name in sorted(TOP_LEVEL | {"kernels"}):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
