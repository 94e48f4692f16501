"""CUDA C++ to machine code for one chip, by NVRTC, the compiler library that comes with torch. It needs no GPU."""

import hashlib
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from .artefacts import compiled, source
from .kernel import Kernel

# Bytes of shared memory that a block may take, by capability: CUDA C++ programming guide, "Compute Capabilities".
SHARED_LIMITS = {
    (7, 5): 64 << 10,
    (8, 0): 163 << 10,
    (8, 6): 99 << 10,
    (8, 7): 163 << 10,
    (8, 9): 99 << 10,
    (9, 0): 227 << 10,
    (10, 0): 227 << 10,
    (10, 3): 227 << 10,
    (11, 0): 227 << 10,
    (12, 0): 99 << 10,
    (12, 1): 99 << 10,
}
HASH = 32  # bytes of one
FLAGS = ("--std=c++17", "-default-device", "--ptxas-options=-v")


class CompileError(RuntimeError):
    """NVRTC refused a kernel; the message begins with its first error."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers a thread, bytes of local memory that registers spill to, bytes of static
    shared memory a block."""

    registers: int
    spill_stores: int
    spill_loads: int
    shared: int


def version() -> tuple[int, int]:
    """Of NVRTC. RuntimeError when the library is not there."""
    from cuda.bindings import nvrtc

    _, major, minor = _checked(nvrtc.nvrtcVersion())
    return major, minor


def capabilities() -> list[tuple[int, int]]:
    """Those that NVRTC compiles for."""
    from cuda.bindings import nvrtc

    _, numbers = _checked(nvrtc.nvrtcGetSupportedArchs())
    return [divmod(number, 10) for number in numbers]


def cubin(kernel: Kernel, capability: tuple[int, int]) -> bytes:
    """The machine code of a kernel for exactly the chips of a compute capability. The first use compiles it, in a tenth
    of a second to a few seconds; then it is found on disk. CompileError when NVRTC refuses it."""
    return _code_and_log(kernel, capability)[0]


def resources(kernel: Kernel, capability: tuple[int, int]) -> Resources:
    """What the assembler said of a kernel when it compiled it."""
    log = _code_and_log(kernel, capability)[1]
    part = re.search(rf"Function properties for {kernel.name}$(.*?Used.*?)$", log, re.DOTALL | re.MULTILINE)
    assert part, log

    def count(what: str) -> int:
        found = re.search(rf"(\d+) {what}", part[1])
        return int(found[1]) if found else 0

    return Resources(count("registers"), count("bytes spill stores"), count("bytes spill loads"), count("bytes smem"))


def _code_and_log(kernel: Kernel, capability: tuple[int, int]) -> tuple[bytes, str]:
    """Kept in one file: a hash of the rest, the log's length in a line of its own, the log, the cubin."""
    arch = f"sm_{capability[0]}{capability[1]}"
    text = source(kernel.source)
    headers = _headers(text)
    flags = [*FLAGS, f"--gpu-architecture={arch}", *(f"-D{name}={value}" for name, value in kernel.defines)]
    made_of: list[str | bytes] = ["hash, log, cubin", text.read_bytes(), *flags, str(version())]
    for name, content in sorted(headers.items()):
        made_of += [name, content]

    def make(path: Path) -> None:
        code, log = _compile(text, headers, flags)
        content = b"%d\n%b%b" % (len(log), log, code)
        path.write_bytes(_hash(content) + content)

    def keep() -> Path:
        return compiled(f"{text.stem}-{arch}.cubin", made_of, make)

    try:
        path = keep()
        kept = path.read_bytes()
        if kept[:HASH] != _hash(kept[HASH:]):
            path.unlink(missing_ok=True)
            kept = keep().read_bytes()
    except OSError as error:
        warnings.warn(f"CUDA kernels are compiled again by every process: {error}", stacklevel=2)
        code, log = _compile(text, headers, flags)
        return code, log.decode(errors="replace")
    length, _, rest = kept[HASH:].partition(b"\n")
    return rest[int(length) :], rest[: int(length)].decode(errors="replace")


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _headers(text: Path) -> dict[str, bytes]:
    """The files that a source includes, directly or not, by name; all lie beside the kernels."""
    found: dict[str, bytes] = {}
    waiting = [text.read_text("utf-8")]
    while waiting:
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', waiting.pop(), re.MULTILINE):
            if name not in found:
                found[name] = source(name).read_bytes()
                waiting.append(found[name].decode())
    return found


def _compile(text: Path, headers: dict[str, bytes], flags: list[str]) -> tuple[bytes, bytes]:
    from cuda.bindings import nvrtc

    names = [name.encode() for name in headers]
    created = nvrtc.nvrtcCreateProgram(
        text.read_bytes(), text.name.encode(), len(headers), list(headers.values()), names
    )
    _, program = _checked(created)
    try:
        status, *_ = nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])
        _, size = _checked(nvrtc.nvrtcGetProgramLogSize(program))
        log = bytes(size)
        _checked(nvrtc.nvrtcGetProgramLog(program, log))
        log = log.rstrip(b"\0")
        if int(status):
            raise CompileError(_first_error(text.name, flags, log.decode(errors="replace")))
        _, size = _checked(nvrtc.nvrtcGetCUBINSize(program))
        code = bytes(size)
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return code, log


def _first_error(name: str, flags: list[str], log: str) -> str:
    lines = log.splitlines()
    first = next((line for line in lines if "error" in line), lines[0] if lines else "no message")
    return f"{name} does not compile with {' '.join(flags)}: {first.strip()}\n{log}"


def _checked(answer: tuple) -> tuple:
    """What an NVRTC function returned, its status first. RuntimeError when that says failure."""
    from cuda.bindings import nvrtc

    if int(answer[0]):
        _, text = nvrtc.nvrtcGetErrorString(answer[0])
        raise RuntimeError(f"NVRTC: {text.decode()}")
    return answer
