"""The loop: take the batches of a step, learn from them, log it, keep a checkpoint now and then, and go on where it
stopped.

What a step does is a function of the checkpoint before it and of the step's number: random numbers are drawn from the
seed, the stage, the step and the process, and the data from a position that the checkpoint holds.
"""

import math
import signal
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from tqdm import tqdm

from mm_rwkv7.bench.roofline import device_peak
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.whole import write_text
from training.checkpoints import Checkpoints
from training.config import RunConfig, describe
from training.distributed import World
from training.feed import Batch, Feed
from training.logs import Log, peak_memory
from training.optim import Average, build_optimizer, gradient_norm, set_learning_rate
from training.parallel import spread, synchronised, whole
from training.settings import StageConfig
from training.sizes import step_operations
from training.stage import Stage

ENDED = 128 + signal.SIGTERM  # the exit code of a run that was told to end
TOLD = ("samples", "position", "faults")  # of a pack, what the model does not read
USUAL = 0.98  # what the usual loss keeps of itself a step
NAMED = 10  # samples in the message of an error
REACTIONS = ("on_bad_loss", "spike", "broken_share")  # settings that may change on the way: a stop asks for them


class BadLossError(RuntimeError):
    """A loss that the run was told to stop at; it says which step's, what it is, and whose."""


@dataclass(frozen=True)
class Outcome:
    """One step, over all processes: the mean loss, what is logged beside it, and the loss of each of this process's
    packs, which can tell a bad one."""

    loss: float
    report: dict[str, float]
    tokens: float
    norm: float
    packs: tuple[float, ...]


def train_stage(
    stage: Stage,
    config: StageConfig,
    run: RunConfig,
    feed: Feed,
    folder: Path,
    offset: int,
    world: World,
    log: Log,
    remake: Callable[[MMRWKV7], Stage],
) -> Stage:
    """Run one stage to its end. `offset` counts the steps of the stages before it: a run numbers its steps
    through. `remake` makes the same stage around another model, for one that was sharded. -> the finished stage."""
    half = autocast_wanted(run.precision, world.device)
    operations = step_operations(stage)
    module = spread(stage, run.engine, world, half)
    optimizer = build_optimizer(stage.named_parameters(), config)
    average = Average(stage.named_parameters(), config.ema) if config.ema else None
    asynchronous = world.device.type == "cuda" if run.engine.asynchronous is None else run.engine.asynchronous
    checkpoints = Checkpoints(folder, offset, run.keep, stage, optimizer, average, world, asynchronous)
    progress = checkpoints.resume()
    log.begin(offset + progress.step)
    began = time.time()
    with (
        _told_to_end() as told,
        closing(feed.steps(progress.step, progress.position, world)) as batches,
        tqdm(total=config.steps, initial=progress.step, desc=config.name, unit="step", disable=not world.first) as bar,
    ):
        for step in range(progress.step, config.steps):
            tick = time.perf_counter()
            packs = next(batches)
            waited = time.perf_counter() - tick
            rate = set_learning_rate(optimizer, config, step)
            torch.manual_seed(zlib.crc32(f"{run.seed} {config.name} {step} {world.rank}".encode()))
            outcome = _learn(module, stage, packs, optimizer, config.clip, world, half)
            wrong = _wrong(outcome, progress.usual, run.engine.spike)
            named = [] if wrong is None else _samples(packs, outcome, world)
            if wrong is None:
                optimizer.step()
                if average is not None:
                    average.take(step)
                usual = outcome.loss if progress.usual is None else progress.usual
                progress.usual = USUAL * usual + (1 - USUAL) * outcome.loss
            elif run.engine.on_bad_loss == "stop":
                checkpoints.finish()  # what was good is kept
                more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
                of = f"; the samples were {', '.join(named[:NAMED])}{more}" if named else ""
                raise BadLossError(f"stage {config.name}, step {offset + step + 1}: {wrong}{of}")
            optimizer.zero_grad(set_to_none=True)
            progress.step = step + 1
            progress.tokens += int(outcome.tokens)
            record = {"step": offset + step + 1, "stage": config.name, "loss": outcome.loss, "lr": rate}
            record |= _speed(outcome.tokens, time.perf_counter() - tick, waited, operations, world)
            record |= {"tokens_seen": progress.tokens, "time": time.time() - began, "grad_norm": outcome.norm}
            record |= outcome.report
            if left_out := _faults(packs, world):
                record["left_out"] = left_out
            if wrong is not None:
                record |= {"skipped": wrong, "samples": named}
            log.write(record)
            bar.update()
            bar.set_postfix(loss=f"{outcome.loss:.3f}", refresh=False)
            ending = bool(world.sum([told.signalled])[0])
            if ending or (step + 1) % run.checkpoint_every == 0 or step + 1 == config.steps:
                progress.position = packs[-1].get("position")
                checkpoints.save(progress)
            if ending:
                checkpoints.finish()
                raise SystemExit(ENDED)
    checkpoints.finish()
    if average is not None:
        average.finish()
    stage = whole(stage, remake)
    stage.finish()
    return stage


