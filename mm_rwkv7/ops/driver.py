"""Launches kernels on an NVIDIA GPU through the driver that torch uses, on torch's current stream."""

import ctypes
import functools
import importlib.util
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import nvrtc
from .kernel import Argument, Kernel

LOWEST_CAPABILITY = (7, 5)


class _Cells(threading.local):
    """For each count of arguments 8 bytes per argument, and an array of pointers to them, as the driver wants it. Every
    thread has its own and uses them again: the driver copies the arguments before it returns."""

    def __init__(self) -> None:
        self.of_count: dict[int, tuple[Any, int]] = {}
        self._pointers: list[Any] = []  # kept alive

    def add(self, count: int) -> tuple[Any, int]:
        cells = (ctypes.c_uint64 * count)()
        first = ctypes.addressof(cells)
        pointers = (ctypes.c_uint64 * count)(*range(first, first + 8 * count, 8))
        self._pointers.append(pointers)
        self.of_count[count] = cells, ctypes.addressof(pointers)
        return self.of_count[count]


class DriverLauncher:
    """A `Launcher` for one GPU. A kernel is compiled and loaded when it is first prepared or launched; from then on a
    launch only hands it to the driver: it waits for nothing, and a CUDA graph can capture it.

    Its calls may come from any thread. RuntimeError with the driver's words when a call fails.
    """

    def __init__(self, device: torch.device, driver: Any, current_stream: Callable[[], int]) -> None:
        """`driver` is the module cuda.bindings.driver; `current_stream` returns torch's stream on the device."""
        self.device = device
        self._driver = driver
        self._current_stream = current_stream
        self._functions: dict[Kernel, Any] = {}
        self._lock = threading.Lock()
        self._cells = _Cells()
        self._call(driver.cuInit, 0)
        handle = self._call(driver.cuDeviceGet, device.index)
        self._context = self._call(driver.cuDevicePrimaryCtxRetain, handle)  # torch's; held until the process ends
        attribute = driver.CUdevice_attribute
        self.processors: int = self._call(
            driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, handle
        )
        self.capability: tuple[int, int] = (
            self._call(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, handle),
            self._call(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, handle),
        )

    def __call__(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        """See `Launcher`."""
        function = self._functions.get(kernel)
        if function is None:
            self.prepare(kernel)
            function = self._functions[kernel]
        count, index = len(arguments), self.device.index
        cells, slots = self._cells.of_count.get(count) or self._cells.add(count)
        cells[:] = [
            argument.data_ptr()
            if isinstance(argument, Tensor) and argument.get_device() == index
            else self._bits(argument)
            for argument in arguments
        ]
        sizes = (*grid, kernel.threads, 1, 1, kernel.shared)
        entered = self._in_context()
        try:
            (status,) = self._driver.cuLaunchKernel(function, *sizes, self._current_stream(), slots, 0)
        finally:
            self._leave(entered)
        if status:
            reason = self._error(status)
            asked = f"grid {grid}, {kernel.threads} threads, {kernel.shared} bytes of shared memory"
            raise RuntimeError(f"{kernel.name}: {reason} ({asked})")

    def prepare(self, kernel: Kernel) -> None:
        """Compile and load a kernel, so that its launches can be captured. RuntimeError during a capture."""
        with self._lock:
            if kernel in self._functions:
                return
            entered = self._in_context()  # which is also what gives stream 0 its meaning
            try:
                if int(self._call(self._driver.cuStreamIsCapturing, self._current_stream())):
                    asked = "launch or prepare it before a CUDA graph captures it"
                    raise RuntimeError(f"{kernel.name} is not loaded: {asked}")
                code = nvrtc.cubin(kernel, self.capability)
                module = self._call(self._driver.cuModuleLoadData, code)
                function = self._call(self._driver.cuModuleGetFunction, module, kernel.name.encode())
                most = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._call(self._driver.cuFuncSetAttribute, function, most, kernel.shared)  # by default 48 KiB in all
            finally:
                self._leave(entered)
            self._functions[kernel] = function

    def _bits(self, argument: Argument) -> int:
        """What the kernel reads as its parameter, in the low bytes, for what is no tensor on the device."""
        if isinstance(argument, Tensor):
            raise ValueError(f"a kernel was given a tensor on {argument.device}, expected {self.device}")
        if argument is None:
            return 0
        if isinstance(argument, float):
            return int.from_bytes(struct.pack("<f", argument), "little")
        if not -(2**31) <= argument < 2**31:
            raise ValueError(f"a kernel was given {argument}, expected an integer of 32 bits")
        return argument & 0xFFFFFFFF

    def _in_context(self) -> bool:
        """Make the device's context current for this thread, as it need not be; whether it was changed."""
        current = self._call(self._driver.cuCtxGetCurrent)
        if int(current) == int(self._context):
            return False
        self._call(self._driver.cuCtxPushCurrent, self._context)
        return True

    def _leave(self, entered: bool) -> None:
        if entered:
            self._call(self._driver.cuCtxPopCurrent)

    def _call(self, function: Callable[..., tuple], *arguments: object) -> Any:
        status, *answer = function(*arguments)
        if status:
            raise RuntimeError(f"{function.__name__}: {self._error(status)}")
        return answer[0] if answer else None

    def _error(self, status: object) -> str:
        _, name = self._driver.cuGetErrorName(status)
        _, text = self._driver.cuGetErrorString(status)
        return f"{name.decode()}: {text.decode()}" if name and text else f"CUDA error {status}"


def launcher(device: torch.device) -> DriverLauncher:
    """The launcher of a CUDA device, one for each; ask `unavailable` first whether there can be one."""
    return _launcher(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _launcher(index: int) -> DriverLauncher:
    from cuda.bindings import driver

    torch.cuda.init()
    device = torch.device("cuda", index)
    return DriverLauncher(device, driver, lambda: torch.cuda.current_stream(device).cuda_stream)


@functools.cache
def unavailable(index: int = 0) -> str | None:
    """Why the kernels cannot be used on the CUDA device of this number; None when they can. Looked at once."""
    if torch.version.hip:
        return f"torch is built for ROCm {torch.version.hip}, and the kernels are written for NVIDIA GPUs"
    if not torch.version.cuda:
        return "torch is built without CUDA"
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False: there is no CUDA device, or its driver is too old for torch"
    if not _installed("cuda.bindings"):
        return "the package cuda-bindings, which torch for Linux brings along, is not installed"
    capability = torch.cuda.get_device_capability(index)
    if capability < LOWEST_CAPABILITY:
        return f"the GPU's compute capability is {capability[0]}.{capability[1]}, expected 7.5 or more"
    try:
        from cuda.bindings import driver

        version, capabilities = nvrtc.version(), nvrtc.capabilities()
    except (ImportError, OSError, RuntimeError) as error:
        return f"NVRTC, CUDA's compiler library, cannot be used: {str(error).partition(chr(10))[0]}"
    if capability not in capabilities:
        return f"NVRTC {version[0]}.{version[1]} cannot compile for compute capability {capability[0]}.{capability[1]}"
    _, supported = driver.cuDriverGetVersion()
    if supported // 1000 < version[0]:
        found = f"{supported // 1000}.{supported % 1000 // 10}"
        return f"the driver is for CUDA {found}, older than NVRTC {version[0]}.{version[1]}: update the driver"
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
