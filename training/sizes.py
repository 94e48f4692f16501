"""What a stage takes before it begins: parameters, memory, operations."""

from collections import defaultdict

from training.settings import EngineConfig, StageConfig
from training.stage import Stage

PARAMETER, MOMENTS = 4, 8  # bytes of each in fp32: weights and gradients; AdamW's two moments
# Bytes that a block keeps for its backward, a token and a unit of the width: measured with `bench.memory` on the C path
# at widths 128 and 256.
KEPT, KEPT_HALF = 165, 105


def counts(stage: Stage) -> dict[str, tuple[int, int]]:
    """Parameters of every part: (trained, frozen)."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in stage.named_parameters():
        part = name.removeprefix("model.").partition(".")[0]
        found[part][0 if parameter.requires_grad else 1] += parameter.numel()
    return {part: (trained, frozen) for part, (trained, frozen) in found.items()}


def memory_estimate(
    stage: Stage, config: StageConfig, engine: EngineConfig, half: bool, processes: int
) -> dict[str, int]:
    """Bytes on each device: weights, gradients, optimizer, and, for stages that read packs, what the language model's
    blocks keep of one for its backward. Towers' work and temporary memory come on top."""
    share = processes if engine.parallel == "fsdp" else 1
    every = sum(p.numel() for p in stage.parameters())
    trained = sum(p.numel() for p in stage.parameters() if p.requires_grad)
    sizes = stage.model.config.lm
    kept = KEPT_HALF if half else KEPT
    blocks = PARAMETER * sizes.layers + kept if engine.recompute else kept * sizes.layers  # of one at a time
    return {
        "weights": PARAMETER * every // share,
        "gradients": PARAMETER * trained // share,
        "optimizer": (MOMENTS + (PARAMETER if config.ema else 0)) * trained // share,
        "activations": blocks * sizes.width * -(-config.context // engine.context_parallel) if config.packed else 0,
    }


def step_operations(stage: Stage) -> float:
    """Floating-point operations a token that the language model's matrices take in a step: two forward, two for the
    gradient of what they read, two for the gradient of each trained matrix. The recurrence itself is not counted, nor
    are towers and what is computed a second time."""
    lm = stage.model.lm
    matrices = [p for p in lm.parameters() if p.ndim == 2 and p is not lm.emb.weight]
    return float(sum((6 if p.requires_grad else 4) * p.numel() for p in matrices))
