"""What the recipe `state_tracking` may say."""

from dataclasses import asdict, dataclass
from typing import Any

STUDY = "state_tracking"
OF_THE_WHOLE = ("study", "run", "tasks", "models", "seeds")
MODELS = ("rwkv7 x1", "rwkv7 x2", "attention")  # RWKV7 by its `iclr_multiplier`


@dataclass(frozen=True)
class Task:
    """A word problem, and what is trained on it: `layers` of RWKV-7 for `steps`, and attention's own. `alphabet`: see
    `WordProblem.of`."""

    name: str
    alphabet: str
    layers: int
    steps: int
    attention_layers: int
    attention_steps: int


@dataclass(frozen=True)
class StudyConfig:
    """Tasks times seeds times models, some of MODELS. Each step trains on `batch` words, whose length grows from 4 to
    `trained_length` over the first half of the steps. `rank` is that of all low-rank projections."""

    run: str
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]
    width: int
    head_size: int
    rank: int
    trained_length: int
    tested_length: int
    batch: int
    learning_rate: float
    attention_learning_rate: float
    study: str = STUDY
    models: tuple[str, ...] = MODELS
    tested_words: int = 256

    def __post_init__(self) -> None:
        if not 4 <= self.trained_length < self.tested_length:
            raise ValueError(
                f"words of {self.trained_length} letters are trained and of {self.tested_length} tested, "
                "expected at least 4, and more"
            )

        if unknown := set(self.models) - set(MODELS):
            raise ValueError(f"models are {sorted(unknown)}, expected some of {', '.join(MODELS)}")
        if self.study != STUDY:
            raise ValueError(f"study is {self.study!r}, expected {STUDY!r}")

    def settings(self) -> dict[str, Any]:
        """What every result depends on beside its task, model and seed."""
        return {name: value for name, value in asdict(self).items() if name not in OF_THE_WHOLE}

    def lengths(self) -> list[int]:
        """Of the words that the results tell about: powers of two from 4 on, and the longest trained one."""
        powers = {2**i for i in range(2, 32) if 2**i <= self.tested_length}
        return sorted(powers | {self.trained_length})
