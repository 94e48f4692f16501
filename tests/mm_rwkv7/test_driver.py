# ruff: noqa: N802 (the names are the driver's)
"""What the driver layer hands to the CUDA driver, shown by a driver that writes down what it is handed."""

import ctypes
import os
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mm_rwkv7.ops import driver, nvrtc
from mm_rwkv7.ops.driver import DriverLauncher
from mm_rwkv7.ops.kernel import Kernel
from tests.mm_rwkv7.emulation import FOLDER

REVERSE = Kernel(str(FOLDER / "reverse.cu"), "reverse", (("THREADS", 64),), 64, shared=256)
STREAM = 0x5EED


class Attribute(IntEnum):
    CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT = 16
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR = 75
    CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR = 76
    CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8


class FakeDriver:
    """The functions of cuda.bindings.driver that the launcher calls; a status, then the results."""

    CUdevice_attribute = CUfunction_attribute = Attribute

    def __init__(self, current_context: int = 0, capability: tuple[int, int] = (9, 0)) -> None:
        self.contexts = [current_context]
        self.attributes = {16: 132, 75: capability[0], 76: capability[1]}
        self.functions: list[tuple[bytes, bytes]] = []
        self.set_attributes: list[tuple[int, int, int]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.formats: list[str] = []
        self.capturing = 0
        self.launch_status = 0

    def cuInit(self, flags: int) -> tuple[int]:
        return (0,)

    def cuDeviceGet(self, ordinal: int) -> tuple[int, int]:
        return 0, 10 + ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, int]:
        return 0, 100 + device

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> tuple[int, int]:
        return 0, self.attributes[attribute]

    def cuCtxGetCurrent(self) -> tuple[int, int]:
        return 0, self.contexts[-1]

    def cuCtxPushCurrent(self, context: int) -> tuple[int]:
        self.contexts.append(context)
        return (0,)

    def cuCtxPopCurrent(self) -> tuple[int, int]:
        return 0, self.contexts.pop()

    def cuStreamIsCapturing(self, stream: int) -> tuple[int, int]:
        assert self.contexts[-1] >= 100  # without a context there is no default stream
        return 0, self.capturing

    def cuModuleLoadData(self, image: bytes) -> tuple[int, bytes]:
        assert self.contexts[-1] >= 100
        return 0, image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[int, int]:
        self.functions.append((module, name))
        return 0, len(self.functions)

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> tuple[int]:
        self.set_attributes.append((function, attribute, value))
        return (0,)

    def cuLaunchKernel(self, *arguments: Any) -> tuple[int]:
        *head, slots, extra = arguments
        assert extra == 0
        places = (ctypes.c_void_p * len(self.formats)).from_address(slots)
        values = [
            struct.unpack(kind, ctypes.string_at(place, struct.calcsize(kind)))[0]
            for place, kind in zip(places, self.formats, strict=True)
        ]
        self.launches.append((self.contexts[-1], *head, values))
        return (self.launch_status,)

    def cuGetErrorName(self, status: int) -> tuple[int, bytes]:
        return 0, b"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"too many resources requested for launch"


def make(fake: FakeDriver, index: int = 1) -> DriverLauncher:
    return DriverLauncher(torch.device("cuda", index), fake, lambda: STREAM)


@pytest.fixture(autouse=True)
def _tensors_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors pass for tensors on device 1."""
    monkeypatch.setattr(Tensor, "get_device", lambda self: 1)


def test_a_launch_hands_over_every_kind_of_argument() -> None:
    fake = FakeDriver()
    launcher = make(fake)
    assert (launcher.processors, launcher.capability, launcher.device) == (132, (9, 0), torch.device("cuda", 1))
    base = torch.zeros(10, dtype=torch.bfloat16)
    view = base[3:]
    fake.formats = ["Q", "Q", "i", "i", "f", "i"]
    launcher(REVERSE, (5, 6, 7), (view, None, 7, -3, 0.1, 2**31 - 1))
    launcher(REVERSE, (1, 1, 1), (base, None, -(2**31), 0, -0.0, True))
    pointer, null, seven, minus_three, tenth, most = fake.launches[0][-1]
    assert (pointer, null, seven, minus_three, most) == (base.data_ptr() + 6, 0, 7, -3, 2**31 - 1)
    assert tenth == struct.unpack("f", struct.pack("f", 0.1))[0]
    assert fake.launches[0][:-1] == (111, 1, 5, 6, 7, 64, 1, 1, 256, STREAM)
    assert fake.launches[1][-1] == [base.data_ptr(), 0, -(2**31), 0, 0.0, 1]
    ((code, name),) = fake.functions  # loaded once
    assert code == nvrtc.cubin(REVERSE, (9, 0))
    assert name == b"reverse"
    assert fake.set_attributes == [(1, 8, 256)]


def test_the_context_is_changed_only_where_it_must_be() -> None:
    elsewhere, here = FakeDriver(current_context=7), FakeDriver(current_context=111)
    for fake in (elsewhere, here):
        launcher = make(fake)
        launcher(REVERSE, (1, 1, 1), ())
        assert fake.launches[0][0] == 111
        assert len(fake.contexts) == 1
    assert elsewhere.contexts == [7]


def test_another_device_is_another_context(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeDriver()
    make(fake, 0)(REVERSE, (1, 1, 1), ())
    make(fake, 1)(REVERSE, (1, 1, 1), ())
    assert [launch[0] for launch in fake.launches] == [110, 111]


def test_threads_load_a_kernel_once() -> None:
    fake = FakeDriver()
    fake.formats = ["i"]
    launcher = make(fake)
    threads = [threading.Thread(target=launcher, args=(REVERSE, (1, 1, 1), (i,))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(launch[-1][0] for launch in fake.launches) == list(range(20))
    assert len(fake.functions) == 1


def test_a_capture_needs_a_loaded_kernel() -> None:
    fake = FakeDriver()
    launcher = make(fake)
    fake.capturing = 1
    with pytest.raises(RuntimeError, match="reverse is not loaded: launch or prepare it before a CUDA graph"):
        launcher(REVERSE, (1, 1, 1), ())
    fake.capturing = 0
    launcher.prepare(REVERSE)
    fake.capturing = 1
    launcher(REVERSE, (1, 1, 1), ())
    assert len(fake.launches) == 1


def test_errors_speak() -> None:
    fake = FakeDriver(current_context=7)
    launcher = make(fake)
    fake.launch_status = 701
    with pytest.raises(
        RuntimeError, match=r"reverse: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many resources .*256 bytes of shared"
    ):
        launcher(REVERSE, (1, 1, 1), ())
    assert fake.contexts == [7]
    with pytest.raises(ValueError, match="given 2147483648, expected an integer of 32 bits"):
        launcher(REVERSE, (1, 1, 1), (2**31,))


def test_a_tensor_elsewhere_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "get_device", lambda self: -1)
    with pytest.raises(ValueError, match="a tensor on cpu, expected cuda:1"):
        make(FakeDriver())(REVERSE, (1, 1, 1), (torch.zeros(1),))


PROGRAM = """
import torch
from cuda.bindings import driver
from mm_rwkv7.ops import nvrtc
from mm_rwkv7.ops.driver import DriverLauncher
from mm_rwkv7.ops.kernel import Kernel

