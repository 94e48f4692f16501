"""C kernels, built for this very processor by the system's compiler when they are first needed."""

import ctypes
import functools
import os
import platform
import shutil
import subprocess
from pathlib import Path

from .artefacts import compiled, source

FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-pthread", "-fno-math-errno", "-ffp-contract=fast")


class NoKernelError(RuntimeError):
    """A kernel cannot be had on this machine; the message says why. The portable path computes the same."""


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """`kernels/<name>.c` as a shared library; the first use on a machine compiles it and takes some seconds."""
    compiler, options = _compiler()
    text = source(f"{name}.c")
    flags = [*FLAGS, *options]
    try:
        macros = _run([compiler, *options, "-dM", "-E", "-x", "c", os.devnull])  # names compiler and instruction sets
        headers = [path.read_bytes() for path in sorted(text.parent.glob("*.h"))]
        made_of: list[str | bytes] = [text.read_bytes(), *headers, *flags, macros]
        path = compiled(f"{name}.so", made_of, lambda out: _build([compiler, *flags, str(text), "-lm"], out))
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise NoKernelError(f"{name}.c could not be built by {compiler}: {said.strip().splitlines()[0]}") from error


def _compiler() -> tuple[str, list[str]]:
    """The compiler, and how it is told to build for this processor."""
    for candidate in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if candidate and (found := shutil.which(candidate)):
            native = "-mcpu=native" if platform.machine() == "arm64" else "-march=native"
            return found, [native]
    raise NoKernelError("no C compiler (cc, gcc or clang) was found")


def _run(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _build(command: list[str], out: Path) -> None:
    _run([*command, "-o", str(out)])
