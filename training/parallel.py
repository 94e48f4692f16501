"""How a stage is spread over processes and devices: DDP, FSDP2, recomputed blocks, compiled blocks.

Autocast multiplies in bf16 while parameters, and with them the optimizer, stay fp32. FSDP2 gathers the matrices of
linear maps in bf16, which is what autocast would make of them, and everything else in fp32: the vectors of a block
(w0, a0, ...) decide how long it remembers and lose most by rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.rwkv7 import RWKV7
from training.distributed import World
from training.settings import EngineConfig
from training.stage import Stage

S = TypeVar("S", bound=Stage)


def spread(stage: Stage, engine: EngineConfig, world: World, half: bool) -> nn.Module:
    """-> the module to call for a loss. The stage itself keeps its names; under FSDP2 its parameters become shards."""
    lm = stage.model.lm
    for block in lm.blocks:
        if engine.recompute:
            block.forward = partial(_recomputed, block.forward)
        if engine.compile:
            block.compile()
    if world.size == 1:
        return stage
    if engine.parallel == "fsdp":
        _shard(stage, lm, world, half)
        return stage
    on_gpu = world.device.type == "cuda"
    return DistributedDataParallel(
        stage,
        device_ids=[world.device.index] if on_gpu else None,
        broadcast_buffers=False,
        gradient_as_bucket_view=True,
    )


def whole(stage: S, remake: Callable[[MMRWKV7], S]) -> S:
    """What `spread` made of a stage, undone: the stage itself, or, where it is sharded, one that `remake` makes, with
    all of its weights, on the CPU of every process."""
    for block in stage.model.lm.blocks:
        block.__dict__.pop("forward", None)
        block._compiled_call_impl = None
    if not isinstance(stage, FSDPModule):
        return stage
    tensors = {name: _full(tensor) for name, tensor in stage.state_dict().items()}
    with torch.device("meta"):
        again = remake(MMRWKV7(stage.model.config))
    again.load_state_dict(tensors, assign=True)
    return again


def _full(tensor: Tensor) -> Tensor:
    """On the CPU; the gathered tensor may be a part of a larger one, with padding."""
    return (tensor.full_tensor().clone() if isinstance(tensor, DTensor) else tensor).cpu()


@contextmanager
def synchronised(module: nn.Module, last: bool) -> Iterator[None]:
    """The gradients of a step are exchanged once: with its last pack."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        yield
        return
    with module.no_sync() if isinstance(module, DistributedDataParallel) and not last else nullcontext():
        yield


def _recomputed(forward: Callable[..., Any], *inputs: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False)


def _shard(stage: nn.Module, lm: RWKV7, world: World, half: bool) -> None:
    mesh = init_device_mesh(world.device.type, (world.size,))
    matrices = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
    for block in lm.blocks:
        linear = [module for module in block.modules() if isinstance(module, nn.Linear)]
        fully_shard(cast("nn.Module", linear), mesh=mesh, mp_policy=matrices)
        fully_shard(block, mesh=mesh)
    fully_shard(stage, mesh=mesh)
