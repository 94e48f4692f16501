"""CUDA kernels on the CPU, for tests: the kernel's file compiled with g++ and run over CPU tensors.

See emulation/runner.cpp for how the threads run, and emulation/primitives.h for what is checked on the way.
"""

import ctypes
import functools
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from mm_rwkv7.ops.artefacts import compiled, source
from mm_rwkv7.ops.kernel import Argument, Kernel
from mm_rwkv7.ops.nvrtc import SHARED_LIMITS

Sanitizer = Literal["thread", "address"]
FOLDER = Path(__file__).parent / "emulation"
LETTERS = {
    torch.float32: "f",
    torch.bfloat16: "h",
    torch.float16: "h",
    torch.uint16: "h",
    torch.int16: "h",
    torch.int32: "i",
    torch.int8: "b",
}  # as in emulation/primitives.h


class EmulationError(AssertionError):
    """What the emulation or a sanitizer found wrong in a kernel."""


class EmulatedLauncher:
    """A `Launcher` for CPU tensors, with the limits of a GPU of a capability.

    sanitize: "thread" reports accesses that no barrier orders, also between blocks; "address" accesses outside of
    tensors and of shared memory. Either runs the kernel in a process of its own. Making one skips a test on a machine
    that cannot compile for the emulation.
    """

    def __init__(
        self, processors: int = 4, capability: tuple[int, int] = (8, 0), sanitize: Sanitizer | None = None
    ) -> None:
        if sys.platform != "linux" or shutil.which("g++") is None:
            pytest.skip("kernels are emulated on Linux with g++")
        self.device = torch.device("cpu")
        self.processors = processors
        self.capability = capability
        self.sanitize = sanitize

    def __call__(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        self._check_limits(kernel, grid)
        build = (kernel.source, kernel.defines, self.capability)
        library = _library(*build)
        _check_arguments(kernel, library, arguments)
        if self.sanitize:
            _run_program(_build(*build, self.sanitize), kernel, grid, arguments)
            return
        values = [_value(argument) for argument in arguments]
        slots = (ctypes.c_void_p * max(len(values), 1))(*(ctypes.addressof(value) for value in values))
        message = ctypes.create_string_buffer(1024)
        sizes = (ctypes.c_int * 3)(*grid)
        shared, room = ctypes.c_size_t(kernel.shared), ctypes.c_size_t(len(message))
        if library.launch(kernel.name.encode(), sizes, kernel.threads, shared, slots, message, room):
            raise EmulationError(f"{kernel.name}: {message.value.decode()}")

    def _check_limits(self, kernel: Kernel, grid: tuple[int, int, int]) -> None:
        limits = (2**31 - 1, 65535, 65535)
        if not all(1 <= size <= limit for size, limit in zip(grid, limits, strict=True)):
            raise EmulationError(f"{kernel.name}: the grid is {grid}, expected 1 to {limits}")
        if not 32 <= kernel.threads <= 1024 or kernel.threads % 32:
            raise EmulationError(f"{kernel.name}: {kernel.threads} threads, expected whole warps up to 1024")
        limit = SHARED_LIMITS[self.capability]
        if not 0 <= kernel.shared <= limit:
            raise EmulationError(f"{kernel.name}: {kernel.shared} bytes of shared memory, expected at most {limit}")


def _check_arguments(kernel: Kernel, library: ctypes.CDLL, arguments: Sequence[Argument]) -> None:
    """Compare what is passed with the kernel's parameters."""
    found = library.find_kernel(kernel.name.encode())
    if not found:
        raise EmulationError(f"{kernel.source} has no kernel {kernel.name}")
    signature, most_threads = found.contents.signature.decode(), found.contents.most_threads
    if kernel.threads > most_threads:
        raise EmulationError(f"{kernel.name}: {kernel.threads} threads, compiled for {most_threads}")
    if len(arguments) != len(signature) // 2:
        raise EmulationError(f"{kernel.name}: {len(arguments)} arguments, expected {len(signature) // 2}")
    kinds, types = signature[: len(arguments)], signature[len(arguments) :]
    for i, (argument, kind, letter) in enumerate(zip(arguments, kinds, types, strict=True)):
        if isinstance(argument, Tensor):
            fits = kind == "p" and letter in ("?", LETTERS.get(argument.dtype)) and argument.device.type == "cpu"
        elif argument is None:
            fits = kind == "p"
        else:
            fits = kind == "v" and letter == ("f" if isinstance(argument, float) else "i")
        if not fits:
            found = f"{argument.dtype} on {argument.device}" if isinstance(argument, Tensor) else repr(argument)
            raise EmulationError(f"{kernel.name}: argument {i} is {found}, the parameter is {kind}{letter}")


def _value(argument: Argument) -> ctypes.c_void_p | ctypes.c_int | ctypes.c_float:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    assert -(2**31) <= argument < 2**31, argument
    return ctypes.c_int(argument)


class _Kernel(ctypes.Structure):
    """`emulation::Kernel`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("run", ctypes.c_void_p),
        ("signature", ctypes.c_char_p),
        ("most_threads", ctypes.c_int),
    )


Defines = tuple[tuple[str, int | str], ...]


@functools.cache
def _library(name: str, defines: Defines, capability: tuple[int, int]) -> ctypes.CDLL:
    library = ctypes.CDLL(str(_build(name, defines, capability, None)))
    library.find_kernel.restype = ctypes.POINTER(_Kernel)
    return library


@functools.cache
def _build(name: str, macros: Defines, capability: tuple[int, int], sanitize: Sanitizer | None) -> Path:
    """A file's kernels and the runner as a shared library, or as a program with a sanitizer."""
    text = source(name)
    kernels = re.findall(r"^KERNEL\((.+),[^,]+\)\s*void\s+(\w+)\s*\(", text.read_text("utf-8"), re.MULTILINE)
    entries = "".join(f"    EMULATED({kernel}, ({bound})),\n" for bound, kernel in kernels)
    main = f'#include "{FOLDER}/primitives.h"\n#include "{text}"\n'
    main += f"const emulation::Kernel emulated_kernels[] = {{\n{entries}    {{}}}};\n"
    defines = [f"-D{name}={value}" for name, value in macros]
    common = ["-std=c++20", "-fPIC", "-fno-gnu-unique", f"-D__CUDA_ARCH__={capability[0]}{capability[1]}0"]
    checks = ["-Wall", "-Wno-unknown-pragmas", "-fsanitize=alignment,bounds", "-fno-omit-frame-pointer"]
    checks.append("-O0" if sanitize == "address" else "-O1")  # with more, g++ 12 takes minutes over AddressSanitizer
    link = ["-shared", "-Wl,-Bsymbolic"]
    if sanitize:
        common.append(f"-DSANITIZE_{sanitize.upper()}")
        checks += [f"-fsanitize={sanitize}", "-g", "-fsanitize-sections=block_shared"]
        link = [f"-fsanitize={sanitize}"]
    # Sanitizers would see a loop that became a call of memcpy.
    plain = ["-O2", "-fno-tree-loop-distribute-patterns", "-c"]
    sources: list[str | bytes] = [
        path.read_bytes() for path in sorted([*FOLDER.iterdir(), *text.parent.glob("*.h"), text])
    ]
    runner = compiled(
        "runner.o",
        [*(path.read_bytes() for path in sorted(FOLDER.iterdir())), *common],
        lambda out: _run(["g++", *common, *plain, str(FOLDER / "runner.cpp"), "-o", str(out)]),
    )

    def make(out: Path) -> None:
        unit = out.with_suffix(".cpp")
        unit.write_text(main, "utf-8")
        module = out.with_suffix(".o")
        _run(["g++", *common, *checks, *defines, "-iquote", str(text.parent), "-c", str(unit), "-o", str(module)])
        _run(["g++", *link, str(module), str(runner), "-o", str(out)])

    made_of = [*sources, main, *common, *checks, *defines]
    return compiled(f"emulated-{text.stem}.{'run' if sanitize else 'so'}", made_of, make)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EmulationError(f"{' '.join(command)}\n{done.stderr}")


def _run_program(program: Path, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
    """Hand the memory of the tensors to the program in a file, run it, and read the memory back."""
    storages: dict[int, torch.UntypedStorage] = {}
    slots = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            storage = argument.untyped_storage()
            storages.setdefault(storage.data_ptr(), storage)
            memory = list(storages).index(storage.data_ptr())
            slots.append((memory, argument.storage_offset() * argument.element_size()))
        else:
            slots.append((-1, int.from_bytes(bytes(_value(argument)), "little")))
    sizes = [storage.nbytes() for storage in storages.values()]
    numbers = [*grid, kernel.threads, kernel.shared, len(sizes), len(slots), *sizes]
    head = struct.pack(f"<{len(numbers)}q", *numbers) + b"".join(struct.pack("<qQ", *slot) for slot in slots)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "launch"
        with path.open("wb") as file:
            file.write(head)
            for storage in storages.values():
                file.write(ctypes.string_at(storage.data_ptr(), storage.nbytes()))
        environment = os.environ | {"TSAN_OPTIONS": "report_signal_unsafe=0", "ASAN_OPTIONS": "detect_leaks=0"}
        command = ["setarch", "--addr-no-randomize", str(program), str(path), kernel.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
        if done.returncode:
            raise EmulationError(f"{kernel.name}: exit code {done.returncode}\n{done.stderr[:6000]}")
        content = path.read_bytes()[len(head) :]
    for storage in storages.values():
        ctypes.memmove(storage.data_ptr(), content[: storage.nbytes()], storage.nbytes())
        content = content[storage.nbytes() :]
