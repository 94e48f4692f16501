"""Weights: on which device and in which type, and how a file's tensors come into a module, all or none."""

from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8 = "int8"
STORED = (*DTYPES.values(), torch.float64)


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}, expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device; `mm-rwkv7 doctor` says more")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere. `int8` is for the matrices (`mm_rwkv7.int8`); the rest is
    bf16 wherever products of it are fast."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == INT8:
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        name = "bf16" if fast else "fp32"
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, expected auto, {', '.join(DTYPES)}, {INT8}")
    return DTYPES[name]


def cast_weight(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating-point tensor in `dtype`, but for the decay's offset w0, whose rounding changes how long slow channels
    remember."""
    return tensor.to(torch.float32 if name.endswith(".w0") else dtype) if tensor.is_floating_point() else tensor


def load_strictly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    source: object,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    spell: Callable[[str], str] = str,
) -> None:
    """Give `module`, whose parameters may be on the meta device, exactly these tensors, cast to `dtype` and moved to
    `device` one by one; none shares its memory with another. A ValueError, in which `spell` turns names into those of
    the file, lists every missing, unexpected and misshapen one before any is read; another one names a tensor with NaN
    or infinities."""
    wanted = module.state_dict()
    problems = [f"missing {spell(name)}" for name in wanted if name not in tensors]
    problems += [f"unexpected {spell(name)}" for name in tensors if name not in wanted]
    for name, given, expected in ((name, tensors[name], wanted[name]) for name in wanted if name in tensors):
        if given.shape != expected.shape:
            problems.append(f"{spell(name)} has shape {tuple(given.shape)}, expected {tuple(expected.shape)}")
        elif given.dtype not in STORED and expected.is_floating_point():
            problems.append(f"{spell(name)} holds {given.dtype}, expected floating-point numbers")
    if problems:
        raise ValueError(f"{source} does not fit: " + "; ".join(problems))
    filled = {}
    sharing = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    for name in wanted:
        tensor = tensors[name] if dtype is None else cast_weight(name, tensors[name], dtype)
        _check_finite(tensors[name], tensor, f"{source}: {spell(name)}")
        tensor = tensor.to(device or tensor.device).contiguous()
        # A tensor alone is saved, and trained, without the others of a file that lie in the same memory.
        filled[name] = tensor.clone() if sharing[tensor.untyped_storage().data_ptr()] > 1 else tensor
    module.load_state_dict(filled, assign=True)


def _check_finite(stored: Tensor, cast: Tensor, what: str) -> None:
    if not _is_finite(cast):
        reason = f"does not fit into {cast.dtype}" if _is_finite(stored) else "holds NaN or infinity"
        raise ValueError(f"{what} {reason}")


def _is_finite(tensor: Tensor) -> bool:
    """Needs no copy of the tensor, unlike `isfinite().all()`: NaN comes through a minimum."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())
