"""How much memory something takes."""

import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def process_peak() -> int:
    """Bytes of this process at its largest, ever."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_of(run: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes during a call: what torch has allocated on a GPU, the whole process on Linux, None elsewhere."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    try:
        FORGET.write_text("5")  # the peak so far, says proc(5)
    except OSError:
        run()
        return None
    run()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    return int(peak) * 1024


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
