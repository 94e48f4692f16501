"""`run`: asks a model a task's questions and writes down what it says."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from eval import manifest, plan, predictions
from eval.files import check_media
from eval.task import Mode, Sample, Source, Task

if TYPE_CHECKING:
    from mm_rwkv7.listening import Listener
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampling


@dataclass(frozen=True)
class Settings:
    """What decides the predictions beside task and model.

    `limit` asks so many samples, drawn by `seed`; `shard` (i, n) asks the i-th of n parts; `batch` questions are
    answered at once. None in `max_new_tokens` leaves it to the task.
    """

    limit: int | None = None
    seed: int = 0
    shard: tuple[int, int] | None = None
    batch: int = 64
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0


@dataclass(frozen=True)
class Prepared:
    """A task whose files are read and found whole, so that a model is not loaded for nothing."""

    task: Task
    folder: Path  # of what is written
    mine: list[list[Sample]]  # batches of this shard
    settings: Settings
    sampling: "Sampling"
    manifest: dict[str, Any]  # all but the model's part

    def agree(self, model: "Pipeline | Listener") -> None:
        """Write the manifest. A ValueError says that the predictions which are there were made otherwise."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = predictions.shard_name(manifest.NAME, self.settings.shard)
        manifest.agree(self.folder / name, {**self.manifest, **manifest.of_model(model)})


def prepare(task: Task, data: Path, out: Path, settings: Settings) -> Prepared:
    """Read a task's files. A ValueError says what is wrong with them, which picture is missing, or that OUT/<task>/ has
    predictions that were made with other settings."""
    samples = task.samples(data / task.folder)
    _check_unique(task, samples)
    asked = plan.subset(samples, settings.limit, settings.seed)
    check_media(asked)
    mine = plan.dealt(plan.batches(asked, settings.batch), settings.shard)
    sampling = _sampling(task, settings)
    fields = manifest.planned(task, settings, sampling, asked, len(samples))
    manifest.check(out / task.name, fields)
    return Prepared(task, out / task.name, mine, settings, sampling, fields)


def run(prepared: Prepared, model: "Pipeline | Listener") -> Path:
    """Write the predictions that are not there yet to OUT/<task>/, a line each, and return their file. A `Listener`
    answers only tasks of mode `HEAD`. A KeyboardInterrupt leaves it with a message that says what is kept."""
    from tqdm import tqdm

    prepared.agree(model)
    task = prepared.task
    path = prepared.folder / predictions.shard_name(predictions.NAME, prepared.settings.shard)
    ids = [sample.id for batch in prepared.mine for sample in batch]
    with (
        predictions.Log(path, ids) as log,
        tqdm(total=len(ids), initial=log.written, desc=task.name, unit="question", file=sys.stderr) as bar,
    ):
        first = 0
        for batch in prepared.mine:
            done, first = log.written - first, first + len(batch)
            if log.written >= first:
                continue
            # All of a batch that was begun is answered again: who else is in it may move a rounding.
            try:
                for sample, fields in zip(batch, _predict(prepared, model, batch), strict=True):
                    if done > 0:
                        done -= 1
                        continue
                    log.write({"id": sample.id, **fields})
                    bar.update()
            except ValueError as error:
                raise ValueError(f"{task.name}, questions {batch[0].id!r} to {batch[-1].id!r}: {error}") from error
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{log.written} of {len(ids)} answers are kept in {path}") from None
    return path


def _sampling(task: Task, settings: Settings) -> "Sampling":
    from mm_rwkv7.sampling import Sampling

    return Sampling(
        max_new_tokens=task.max_new_tokens if settings.max_new_tokens is None else settings.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        seed=settings.seed,
        stop=task.stop,
    )


def _predict(prepared: Prepared, model: "Pipeline | Listener", batch: Sequence[Sample]) -> Iterator[dict[str, Any]]:
    task, pipeline = prepared.task, cast("Pipeline", model)
    if task.mode is not Mode.GENERATE:
        yield from ({"prediction": prediction} for prediction in task.predict(pipeline, batch))
        return
    from mm_rwkv7.answering import Asked, answer_many

    groups = plan.same_media(batch)
    asked = [Asked(_media(group[0]), tuple(sample.question for sample in group)) for group in groups]
    # Questions with and without media may follow one another in one task.
    with_media = [i for i, one in enumerate(asked) if one.media]
    without = [i for i, one in enumerate(asked) if not one.media]
    replies: dict[int, Any] = {}
    for some in (with_media, without):
        replies |= zip(some, answer_many(pipeline, [asked[i] for i in some], prepared.sampling), strict=True)
    for i in range(len(asked)):
        for reply in replies[i]:
            yield {"prediction": reply.text, "finish_reason": reply.finish_reason}


def _media(sample: Sample) -> tuple[dict[str, Any], ...]:
    pictures = ({"type": "image", "image": open_source(source)} for source in sample.images)
    sounds = ({"type": "audio", "audio": open_source(source)} for source in sample.sounds)
    return (*pictures, *sounds)


def open_source(source: Source) -> Any:
    """A picture or a sound as `Pipeline` takes it."""
    return source if isinstance(source, Path) else source()


def _check_unique(task: Task, samples: Sequence[Sample]) -> None:
    if not samples:
        raise ValueError(f"{task.name}: there are no samples")
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ValueError(f"{task.name}: the id {sample.id!r} comes twice")
        seen.add(sample.id)
