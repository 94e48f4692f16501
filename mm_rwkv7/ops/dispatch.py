"""One door to the recurrence: checks what comes in, then takes the fastest path for it.

B batch, T time, H heads, N head size, S sequences.
"""

import functools

import torch
from torch import Tensor

from .backends import backend, reason_against
from .chunked import wkv7_chunked
from .library import wkv7_kernel
from .reference import wkv7_reference, wkv7_step
from .sequences import Inputs, scan_each


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The WKV-7 recurrence: S_t = S_{t-1} diag(exp(log_w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T,  y_t = S_t r_t.

    r, log_w, k, v, a, b: (B, T, H, N). log_w lies in [-exp(-0.5), 0] and is fp32 (fp64 in tests), which is also
    the precision of the computation; the others may be bf16 or fp16. The range is the caller's duty: looking at it
    would wait for the device. A step with log_w, k and b zero leaves the state as it was.
    state: (B, H, N, N) as [value, key], the state before the first step; zeros when None.
    cu_seqlens: (S + 1,) integers from 0 to T: B is 1, S sequences lie one after another, any of them may be empty,
    and the states are (S, H, N, N). They are looked at only where they lie on the CPU.

    Returns y (B, T, H, N) in v's dtype, and the state after the last step in log_w's, never the caller's tensor.
    Differentiable in everything, the state included, once and in reverse; forward derivatives and torch.func's
    transforms take the loop over time. ValueError on shapes and dtypes that do not fit.
    Source: arXiv 2503.14456, section 3; a = -kappa, b = kappa * iclr.
    """
    inputs = (r, log_w, k, v, a, b)
    _check_inputs(inputs)
    rows = len(r) if cu_seqlens is None else count_sequences(cu_seqlens, r.shape[0], r.shape[1])
    _check_state(inputs, state, rows)
    if r.numel() == 0:
        return _no_step(inputs, state, rows)
    if _is_transformed():
        return wkv7_reference(*inputs, state, cu_seqlens)
    dtype = functools.reduce(torch.promote_types, {x.dtype for x in (r, k, v, a, b)})
    if log_w.dtype == torch.float32 and reason_against(r.device, dtype, int(r.shape[-1])) is None:
        return _kernel(inputs, state, cu_seqlens, dtype)
    if cu_seqlens is not None:
        return scan_each(_portable, inputs, state, cu_seqlens)
    return _portable(inputs, state)


def wkv_path(device: torch.device | str) -> str:
    """The name of the path that a sequence in fp32 takes on a device, at the published head size."""
    device = torch.device(device)
    return f"{'torch-chunked' if wkv_reason(device) else backend(device).name} ({device.type})"


def wkv_reason(device: torch.device | str) -> str | None:
    """Why that path is not a compiled kernel, or None where it is."""
    return reason_against(torch.device(device), torch.float32, 64)


def _kernel(
    inputs: Inputs, state: Tensor | None, cu_seqlens: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The compiled kernel: as an operator where somebody looks at operators, else at once."""
    r, log_w, k, v, a, b = inputs
    r, k, v, a, b = (_laid_out(x, dtype) for x in (r, k, v, a, b))
    sequence = (r, _laid_out(log_w, torch.float32), k, v, a, b)
    if state is not None:
        state = _laid_out(state, torch.float32)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(r.device, torch.int32).contiguous()
    given = sequence if state is None else (*sequence, state)
    wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in given)
    if wants_gradient or _is_watched(given) or torch.is_autocast_enabled(r.device.type):
        y, last, _ = wkv7_kernel(*sequence, state, cu_seqlens, wants_gradient)
    else:
        y, last, _ = backend(r.device).forward(sequence, state, cu_seqlens, False)
    return _laid_out(y, inputs[3].dtype), last


def _laid_out(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A test is ten times faster than a conversion that has nothing to do."""
    return x if x.dtype == dtype and x.is_contiguous() else x.to(dtype).contiguous()


def _is_watched(tensors: Inputs) -> bool:
    """Whether torch traces, transforms or counts what is done to these tensors."""
    return (
        torch.compiler.is_compiling()
        or any(type(x) not in (Tensor, torch.nn.Parameter) for x in tensors)
        or torch._C._len_torch_dispatch_stack() > 0
        or torch.jit.is_tracing()
    )


def _is_transformed() -> bool:
    """Whether tensors may carry what only torch's own operations carry on: forward derivatives, which a kernel would
    drop without a word, or a level of torch.func."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0


def _portable(inputs: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor]:
    if inputs[0].numel() == 0:
        return _no_step(inputs, state, len(inputs[0]))
    if inputs[0].shape[1] == 1 and not torch.is_grad_enabled():
        return _one_step(inputs, state)
    return wkv7_chunked(inputs, state)


def _zero_state(log_w: Tensor, rows: int) -> Tensor:
    _, _, heads, size = log_w.shape
    return log_w.new_zeros(rows, heads, size, size)


def _no_step(inputs: Inputs, state: Tensor | None, rows: int) -> tuple[Tensor, Tensor]:
    _, log_w, _, v, _, _ = inputs
    last = _zero_state(log_w, rows) if state is None else state.to(log_w.dtype, copy=True)
    return torch.empty_like(v), last


def _one_step(inputs: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor]:
    r, log_w, k, v, a, b = (x[:, 0] for x in inputs)
    state = _zero_state(inputs[1], len(inputs[1])) if state is None else state.to(log_w.dtype)
    with torch.autocast(r.device.type, enabled=False):
        y, state = wkv7_step(r, log_w, k, v, a, b, state)
    return y.unsqueeze(1).to(v.dtype), state


def _check_inputs(inputs: Inputs) -> None:
    r, log_w, *_ = inputs
    if r.dim() != 4:
        raise ValueError(f"wkv7: r has shape {tuple(r.shape)}, expected (B, T, H, N)")
    if log_w.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"wkv7: log_w is {log_w.dtype}, expected float32: rounding it would change slow decays")
    dtypes = (torch.float32, torch.bfloat16, torch.float16, log_w.dtype)
    for name, x in zip(("r", "log_w", "k", "v", "a", "b"), inputs, strict=True):
        if x.shape != r.shape:
            raise ValueError(f"wkv7: {name} has shape {tuple(x.shape)}, expected {tuple(r.shape)} as r has")
        if x.dtype not in dtypes:
            raise ValueError(f"wkv7: {name} is {x.dtype}, expected float32, bfloat16 or float16")


def _check_state(inputs: Inputs, state: Tensor | None, rows: int) -> None:
    if state is None:
        return
    _, log_w, *_ = inputs
    _, _, heads, size = log_w.shape
    if state.shape != (rows, heads, size, size):
        found, expected = tuple(state.shape), (rows, heads, size, size)
        raise ValueError(f"wkv7: state has shape {found}, expected {expected}: (B or S, H, value, key)")
    if state.dtype not in (torch.float32, log_w.dtype):
        raise ValueError(f"wkv7: state is {state.dtype}, expected float32")


def count_sequences(cu_seqlens: Tensor, rows: int, time: int) -> int:
    """How many sequences lie in `rows` (which must be 1) of so many steps. ValueError where `cu_seqlens` cannot be."""
    if rows != 1:
        raise ValueError(f"cu_seqlens was given with B = {rows}, expected B = 1")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2 or cu_seqlens.is_floating_point():
        found = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        raise ValueError(f"cu_seqlens is {found}, expected integers of shape (S + 1,)")
    if cu_seqlens.device.type == "cpu" and not _is_watched((cu_seqlens,)):
        ends = cu_seqlens.tolist()
        if ends[0] != 0 or ends[-1] != time or ends != sorted(ends):
            raise ValueError(f"cu_seqlens is {ends}, expected it to rise from 0 to T = {time}")
    return len(cu_seqlens) - 1
