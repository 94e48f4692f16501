"""Optimizer and schedule of the reference trainer (RWKV-LM train_temp)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from training.settings import StageConfig

DECAYED, PLAIN, DOUBLE = "decayed", "plain", "double"


def parameter_groups(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """The trained ones as RWKV-7 wants them treated: "decayed" are matrices (and kernels) named `*.weight`, which alone
    have weight decay, "double" the decay's offset w0, which learns twice as fast, "plain" the rest."""
    groups: dict[str, list[nn.Parameter]] = {DECAYED: [], PLAIN: [], DOUBLE: []}
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        if name.endswith(".w0"):
            groups[DOUBLE].append(parameter)
        elif parameter.ndim >= 2 and name.endswith(".weight"):
            groups[DECAYED].append(parameter)
        else:
            groups[PLAIN].append(parameter)
    return {name: group for name, group in groups.items() if group}


def build_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], stage: StageConfig) -> AdamW:
    """AdamW, each group treated its own way."""
    return AdamW(
        [
            {
                "params": group,
                "weight_decay": stage.weight_decay if name == DECAYED else 0.0,
                "scale": 2.0 if name == DOUBLE else 1.0,
            }
            for name, group in parameter_groups(parameters).items()
        ],
        lr=stage.learning_rate,
        betas=(0.9, 0.99),
        eps=1e-8,
        fused=True,
    )


def set_learning_rate(optimizer: AdamW, stage: StageConfig, step: int) -> float:
    """Set the rate of this step (from 0) and return it."""
    rate = stage.learning_rate * min(1.0, (step + 1) / max(1, stage.warmup)) * _share(stage, step)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate


def _share(stage: StageConfig, step: int) -> float:
    """Of the peak, after the warm-up: a cosine down to the final share, or a plateau and then a line."""
    low = stage.final_learning_rate
    if stage.schedule == "wsd":
        falling = max(1.0, stage.decay * stage.steps)
        return 1 - (1 - low) * max(0.0, step - (stage.steps - falling)) / falling
    progress = min(1.0, max(0, step - stage.warmup) / max(1, stage.steps - stage.warmup))
    return low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2


def gradient_norm(parameters: Iterable[Tensor], limit: float) -> float:
    """Clip the gradients to a total norm of `limit`; returns the norm before clipping."""
    norm = nn.utils.clip_grad_norm_(parameters, limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


class Average:
    """The running average of what a stage trains: every step moves it by a share of 1 - `decay`, and more in the
    beginning, when it has little to forget."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], decay: float) -> None:
        self.decay = decay
        self.now = {name: parameter for name, parameter in parameters if parameter.requires_grad}
        self.mean = {name: parameter.detach().clone() for name, parameter in self.now.items()}

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Take in the weights that step number `step` (from 0) left."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, mean in self.mean.items():
            mean.lerp_(self.now[name].detach(), share)

    @torch.no_grad()
    def finish(self) -> None:
        """Give the parameters the average."""
        for name, mean in self.mean.items():
            self.now[name].copy_(mean)
