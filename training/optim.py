"""Optimizer and schedule of the reference trainer (RWKV-LM train_temp)."""

import math
from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import AdamW

from training.config import StageConfig


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], stage: StageConfig) -> AdamW:
    """AdamW in the groups that RWKV-7 wants: weight decay on matrices (and kernels) named `*.weight` only, and
    twice the learning rate for the decay's offset w0."""
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "plain": [], "double": []}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        if name.endswith(".w0"):
            groups["double"].append(parameter)
        elif parameter.ndim >= 2 and name.endswith(".weight"):
            groups["decayed"].append(parameter)
        else:
            groups["plain"].append(parameter)
    decay = {"decayed": stage.weight_decay}
    scale = {"double": 2.0}
    return AdamW(
        [
            {"params": group, "weight_decay": decay.get(name, 0.0), "scale": scale.get(name, 1.0)}
            for name, group in groups.items()
            if group
        ],
        lr=stage.learning_rate,
        betas=(0.9, 0.99),
        eps=1e-8,
        fused=True,
    )


def set_learning_rate(optimizer: AdamW, stage: StageConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to the final share; returns the rate set for this step (from 0)."""
    progress = min(1.0, max(0, step - stage.warmup) / max(1, stage.steps - stage.warmup))
    low = stage.final_learning_rate
    share = low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2
    rate = stage.learning_rate * min(1.0, (step + 1) / max(1, stage.warmup)) * share
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def gradient_norm(parameters: Iterable[Tensor], limit: float) -> float:
    """Clip the gradients to a total norm of `limit`; returns the norm before clipping."""
    return float(nn.utils.clip_grad_norm_(parameters, limit))
