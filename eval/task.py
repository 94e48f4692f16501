"""What a benchmark is to the harness: samples in a fixed order, and a score of predictions about them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline

Source = Path | Callable[[], Any]  # a file, or what makes the picture or the sound when it is wanted


class Mode(StrEnum):
    """What is asked of the model. A prediction is a text in `GENERATE` and a list of numbers in the others."""

    GENERATE = "generate"
    LIKELIHOOD = "likelihood"
    HEAD = "head"
    EMBEDDING = "embedding"
    PERPLEXITY = "perplexity"


@dataclass(frozen=True)
class Sample:
    """One question.

    `id` is unique within the task; `question` is all that the user says, the template applied; `images` and `sounds`
    stand before it, in that order. Samples that follow one another and have equal media are asked from one state.
    `choices` are what a likelihood decides between. `cluster` names what questions share, such as their picture, for
    clustered standard errors; "" is a cluster of its own. `expected` is a right answer for people to read, where one is
    known.
    """

    id: str
    question: str
    images: tuple[Source, ...] = ()
    sounds: tuple[Source, ...] = ()
    choices: tuple[str, ...] = ()
    cluster: str = ""
    expected: str = ""


@dataclass(frozen=True)
class Scores:
    """What a task says of predictions.

    `metrics` by name, in percent where papers print percent; `main` names the headline among them. `per_sample` is what
    each id contributes to the main metric, on the same scale, so that its mean is the metric: standard errors, paired
    tests and the gallery come from it. Where the main metric is no mean (F1, CIDEr), `corpus` gives, for the names of
    such metrics, a function from ids, some of them several times, to the metric of just these; `per_sample` then
    holds what orders the gallery. `breakdown` is table name -> row -> number. `notes` are sentences for whoever reads
    the score.
    """

    main: str
    metrics: Mapping[str, float]
    per_sample: Mapping[str, float] = field(default_factory=dict)
    breakdown: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    corpus: Mapping[str, Callable[[Sequence[str]], float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class Task(ABC):
    """One variant of one benchmark.

    `name` is what `--tasks` takes and the folder in OUT; `variant` says in words what exactly was measured, so that no
    two variants meet in one column; `folder` is the one in DATA, "" for tasks that need no files; `prompt` names
    the template in `prompts.py`. `stop` adds to the model's own stop texts.
    """

    name: str
    variant: str
    folder: str = ""
    mode: Mode = Mode.GENERATE
    prompt: str = "plain"
    max_new_tokens: int = 16
    stop: tuple[str, ...] = ()

    @abstractmethod
    def samples(self, data: Path) -> Sequence[Sample]:
        """All samples in a fixed order. `data` is DATA/`folder`; pictures and sounds in it are named, not opened."""

    @abstractmethod
    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        """Judge `predictions` (id -> prediction) of the samples that they are of: all, or those of a limited run. That
        every id is known and every prediction of the mode's type has been checked."""

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterable[Any]:
        """The predictions of `samples`, one each in order; asked of tasks whose mode is not `GENERATE`."""
        raise NotImplementedError(f"{self.name} is of mode {self.mode} and says not how to predict")

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str] | None:
        """Name and text of the file that the official server accepts; None where there is none."""
        return None

    @property
    def scored_here(self) -> bool:
        """Whether the official answers are public; if not, predictions become a submission and no score."""
        return True
