"""What a recipe would do, without doing it: its settings, what each stage trains, memory, steps."""

import torch

from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.weights import locate
from training.config import RunConfig, describe
from training.loop import autocast_wanted
from training.models import continued_config, fresh_config
from training.optim import parameter_groups
from training.run import data_of, make_stage
from training.settings import StageConfig
from training.sizes import counts, memory_estimate
from training.stage import Stage


def dry_run(run: RunConfig, device: torch.device, processes: int) -> str:
    """The resolved recipe as YAML, with a comment on every stage for so many processes. No weights are read, and of the
    data only what the vocabulary comes from."""
    half = autocast_wanted(run.precision, device)
    try:
        sources = data_of(run)
        if run.start is None:
            config = fresh_config(run, sources)
        else:
            config = continued_config(run, open_checkpoint(locate(run.start)).config)
    except ValueError as error:
        return f"{describe(run)}# this run would not begin: {error}"
    lines = [describe(run) + f"# {'bf16' if half else 'fp32'} products on {device.type}, {processes} processes"]
    for stage in run.stages:
        with torch.device("meta"):
            model = MMRWKV7(config)
            made = make_stage(stage, Pipeline(model).processor, sources, model)
        lines += _lines(stage, made, run, half, processes)
    return "\n".join(f"# {line}" if i else line for i, line in enumerate(lines))


def _lines(config: StageConfig, stage: Stage, run: RunConfig, half: bool, processes: int) -> list[str]:
    whole = f"{config.steps} steps of {config.batch}"
    if config.packed:
        read = config.steps * config.batch * config.context
        whole += f" packs of {config.context} tokens: {read:,} tokens at most"
    lines = [f"stage {config.name} ({config.kind}): {whole}"]
    parts = {part: numbers for part, numbers in counts(stage).items() if any(numbers)}
    lines += [f"  {part}: {trained:,} trained, {frozen:,} frozen" for part, (trained, frozen) in parts.items()]
    groups = parameter_groups(stage.named_parameters())
    each = (f"{name} {sum(p.numel() for p in group):,}" for name, group in groups.items())
    lines.append(f"  in groups: {', '.join(each)}")
    memory = memory_estimate(stage, config, run.engine, half, processes)
    each = (f"{name} {size / 1e9:.2f}" for name, size in memory.items())
    lines.append(f"  memory of each process in GB, towers' work on top: {', '.join(each)}")
    return lines
