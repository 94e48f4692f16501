"""Where compiled kernels are kept: safely, whole, or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mm_rwkv7.ops import nvrtc
from mm_rwkv7.ops.artefacts import compiled
from mm_rwkv7.ops.kernel import Kernel
from tests.mm_rwkv7.emulation import FOLDER

REVERSE = Kernel(str(FOLDER / "reverse.cu"), "reverse", (("THREADS", 64),), 64)
posix = pytest.mark.skipif(os.name != "posix", reason="owners and permissions are those of POSIX")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty one of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "mm-rwkv7"


def write(path: Path) -> None:
    path.write_text("made")


def test_a_file_is_made_once(cache: Path) -> None:
    path = compiled("thing.so", ["a", b"b"], write)
    assert path.read_text() == "made"
    assert compiled("thing.so", ["a", b"b"], Path.unlink) == path
    assert compiled("thing.so", ["ab", b""], write) != path
    assert all(kept.suffix == ".so" for kept in cache.iterdir())


@posix
def test_nobody_else_gets_in(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0)
    try:
        path = compiled("thing.so", ["a"], write)
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    owner = cache.stat().st_uid
    assert owner != 54321
    if owner == 0:
        assert compiled("thing.so", ["a"], write) == path  # root may look after it for all
        os.chown(cache, 12345, -1)
    with pytest.raises(PermissionError, match="where others can write"):
        compiled("thing.so", ["a"], write)


@posix
def test_a_folder_that_is_open_to_all_is_not_believed(cache: Path) -> None:
    compiled("thing.so", ["a"], write)
    cache.chmod(0o777)
    with pytest.raises(PermissionError, match="where others can write"):
        compiled("thing.so", ["a"], write)


def test_no_home_is_an_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(OSError, match="nowhere to keep compiled kernels: Could not determine home"):
        compiled("thing.so", ["a"], write)


def test_a_file_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str, function: Callable) -> Callable:
        return lambda *arguments: (done.append(name), function(*arguments))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    compiled("thing.so", ["a"], write)
    assert done == ["fsync", "replace"]


def test_a_damaged_cubin_is_made_again(cache: Path) -> None:
    code = nvrtc.cubin(REVERSE, (9, 0))
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole.replace(b"reverse", b"reserve")):
        assert damaged != whole
        path.write_bytes(damaged)
        assert nvrtc.cubin(REVERSE, (9, 0)) == code
        assert len(path.read_bytes()) > len(code)


def test_without_a_cache_cubins_are_made_anyway(cache: Path) -> None:
    code, resources = nvrtc.cubin(REVERSE, (9, 0)), nvrtc.resources(REVERSE, (9, 0))
    for path in cache.iterdir():
        path.unlink()
    cache.rmdir()
    cache.touch()
    with pytest.warns(UserWarning, match="compiled again by every process: .*mm-rwkv7"):
        assert nvrtc.cubin(REVERSE, (9, 0)) == code
    with pytest.warns(UserWarning, match="compiled again"):
        assert nvrtc.resources(REVERSE, (9, 0)) == resources
