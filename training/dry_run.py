"""What a recipe would do, without doing it: its settings, what each stage trains and reads, memory, steps."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sources import locate
from training.config import RunConfig, describe
from training.look import Told, look_at_packs, look_at_singles
from training.loop import autocast_wanted
from training.models import continued_config, fresh_config
from training.optim import parameter_groups
from training.run import check_processes, drawn_of, make_stage
from training.settings import StageConfig
from training.singles.named import AnySource
from training.sizes import counts, memory_estimate
from training.stage import Stage


@dataclass(frozen=True)
class Plan:
    """`text`: the resolved recipe as YAML, and in its comments what every stage trains, reads and takes. `wrong`: what
    keeps the run from beginning, each in one line."""

    text: str
    wrong: tuple[str, ...]


def dry_run(run: RunConfig, device: torch.device, processes: int) -> Plan:
    """What the run would be on so many processes. No weights are read; of the data, a little of every source."""
    half = autocast_wanted(run.precision, device)
    wrong: list[str] = []
    lines = [
        f"{'bf16' if half else 'fp32'} products on {device.type}, {processes} process{'' if processes == 1 else 'es'}"
    ]
    sources: dict[str, AnySource] = {}
    told: dict[str, Told] = {}
    config: MMConfig | None = None
    try:
        check_processes(run, processes)
    except ValueError as error:
        wrong.append(str(error))
    try:
        sources, told = look_at_singles(run, *drawn_of(run))
        if all(readable for _, readable in told.values()):
            config = _config(run, sources)
    except ValueError as error:
        wrong.append(str(error))
    for stage in run.stages:
        lines.append(f"stage {stage.name} ({stage.kind}): {_steps(stage)}")
        seen = {name: told.pop(name) for name in stage.data if name in told}
        if config is not None:
            with torch.device("meta"):
                model = MMRWKV7(config)
                processor = Pipeline(model).processor
                made = make_stage(stage, processor, sources, model)
            lines += _lines(stage, made, run, half, processes)
            if stage.packed:
                seen = dict(look_at_packs(stage, run, processor))
        for name, (what, readable) in seen.items():
            lines.append(f"  reads {name}: {what}")
            if not readable:
                wrong.append(f"{name}: {what}")
    wrong = list(dict.fromkeys(wrong))
    lines += [f"this run would not begin: {what}" for what in wrong]
    return Plan(describe(run) + "\n".join(f"# {line}" for line in lines), tuple(wrong))


def _config(run: RunConfig, sources: Mapping[str, AnySource]) -> MMConfig:
    if run.start is None:
        return fresh_config(run, sources)
    return continued_config(run, open_checkpoint(locate(run.start)).config)


def _steps(config: StageConfig) -> str:
    whole = f"{config.steps} steps of {config.batch}"
    if not config.packed:
        return whole
    read = config.steps * config.batch * config.context
    return f"{whole} packs of {config.context} tokens: {read:,} tokens at most"


def _lines(config: StageConfig, stage: Stage, run: RunConfig, half: bool, processes: int) -> list[str]:
    parts = {part: numbers for part, numbers in counts(stage).items() if any(numbers)}
    lines = [f"  {part}: {trained:,} trained, {frozen:,} frozen" for part, (trained, frozen) in parts.items()]
    groups = parameter_groups(stage.named_parameters())
    each = (f"{name} {sum(p.numel() for p in group):,}" for name, group in groups.items())
    lines.append(f"  in groups: {', '.join(each)}")
    memory = memory_estimate(stage, config, run.engine, half, processes)
    each = (f"{name} {_size(number)}" for name, number in memory.items() if number)
    lines.append(f"  memory of each process, towers' work on top: {', '.join(each)}")
    return lines


def _size(number: int) -> str:
    """Bytes, in the unit that leaves some digits."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} B"