torch.Tensor.get_device = lambda self: 1
nvrtc.cubin = lambda kernel, capability: b"\x7fELF"
launcher = DriverLauncher(torch.device("cuda", 1), driver, lambda: 0x5EED)
x = torch.zeros(9)
print(launcher.processors, *launcher.capability, hex(x.data_ptr()), int(driver.cuDriverGetVersion()[1]))
for shared in (70000, 300000):
    launcher(Kernel("a.cu", "a", (), 64, shared), (5, 6, 7), (x, None, -3, 0.1))
"""


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc on Linux")
def test_the_bindings_pass_everything_on(tmp_path: Path) -> None:
    """The real cuda.bindings over a libcuda that writes down what arrives: the way that FakeDriver leaves out."""
    library, calls = tmp_path / "libcuda.so.1", tmp_path / "calls"
    stub = Path(__file__).parent / "libcuda.c"
    subprocess.run(["gcc", "-shared", "-fPIC", str(stub), "-o", str(library), "-ldl"], check=True)
    variables = {"LD_LIBRARY_PATH": str(tmp_path), "CALLS": str(calls), "PYTHONPATH": str(FOLDER.parents[2])}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    processors, major, minor, address, version = done.stdout.split()
    assert (processors, major, minor, version) == ("132", "9", "0", "13000")
    load = ["push 0x100b", "capturing 0x5eed", "load 7fELF", "function a 1", "attribute 8 = {} 1", "pop"]
    launch = ["push 0x100b", "launch 1 of 5 6 7 with 64 1 1, {} bytes, stream 0x5eed, extra (nil)"]
    launch += [f"arguments {address} 0 -3 0.100000001", "pop"]
    expected = "\n".join(["cuInit 0", *(line.format(shared) for shared in (70000, 300000) for line in load + launch)])
    assert calls.read_text().split("\n")[:-1] == expected.split("\n")
    assert "RuntimeError: a: CUDA_ERROR_INVALID_VALUE: invalid argument (grid (5, 6, 7), 64 threads" in done.stderr


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine on which the kernels can be used."""
    from cuda.bindings import driver as bindings

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(nvrtc, "version", lambda: (13, 0))
    monkeypatch.setattr(bindings, "cuDriverGetVersion", lambda: (0, 13010))
    driver.unavailable.cache_clear()
    yield monkeypatch
    driver.unavailable.cache_clear()


def test_kernels_are_available(machine: pytest.MonkeyPatch) -> None:
    assert driver.unavailable() is None


def test_reasons_why_they_are_not(machine: pytest.MonkeyPatch) -> None:
    from cuda.bindings import driver as bindings

    def missing() -> tuple[int, int]:
        raise RuntimeError("libnvrtc.so.13 was not found\nsearched in ...")

    def broken() -> tuple[int, int]:
        raise ImportError("nvrtc.so: undefined symbol: x")

    for owner, name, value, reason in (
        (torch.version, "hip", "6.4", "torch is built for ROCm 6.4"),
        (torch.version, "cuda", None, "torch is built without CUDA"),
        (torch.cuda, "is_available", lambda: False, "there is no CUDA device"),
        (driver, "_installed", lambda name: False, "cuda-bindings"),
        (torch.cuda, "get_device_capability", lambda index: (7, 0), "capability is 7.0, expected 7.5"),
        (torch.cuda, "get_device_capability", lambda index: (13, 0), "cannot compile for compute capability 13.0"),
        (nvrtc, "version", missing, "NVRTC, CUDA's compiler library, cannot be used: libnvrtc.so.13 was not found"),
        (nvrtc, "version", broken, "cannot be used: nvrtc.so: undefined symbol: x"),
        (bindings, "cuDriverGetVersion", lambda: (0, 12080), "the driver is for CUDA 12.8, older than NVRTC 13.0"),
    ):
        with machine.context() as patch:
            patch.setattr(owner, name, value)
            driver.unavailable.cache_clear()
            found = driver.unavailable()
            assert found is not None, reason
            assert reason in found
            assert "\n" not in found


def test_a_module_that_is_not_there_is_not_installed() -> None:
    assert driver._installed("cuda.bindings")
    assert not driver._installed("cuda_that_is_not_there.bindings")