def _learn(
    module: nn.Module,
    stage: Stage,
    packs: Sequence[Batch],
    optimizer: AdamW,
    clip: float,
    world: World,
    half: bool,
) -> Outcome:
    """The gradients of a step, clipped. The loss is the mean over all that the step's packs hold, wherever they lie."""
    device = world.device
    weights = [stage.weight(pack) for pack in packs]
    (whole,) = world.sum([sum(weights)])
    losses, reports = [], []
    for i, (pack, weight) in enumerate(zip(packs, weights, strict=True)):
        with synchronised(module, last=i + 1 == len(packs)):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss, report = module({name: _to(value, device) for name, value in pack.items() if name not in TOLD})
            # Processes are averaged over when gradients are exchanged.
            share = weight * world.size / whole if whole else 0.0
            (loss * share if share != 1 else loss).backward()
        losses.append(loss.detach())
        reports.append(report)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = gradient_norm(parameters, clip)
    found = tuple(float(loss) for loss in losses)
    mean, reported, tokens = _means(found, reports, weights, world)
    return Outcome(mean, reported, tokens, norm, found)


def _means(
    losses: Sequence[float], reports: Sequence[Mapping[str, float]], weights: Sequence[float], world: World
) -> tuple[float, dict[str, float], float]:
    """-> (loss, what is reported beside it, as means by weight over all processes' packs; the sum of their tokens)."""
    if len(losses) == world.size == 1:
        report = {name: value for name, value in reports[0].items() if math.isfinite(value)}
        tokens = report.pop("tokens", 1.0)
        return losses[0], report, tokens
    names = sorted(set().union(*reports) - {"tokens"})  # every stage reports the same of every pack
    sums = [
        sum(weights),
        sum(report.get("tokens", 1.0) for report in reports),
        *(
            sum(w * v for w, v in zip(weights, values, strict=True) if w)
            for values in (losses, *([report[name] for report in reports] for name in names))
        ),
    ]
    whole, tokens, loss, *others = world.sum(sums)
    whole = whole or 1.0
    return loss / whole, {name: value / whole for name, value in zip(names, others, strict=True)}, tokens


def _speed(tokens: float, seconds: float, waited: float, operations: float, world: World) -> dict[str, float]:
    """What a step tells of the machine: of all processes, but for the memory, which is this one's peak."""
    told = {"tokens": tokens, "tokens_per_s": tokens / seconds, "waited_s": waited}
    if (peak := device_peak(world.device)) is not None:
        told["mfu"] = operations * tokens / seconds / (peak * world.size)
    return told | {"memory_mb": peak_memory(world.device)}


def _wrong(outcome: Outcome, usual: float | None, spike: float) -> str | None:
    if not math.isfinite(outcome.loss):
        return f"the loss is {outcome.loss}"
    if not math.isfinite(outcome.norm):
        return f"the norm of the gradients is {outcome.norm}"
    if spike and usual is not None and outcome.loss > spike * usual:
        return f"the loss is {outcome.loss:.4g}, more than {spike:g} times the usual {usual:.4g}"
    return None


def _samples(packs: Sequence[Batch], outcome: Outcome, world: World) -> list[str]:
    """The samples of the packs whose loss is no number, or else of the pack whose loss is the largest, each once: the
    processes that share a pack all know it."""
    mine = [
        (-math.inf if math.isfinite(loss) else 0.0, loss, list(map(str, pack.get("samples", ()))))
        for loss, pack in zip(outcome.packs, packs, strict=True)
    ]
    every = [pack for process in world.gather(mine) for pack in process]
    bad = [samples for no_number, _, samples in every if no_number == 0.0]
    if not bad:
        bad = [max(every, key=lambda pack: pack[1])[2]]
    return list(dict.fromkeys(sample for samples in bad for sample in samples))


def _faults(packs: Sequence[Batch], world: World) -> list[str]:
    """What was left out on the way to these packs, over all processes; of those that share packs, one tells it."""
    mine = [str(fault) for pack in packs for fault in pack.get("faults", ())]
    return [fault for several in world.gather(mine)[:: world.context] for fault in several]


class _Told:
    signalled = 0.0


@contextmanager
def _told_to_end() -> Iterator[_Told]:
    """Spot machines and schedulers say SIGTERM before they take the machine away: the step is finished and kept."""
    told = _Told()

    def handle(number: int, frame: FrameType | None) -> None:
        told.signalled = 1.0

    try:
        before = signal.signal(signal.SIGTERM, handle)
    except ValueError:  # not the main thread, which alone hears signals
        yield told
        return
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def autocast_wanted(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bf16: "auto" says yes where the hardware multiplies bf16 natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def check_config(folder: Path, run: RunConfig) -> None:
    """ValueError for a folder of another run."""
    path = folder / "config.yaml"
    if not path.exists():
        return
    lines = zip_longest(_fixed(path.read_text(encoding="utf-8")), _fixed(describe(run)), fillvalue="nothing more")
    for there, here in lines:
        if there != here:
            raise ValueError(
                f"{path} is of a run with other settings (the first: {there.strip()} there, {here.strip()} here); "
                "give this one another folder (--set run=DIR)"
            )


def _fixed(description: str) -> list[str]:
    """The lines of what may not change in a run."""
    return [line for line in description.splitlines() if line.partition(":")[0].strip() not in REACTIONS]


def write_config(folder: Path, run: RunConfig) -> None:
    """`config.yaml`: the run, resolved. From here on the folder is this run's."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", describe(run))


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(item, device) for item in value)
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
