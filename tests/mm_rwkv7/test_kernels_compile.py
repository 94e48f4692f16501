"""Every kernel that may be launched compiles for every chip, within its registers and its shared memory."""

import importlib
import os
import pkgutil
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

import mm_rwkv7.ops
from mm_rwkv7.ops import nvrtc
from mm_rwkv7.ops.artefacts import source
from mm_rwkv7.ops.kernel import Kernel
from tests.mm_rwkv7.emulation import FOLDER

CAPABILITIES = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)]
TURING = (7, 5)
REGISTERS = 64 << 10  # of a multiprocessor, on every chip
ONLY_FROM_80 = re.compile(r"\b(mma_\w+|round_tf32|copy_async_\w+)\b")


class Allowed(NamedTuple):
    """Spills that a kernel may have, with these among its defines."""

    kernel: str
    defines: dict[str, int | str]
    most: int  # bytes stored and loaded, together
    reason: str


SPILLS = [
    Allowed("wkv7_backward", {"HEAD_SIZE": 128, "INPUT": 0}, 120, "counters, beside 192 registers of sums and states"),
    Allowed("wkv7_backward", {"HEAD_SIZE": 128, "INPUT": 1}, 120, "the same"),
    Allowed("wkv7_affine", {"HEAD_SIZE": 64, "INPUT": 0}, 28, "three registers; one block fewer would cost more"),
    Allowed("wkv7_affine", {"HEAD_SIZE": 64, "INPUT": 1}, 28, "the same"),
    Allowed("wkv7_recurrent_backward", {"HEAD_SIZE": 64, "INPUT": 1, "ROWS": 8}, 24, "the same"),
]


def hosts() -> list[ModuleType]:
    """The modules of mm_rwkv7.ops that say with `all_kernels()` which kernels they may launch."""
    modules = [
        importlib.import_module(f"mm_rwkv7.ops.{info.name}") for info in pkgutil.iter_modules(mm_rwkv7.ops.__path__)
    ]
    return [module for module in modules if hasattr(module, "all_kernels")]


def faults(kernel: Kernel, capability: tuple[int, int]) -> list[str]:
    """What is wrong with a kernel on a chip."""
    found = nvrtc.resources(kernel, capability)
    name = f"{kernel.name} {dict(kernel.defines)} for sm_{capability[0]}{capability[1]}"
    limit = nvrtc.SHARED_LIMITS[capability]
    wrong = []
    rules = [rule for rule in SPILLS if rule.kernel == kernel.name and rule.defines.items() <= set(kernel.defines)]
    allowed = max((rule.most for rule in rules), default=0)
    if found.spill_stores + found.spill_loads > allowed:
        wrong.append(
            f"{name} stores {found.spill_stores} and loads {found.spill_loads} spilled bytes, {allowed} allowed"
        )
    if found.shared + kernel.shared > limit:
        wrong.append(f"{name} takes {found.shared} + {kernel.shared} bytes of shared memory, at most {limit}")
    if found.shared > 48 << 10:
        wrong.append(f"{name} takes {found.shared} bytes of static shared memory, at most 48 KiB")
    if found.registers * kernel.threads > REGISTERS:
        wrong.append(f"{name} takes {found.registers} registers for each of {kernel.threads} threads")
    return wrong


def compile_all(kernels: list[Kernel], capability: tuple[int, int]) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # NVRTC lets other threads run
        wrong = [fault for found in pool.map(lambda kernel: faults(kernel, capability), kernels) for fault in found]
    assert wrong == []


def runs_on_turing(kernel: Kernel) -> bool:
    """Whether a kernel uses nothing that chips before sm_80 lack."""
    text = source(kernel.source)
    code = text.read_text("utf-8")
    for name in re.findall(r'#include "([^"]+)"', code):
        code += "" if name == "primitives.h" else source(name).read_text("utf-8")
    return not ONLY_FROM_80.search(code)


def chips(kernels: list[Kernel], capability: tuple[int, int]) -> list[Kernel]:
    return [kernel for kernel in kernels if capability != TURING or runs_on_turing(kernel)]


each_host = pytest.mark.parametrize("host", hosts(), ids=lambda host: host.__name__.rpartition(".")[2])


