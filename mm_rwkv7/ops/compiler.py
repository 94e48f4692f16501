"""C kernels, built for this very processor by the system's compiler when they are first needed."""

import contextlib
import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path

from .artefacts import compiled, source

FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-ffp-contract=fast")
# How compilers are told to build for this very processor.
NATIVE: tuple[list[str], ...] = (["-march=native"], ["-mcpu=native"], [])


class NoKernelError(RuntimeError):
    """A kernel cannot be had on this machine; the message says why. The portable path computes the same."""


def load(name: str) -> ctypes.CDLL:
    """`kernels/<name>.c` as a shared library; the first use on a machine compiles it and takes some seconds."""
    found = _found(name)
    if isinstance(found, str):
        raise NoKernelError(found)
    return found


@functools.cache
def _found(name: str) -> ctypes.CDLL | str:
    """The library, or the reason why there is none. Looked for once."""
    compiler = _compiler()
    if compiler is None:
        return "no C compiler (cc, gcc or clang) was found"
    try:
        return _built(name, compiler)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or "").strip() or str(error)
        lines = said.splitlines()
        reason = next((line for line in lines if "error" in line), lines[0])
        return f"{name}.c could not be built by {compiler[0]}: {reason}"


def _built(name: str, compiler: list[str]) -> ctypes.CDLL:
    text = source(f"{name}.c")
    native, macros = _native(compiler)
    headers = [path.read_bytes() for path in sorted(text.parent.glob("*.h"))]
    made_of: list[str | bytes] = [text.read_bytes(), *headers, *FLAGS, *native, macros]

    def library() -> Path:
        return compiled(f"{name}.so", made_of, lambda out: _build([*compiler, *FLAGS, *native, str(text), "-lm"], out))

    try:
        return ctypes.CDLL(str(library()))
    except OSError:  # spoilt, or linked against a newer C library by another machine that shares the folder
        library().unlink()
        return ctypes.CDLL(str(library()))


def _compiler() -> list[str] | None:
    """The command that compiles; CC may hold several words."""
    for candidate in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        for words in ([candidate], candidate.split()):
            if words and (found := shutil.which(words[0])):
                return [found, *words[1:]]
    return None


def _native(compiler: list[str]) -> tuple[list[str], str]:
    """How the compiler is told to build for this processor, and what it then defines, which names itself and the
    instruction sets."""
    *attempts, plain = NATIVE
    for native in attempts:
        with contextlib.suppress(subprocess.CalledProcessError):
            return native, _macros(compiler, native)
    return plain, _macros(compiler, plain)


def _macros(compiler: list[str], native: list[str]) -> str:
    return _run([*compiler, *native, "-dM", "-E", "-x", "c", os.devnull])


def _run(command: list[str]) -> str:
    """What a command writes to stdout."""
    done = subprocess.run(
        command, check=True, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace"
    )
    return done.stdout


def _build(command: list[str], out: Path) -> None:
    _run([*command, "-o", str(out)])
