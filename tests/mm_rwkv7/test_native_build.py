"""How the C kernel is built: by any compiler, for any processor, by many processes at once, or not at all."""

import os
import platform
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mm_rwkv7.ops import backends, compiler, native, wkv7, wkv7_reference, wkv_path, wkv_reason
from tests.mm_rwkv7.test_wkv7 import assert_close, random_inputs, results

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "kernels" / "wkv7.c"
X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")


@pytest.fixture
def cc() -> str:
    """The compiler; skips where there is none."""
    try:
        return compiler._compiler()[0]
    except compiler.NoKernelError as error:
        pytest.skip(str(error))


@pytest.fixture
def built_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Forgets the kernel of this process before and after; what the test builds lies in a folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    _forget()
    yield
    _forget()


def _forget() -> None:
    for cached in (backends._found, native.library, compiler._found):
        cached.cache_clear()


def test_it_compiles_without_a_warning(cc: str, tmp_path: Path) -> None:
    flags = [*compiler.FLAGS, "-march=native" if platform.machine() == "x86_64" else "-mcpu=native"]
    command = [cc, *flags, "-Wall", "-Wextra", "-Wpedantic", "-Werror", str(SOURCE), "-o", str(tmp_path / "wkv7.so")]
    done = subprocess.run([*command, "-lm"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("built_anew")
def test_without_a_compiler_torch_does_it_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CC", "")
    assert wkv_reason("cpu") == "no C compiler (cc, gcc or clang) was found"
    assert wkv_path("cpu") == "torch-chunked (cpu)"
    inputs = [x.float() for x in random_inputs(0, B=1, T=70, H=2, N=16)]
    expected = results(wkv7_reference, [x.double() for x in inputs], 0)
    assert_close(results(wkv7, inputs, 0), expected, 1e-5, 1e-5, 0)


@pytest.mark.usefixtures("built_anew")
def test_a_compiler_that_fails_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'out of order today' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert wkv_reason("cpu") == f"wkv7.c could not be built by {broken}: out of order today"


@pytest.mark.usefixtures("built_anew", "cc")
def test_a_cache_that_cannot_be_written_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert "wkv7.c could not be built" in str(wkv_reason("cpu"))


@pytest.mark.usefixtures("built_anew")
def test_the_line_that_says_error_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\nprintf 'In file x:\\nx.c:1: error: \\377 is not C\\nmore\\n' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    assert str(wkv_reason("cpu")).endswith("x.c:1: error: \ufffd is not C")
    broken.write_text("#!/bin/sh\necho >&2\nexit 3\n")
    _forget()
    assert "exit status 3" in str(wkv_reason("cpu"))


@pytest.mark.usefixtures("built_anew")
def test_a_failure_is_not_tried_again_and_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken, calls = tmp_path / "cc", tmp_path / "calls"
    broken.write_text(f"#!/bin/sh\necho >> {calls}\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    tries = []
    for _ in range(2):
        with pytest.raises(compiler.NoKernelError):
            compiler.load("decode")
        tries.append(len(calls.read_text()))
    assert tries[0] == tries[1]


@pytest.mark.usefixtures("built_anew")
@pytest.mark.parametrize("refused", ["-march", "-m"])  # as on some ARM processors; by a small compiler
def test_a_compiler_without_native(refused: str, cc: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    picky = tmp_path / "picky"
    refusal = f'case " $*" in *" {refused}"*) echo "error: {refused}" >&2; exit 1;; esac'
    picky.write_text(f'#!/bin/sh\n{refusal}\nexec {cc} "$@"\n')
    picky.chmod(0o755)
    monkeypatch.setenv("CC", f"env {picky}")  # in two words, as "ccache gcc" is
    assert wkv_reason("cpu") is None
    inputs = [x.float() for x in random_inputs(0, B=1, T=20, H=2, N=16)]
    expected = results(wkv7_reference, [x.double() for x in inputs], 0)
    assert_close(results(wkv7, inputs, 0), expected, 1e-5, 1e-5, 0)


@pytest.mark.usefixtures("built_anew", "cc")
def test_a_spoilt_file_is_built_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler.load("wkv7")
    (kept,) = (tmp_path / "mm-rwkv7").iterdir()
    spoilt = tmp_path / "elsewhere" / "mm-rwkv7" / kept.name  # what was loaded from its own place is loaded for good
    spoilt.parent.mkdir(parents=True)
    spoilt.write_bytes(bytes(kept.stat().st_size))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    _forget()
    assert wkv_reason("cpu") is None
    assert spoilt.read_bytes()[:4] == kept.read_bytes()[:4]


@pytest.mark.skipif(os.name != "posix", reason="permissions")
@pytest.mark.usefixtures("built_anew", "cc")
def test_what_anybody_may_write_is_not_loaded(tmp_path: Path) -> None:
    compiler.load("wkv7")
    folder = tmp_path / "mm-rwkv7"
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    _forget()
    assert "where others can write" in str(wkv_reason("cpu"))


@pytest.mark.usefixtures("built_anew", "cc")
def test_a_home_that_does_not_exist_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    assert "Could not determine home directory" in str(wkv_reason("cpu"))


@pytest.mark.usefixtures("built_anew", "cc")
def test_processors_do_not_share_a_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in one home folder for several machines."""
    for native_flags in (["-march=x86-64"], ["-march=x86-64-v3"]) if platform.machine() == "x86_64" else ([], ["-DA"]):
        monkeypatch.setattr(compiler, "NATIVE", (native_flags,))
        _forget()
        compiler.load("wkv7")
    assert len(list((tmp_path / "mm-rwkv7").iterdir())) == 2


def test_what_is_not_for_the_kernel_says_why() -> None:
    cpu = torch.device("cpu")
    assert backends.reason_against(cpu, torch.float64, 64) == "torch.float64 is computed by torch alone"
    assert backends.reason_against(torch.device("meta"), torch.float32, 64) is not None
    if wkv_reason("cpu") is None:
        assert backends.reason_against(cpu, torch.float32, 12) == "there is no native kernel for head size 12"


@pytest.mark.slow
@X86
@pytest.mark.usefixtures("built_anew")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])  # registers of 4 and of 8 numbers
def test_it_is_right_on_lesser_processors(level: str, cc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "NATIVE", ([f"-march={level}"],))
    seed = random.SystemRandom().randrange(2**31)
    for T, N in ((1, 64), (70, 24), (130, 64), (20, 128)):
        inputs = [x.float() for x in random_inputs(seed, B=2, T=T, H=2, N=N)]
        expected = results(wkv7_reference, [x.double() for x in inputs], seed)
        assert wkv_path("cpu") == "native (cpu)"
        assert_close(results(wkv7, inputs, seed), expected, 1e-5, 1e-5, seed)


@pytest.mark.slow
@pytest.mark.usefixtures("cc")
def test_many_processes_build_it_at_once(tmp_path: Path) -> None:
    package = str(ROOT / "mm_rwkv7" / "ops")
    code = (  # without the package's own __init__, which would load torch eight times
        "import sys, types; ops = types.ModuleType('mm_rwkv7.ops'); sys.modules['mm_rwkv7.ops'] = ops;"
        f"ops.__path__ = [{package!r}]; from mm_rwkv7.ops.compiler import load; print(bool(load('wkv7').wkv7_forward))"
    )
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    assert [process.communicate()[0].strip() for process in processes] == ["True"] * 8
    (kept,) = (tmp_path / "mm-rwkv7").iterdir()
    assert kept.suffix == ".so"


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_it_is_clean_under_sanitizers(sanitizer: str, cc: str, tmp_path: Path) -> None:
    program = tmp_path / "exercise"
    flags = ["-O1", "-g", "-std=c11", "-pthread", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=undefined"]
    native_flag = "-march=native" if platform.machine() == "x86_64" else "-mcpu=native"
    exercise = Path(__file__).parent / "native" / "exercise.c"
    command = [cc, *flags, native_flag, f"-I{SOURCE.parent}", str(exercise), "-o", str(program), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.slow
@pytest.mark.usefixtures("cc")
def test_an_installed_package_finds_its_kernels(tmp_path: Path) -> None:
    """As a wheel lays them: kernels/ inside the package."""
    shutil.copytree(ROOT / "mm_rwkv7", tmp_path / "mm_rwkv7", ignore=shutil.ignore_patterns("__pycache__", "nano"))
    shutil.copytree(ROOT / "kernels", tmp_path / "mm_rwkv7" / "kernels")
    code = "from mm_rwkv7.ops import artefacts, wkv_path; print(artefacts.source('wkv7.c'), wkv_path('cpu'))"
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, env=variables, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert found == f"{tmp_path / 'mm_rwkv7' / 'kernels' / 'wkv7.c'} native (cpu)\n"
