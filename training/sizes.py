"""What a stage will take before it begins: parameters, memory, operations."""

from collections import defaultdict

from training.settings import StageConfig
from training.stage import Stage

PARAMETER, MOMENTS, GRADIENT = 4, 8, 4  # bytes of each parameter, in fp32


def counts(stage: Stage) -> dict[str, tuple[int, int]]:
    """Parameters of every part: (trained, frozen)."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in stage.named_parameters():
        part = name.removeprefix("model.").partition(".")[0]
        found[part][0 if parameter.requires_grad else 1] += parameter.numel()
    return {part: (trained, frozen) for part, (trained, frozen) in found.items()}


def memory_estimate(stage: Stage, config: StageConfig, recompute: bool, width: int, layers: int) -> dict[str, int]:
    """Bytes on one device: of parameters, of gradients, of the optimizer, and of what a pack's forward keeps for its
    backward, as far as the language model goes: about 34 numbers of the width a token and a layer, in fp32, or the
    block's input alone where the rest is computed again."""
    every = list(stage.parameters())
    trained = sum(p.numel() for p in every if p.requires_grad)
    kept = 1 if recompute else 34
    return {
        "parameters": PARAMETER * sum(p.numel() for p in every),
        "gradients": GRADIENT * trained,
        "optimizer": MOMENTS * trained + (PARAMETER * trained if config.ema else 0),
        "activations": 4 * kept * width * layers * config.context if config.packed else 0,
    }


def step_operations(stage: Stage) -> float:
    """Floating-point operations a token that the language model's matrices take in a step: two forward, two for the
    gradient of the input, two for the gradient of each trained matrix. The recurrence itself is not counted, nor are
    the towers."""
    lm = stage.model.lm
    skipped = {id(lm.emb.weight)}
    matrices = [p for p in lm.parameters() if p.ndim == 2 and id(p) not in skipped]
    return float(sum((6 if p.requires_grad else 4) * p.numel() for p in matrices))