@each_host
def test_one_of_every_kernel_compiles(host: ModuleType) -> None:
    """The first variant of each."""
    kernels = {kernel.name: kernel for kernel in reversed(list(host.all_kernels()))}
    assert kernels
    compile_all(list(kernels.values()), (9, 0))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [TURING, *CAPABILITIES], ids=lambda capability: "sm_{}{}".format(*capability))
@each_host
def test_every_kernel_compiles(host: ModuleType, capability: tuple[int, int]) -> None:
    compile_all(chips(list(host.all_kernels()), capability), capability)


@pytest.mark.parametrize(
    "name", ["from_16_bits", "to_16_bits", "approximate", "shuffles", "matrices", "pipeline", "places"]
)
def test_primitives_compile(name: str) -> None:
    kernel = Kernel(str(FOLDER / "every.cu"), name, (("MMA", "mma_tf32"),), 64)
    for capability in CAPABILITIES:
        assert faults(kernel, capability) == []


def test_primitives_compile_for_turing(tmp_path: Path) -> None:
    path = tmp_path / "turing.cu"
    path.write_text(
        '#include "primitives.h"\n'
        "KERNEL(32, 1) void turing(unsigned* y, const float* x) {\n"
        "    DYNAMIC_SHARED(shared);\n"
        "    unsigned r[4];\n"
        "    ldmatrix_x4(r, shared + 16 * thread_x());\n"
        "    y[thread_x()] = pack_bf16(x[0], x[1]) + pack_half(x[0], tanh_fast(x[1])) + r[0];\n"
        "}\n"
    )
    assert faults(Kernel(str(path), "turing", (), 32, 512), TURING) == []


def write(folder: Path, body: str) -> str:
    path = folder / "wrong.cu"
    path.write_text(f'#include "primitives.h"\nKERNEL(1024, 1) void wrong(float* y) {{ {body} }}\n')
    return str(path)


def test_faults_are_seen(tmp_path: Path) -> None:
    unrolled = "\n#pragma unroll\nfor (int i = 0; i < 200; i++) "
    body = f"float x[200];{unrolled} x[i] = y[i * 1024 + thread_x()]; barrier();"
    body += f"{unrolled} y[(199 - i) * 1024 + thread_x()] = x[i] * x[199 - i];"
    spilling = Kernel(write(tmp_path, body), "wrong", (), 1024)
    assert any("spilled bytes" in fault for fault in faults(spilling, (9, 0)))
    large = Kernel(spilling.source, "wrong", (), 32, shared=(99 << 10) + 1)
    assert any("shared memory" in fault for fault in faults(large, (8, 6)))
    wide = Kernel(spilling.source, "wrong", (), 2048)
    assert any("registers" in fault for fault in faults(wide, (9, 0)))


def test_a_wrong_kernel_says_where(tmp_path: Path) -> None:
    kernel = Kernel(write(tmp_path, "y[0] = undefined_name;"), "wrong", (("SIZE", 3),), 32)
    with pytest.raises(
        nvrtc.CompileError, match=r'(?s)wrong.cu does not compile with .*sm_90 -DSIZE=3: wrong.cu\(2\): .*"undefined'
    ):
        nvrtc.cubin(kernel, (9, 0))


def test_a_changed_header_or_define_is_compiled_anew(tmp_path: Path) -> None:
    one = nvrtc.cubin(Kernel(write(tmp_path, "y[0] = SIZE;"), "wrong", (("SIZE", 1),), 32), (9, 0))
    two = nvrtc.cubin(Kernel(write(tmp_path, "y[0] = SIZE;"), "wrong", (("SIZE", 2),), 32), (9, 0))
    other = nvrtc.cubin(Kernel(write(tmp_path, "y[1] = SIZE;"), "wrong", (("SIZE", 1),), 32), (9, 0))
    chip = nvrtc.cubin(Kernel(write(tmp_path, "y[0] = SIZE;"), "wrong", (("SIZE", 1),), 32), (8, 0))
    assert len({one, two, other, chip}) == 4
    assert all(code.startswith(b"\x7fELF") for code in (one, two, other, chip))
