"""A training run as typed values: what a recipe (YAML) may say."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from encoders.build import SoundEncoderConfig
from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.config import PromptTemplate
from mm_rwkv7.hearing import SoundConfig
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.typed import build

RECIPES = Path(__file__).parent / "recipes"


# What a stage of each kind may train; None is any of PARTS.
KINDS: dict[str, tuple[str, ...] | None] = {"tower": ("tower",), "tagging": ("sound_encoder",), "answer": None}
PARTS = ("tower", "projector", "sound_encoder", "sound_projector", "lm")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run.

    kind: "tower" pretrains the tower on picture-caption pairs and attribute targets; "tagging" the sound encoder on
        what is heard and when; "answer" trains on questions and answers.
    train: the parts whose parameters change, out of `PARTS`; the others stay frozen.
    data: how often each source is drawn, relative to the others.
    batch: pictures and sounds a step; each answers up to `questions` of its questions from one shared state.
    blind: leave pictures and sounds out, so that the language model learns the words alone.
    """

    name: str
    kind: str
    train: tuple[str, ...]
    data: dict[str, float]
    steps: int
    batch: int
    learning_rate: float
    questions: int = 8
    blind: bool = False
    warmup: int = 100
    final_learning_rate: float = 0.02  # as a share of the peak, reached along a cosine
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"stage {self.name!r} has kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if unknown := set(self.train) - set(PARTS):
            raise ValueError(f"stage {self.name!r} trains {sorted(unknown)}, expected some of {', '.join(PARTS)}")
        if self.train != (KINDS[self.kind] or self.train):
            raise ValueError(
                f"stage {self.name!r} is of kind {self.kind!r} and trains {list(self.train)}, "
                f"expected {list(KINDS[self.kind] or ())}"
            )
        if not self.train or (self.blind and self.train != ("lm",)):
            raise ValueError(f"stage {self.name!r} trains {list(self.train)}, which learns nothing from its batches")
        for name in ("steps", "batch", "questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"stage {self.name!r} has {name} {getattr(self, name)}, expected at least 1")
        if not self.data or min(self.data.values()) < 0 or not any(self.data.values()):
            raise ValueError(f"stage {self.name!r} draws from {self.data}, expected sources with positive weights")


@dataclass(frozen=True)
class HearingRecipe:
    """How the model hears: `SoundConfig` without the labels, which come from the data, and the projector's input width,
    which is the encoder's."""

    encoder: SoundEncoderConfig
    projector: dict[str, Any]
    pool: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A run: the model to build and the stages that train it, one after another.

    A model without a `tower` (and then without a `projector`) only hears.

    `start` names a checkpoint ("nano", "hf:owner/repo", a folder) whose weights and vocabulary the run begins with;
    without it the weights are random and the vocabulary is what the data can say. `template` (as a whole) and
    `max_new_tokens` replace those of `start` where the recipe names them.
    """

    run: str
    tower: TimmTowerConfig | None = None
    lm: dict[str, Any]  # RWKV7Config without its vocabulary, which comes from the data
    projector: dict[str, Any] | None = None  # ProjectorConfig without its input width, which is the tower's
    stages: tuple[StageConfig, ...]
    sound: HearingRecipe | None = None
    template: PromptTemplate | None = None
    max_new_tokens: int | None = None
    start: str | None = None
    data: str = "../shared/data"  # the folder of the parquet tables; generated scenes need none
    seed: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    workers: int = 1
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}, expected 'auto', 'fp32' or 'bf16'")
        for name in ("checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("two stages have the same name")
        self.lm_config(1)
        self.projector_config(1)
        self.sound_config(())
        if (self.tower is None) != (self.projector is None):
            raise ValueError("a tower needs a projector and a projector needs a tower")
        senses = {
            "tower": ({"tower", "projector"}, self.tower),
            "sound": ({"sound_encoder", "sound_projector"}, self.sound),
        }
        for name, (parts, sense) in senses.items():
            for stage in self.stages:
                if sense is None and (wrong := parts.intersection(stage.train)):
                    raise ValueError(f"stage {stage.name!r} trains {sorted(wrong)}, but the recipe has no {name}")
        if self.tower is None and self.sound is None:
            raise ValueError("the recipe has neither a tower nor a sound")
        if self.start is None:
            for name, value in {"template": PromptTemplate(), "max_new_tokens": 64, **self.prompt}.items():
                object.__setattr__(self, name, value)

    @property
    def prompt(self) -> dict[str, Any]:
        """The fields of MMConfig that say how the model is asked, as far as they are decided here."""
        fields = {"template": self.template, "max_new_tokens": self.max_new_tokens}
        return {name: value for name, value in fields.items() if value is not None}

    def lm_config(self, vocab_size: int) -> RWKV7Config:
        return build(RWKV7Config, {"vocab_size": vocab_size, **self.lm}, "lm")

    def projector_config(self, input_width: int) -> ProjectorConfig | None:
        if self.projector is None:
            return None
        return build(ProjectorConfig, {"input_width": input_width, **self.projector}, "projector")

    def sound_config(self, labels: Sequence[str]) -> SoundConfig | None:
        if self.sound is None:
            return None
        width = self.sound.encoder.width
        projector = build(ProjectorConfig, {"input_width": width, **self.sound.projector}, "sound.projector")
        return SoundConfig(self.sound.encoder, projector, self.sound.pool, tuple(labels))


def load_recipe(recipe: str, changes: Sequence[str] = ()) -> RunConfig:
    """Read a recipe by name or path and apply `key=value` changes; keys reach inside with dots, stages by name
    (`stages.tower.steps=10`), values are YAML."""
    path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        path = Path(recipe)
    if not path.is_file():
        names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise ValueError(f"no recipe {recipe!r}: expected a YAML file or one of {names}")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        for change in changes:
            _apply(fields, change)
        return build(RunConfig, fields, "recipe")
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def describe(run: RunConfig) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(json.loads(json.dumps(asdict(run))), sort_keys=False)


def _apply(fields: Any, change: str) -> None:
    key, equals, value = change.partition("=")
    if not equals:
        raise ValueError(f"{change!r} is not key=value")
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(fields, list):
            named = {item["name"]: item for item in fields}
            if parent not in named:
                raise ValueError(f"{key!r}: no stage {parent!r}, expected one of {sorted(named)}")
            fields = named[parent]
        else:
            fields = fields.setdefault(parent, {})
        if not isinstance(fields, dict | list):
            raise ValueError(f"{key!r}: {parent!r} has no settings of its own")
    try:
        fields[last] = json.loads(value)  # YAML takes 1e-3 for a text
    except ValueError:
        fields[last] = yaml.safe_load(value)
