"""How much memory something takes."""

import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

STATUS, FORGET, MEMORY = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")
FORGOTTEN = 1 << 24  # bytes by which a peak just begun may lie above what is in use: the kernel counts in batches


def process_peak() -> int:
    """Bytes of this process at its largest, ever (Linux lets `ru_maxrss` begin at that of the process above)."""
    if STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident() -> int | None:
    """Bytes of this process in memory now; None where the system does not tell."""
    return _status("VmRSS") if STATUS.exists() else None


def available(device: torch.device) -> int | None:
    """Bytes that can still be had; None where the system does not tell."""
    if device.type == "cuda":
        free: int = torch.cuda.mem_get_info(device)[0]
        return free
    try:
        (found,) = re.findall(r"MemAvailable:\s+(\d+) kB", MEMORY.read_text())
    except OSError:
        return None
    return int(found) * 1024


def peak_of(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes during a call: what torch has allocated on a GPU, the whole process on Linux, None elsewhere."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    forgotten = _forget_peak()
    run()
    return _status("VmHWM") if forgotten else None


def _forget_peak() -> bool:
    """Begin the process's peak anew. False where the system cannot, or takes the request and does not heed it."""
    try:
        FORGET.write_text("5")  # the peak so far, says proc(5)
        return _status("VmHWM") < _status("VmRSS") + FORGOTTEN
    except (OSError, ValueError):
        return False


def _status(field: str) -> int:
    """Bytes, from what the kernel tells of this process."""
    (kilobytes,) = re.findall(rf"{field}:\s+(\d+) kB", STATUS.read_text())
    return int(kilobytes) * 1024


def saved_for_backward(run: Callable[[], object], model: nn.Module) -> int:
    """Bytes that a forward pass keeps for its backward, the model's own parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # an address says which storage it is only as long as that is not given back

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(kept.values())
