"""A training run as typed values: what a recipe (YAML) may say."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from encoders.build import SoundEncoderConfig, TowerConfig
from mm_rwkv7.config import PromptTemplate
from mm_rwkv7.hearing import SoundConfig
from mm_rwkv7.projector import AnyProjectorConfig, ProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.typed import build
from training.settings import EngineConfig, SourceConfig, StageConfig
from training.study import StudyConfig

RECIPES = Path(__file__).parent / "recipes"


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
    `max_new_tokens` replace those of `start` where the recipe names them. Parts that the recipe leaves out are those of
    `start`; a tower and a projector that `start` lacks are put before its language model, the tower with its published
    weights unless `published_tower` says no.

    `sources` are what the stages that read packs draw from, by name. `feature_cache` is a folder that keeps what the
    tower, where it is frozen, tells of each picture, so that it tells it once.
    """

    run: str
    stages: tuple[StageConfig, ...]
    tower: TowerConfig | None = None
    lm: dict[str, Any] | None = None  # RWKV7Config without its vocabulary, which comes from the data
    projector: dict[str, Any] | None = None  # a projector's config without its input width, which is the tower's
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
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    feature_cache: str | None = None
    published_tower: bool = True
    engine: EngineConfig = field(default_factory=EngineConfig)

    def __post_init__(self) -> None:
        for name, source in self.sources.items():
            if not isinstance(source, SourceConfig):  # `build` does not look into dictionaries
                source = build(SourceConfig, source, f"sources.{name}")
            object.__setattr__(self, "sources", {**self.sources, name: source})
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision is {self.precision!r}, expected 'auto', 'fp32' or 'bf16'")
        for name in ("checkpoint_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if len({stage.name for stage in self.stages}) != len(self.stages):
            raise ValueError("two stages have the same name")
        if not self.stages:
            raise ValueError("the recipe has no stages")
        senses = (
            ("tower", {"tower", "projector"}, self.tower, self.sound),
            ("sound", {"sound_encoder", "sound_projector"}, self.sound, self.tower),
        )
        for name, parts, sense, other in senses:
            lacks = sense is None and (self.start is None or other is not None)
            for stage in self.stages:
                if lacks and (wrong := parts.intersection(stage.train)):
                    raise ValueError(f"stage {stage.name!r} trains {sorted(wrong)}, but the recipe has no {name}")
        self._check_parts()
        self._check_sharing()
        self.sound_config(())
        if self.start is None:
            for name, value in {"template": PromptTemplate(), "max_new_tokens": 64, **self.prompt}.items():
                object.__setattr__(self, name, value)

    def _check_parts(self) -> None:
        parts = {"tower": self.tower, "lm": self.lm, "projector": self.projector}
        drawing = [stage.name for stage in self.stages if not stage.packed]
        if self.tower is None and (self.sound is not None or all(stage.kind == "text" for stage in self.stages)):
            parts = {"lm": self.lm}  # nothing is seen
        missing = [name for name, part in parts.items() if part is None]
        if missing and (drawing or self.start is None):
            who = f"stage {drawing[0]!r} needs them" if drawing else "it has no start"
            raise ValueError(f"the recipe lacks {missing}, and {who}")
        if (self.tower is None) != (self.projector is None):
            raise ValueError("a tower needs a projector and a projector needs a tower")
        if self.lm is not None:
            self.lm_config(1)
        if self.projector is not None:
            self.projector_config(1)
        if any(stage.kind == "state" for stage in self.stages[:-1]):
            raise ValueError("a state belongs to the weights that it was tuned with: its stage comes last")
        for stage in self.stages:
            if stage.packed and (unknown := set(stage.data) - set(self.sources)):
                raise ValueError(
                    f"stage {stage.name!r} draws from {sorted(unknown)}, expected some of the recipe's sources "
                    f"{sorted(self.sources)}"
                )

    def _check_sharing(self) -> None:
        sharing = self.engine.context_parallel
        if sharing == 1:
            return
        for stage in self.stages:
            reasons = {
                f"is of kind {stage.kind!r}, expected 'text'": stage.kind != "text",
                f"has average {stage.average!r}, expected 'token'": stage.average != "token",
                f"has packs of {stage.context} tokens": stage.context < sharing,
            }
            if wrong := [reason for reason, holds in reasons.items() if holds]:
                raise ValueError(
                    f"engine.context_parallel is {sharing}, but packs cannot be shared in stage {stage.name!r}: it "
                    + " and ".join(wrong)
                )

    @property
    def prompt(self) -> dict[str, Any]:
        """The fields of MMConfig that say how the model is asked, as far as they are decided here."""
        fields = {"template": self.template, "max_new_tokens": self.max_new_tokens}
        return {name: value for name, value in fields.items() if value is not None}

    def lm_config(self, vocab_size: int) -> RWKV7Config:
        assert self.lm is not None
        return build(RWKV7Config, {"vocab_size": vocab_size, **self.lm}, "lm")

    def projector_config(self, input_width: int) -> AnyProjectorConfig | None:
        if self.projector is None:
            return None
        return build(AnyProjectorConfig, {"input_width": input_width, **self.projector}, "projector")

    def sound_config(self, labels: Sequence[str]) -> SoundConfig | None:
        if self.sound is None:
            return None
        width = self.sound.encoder.width
        projector = build(ProjectorConfig, {"input_width": width, **self.sound.projector}, "sound.projector")
        return SoundConfig(self.sound.encoder, projector, self.sound.pool, tuple(labels))


def load_recipe(recipe: str, changes: Sequence[str] = ()) -> RunConfig:
    """Read a recipe by name or path and apply `key=value` changes; keys reach inside with dots, stages by name
    (`stages.tower.steps=10`), values are YAML."""
    run = load_any(recipe, changes)
    if not isinstance(run, RunConfig):
        raise ValueError(f"{recipe} is the study {run.study!r}, expected a recipe with stages")
    return run


def load_any(recipe: str, changes: Sequence[str] = ()) -> RunConfig | StudyConfig:
    """`load_recipe`, and studies, which have a field `study`."""
    path = RECIPES / f"{recipe}.yaml"
    if not path.is_file():
        path = Path(recipe)
    if not path.is_file():
        names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise ValueError(f"no recipe {recipe!r}: expected a YAML file or one of {names}")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(fields, dict):
            raise ValueError(f"the recipe is {fields!r:.60}, expected settings, `key: value`")
        for change in changes:
            _apply(fields, change)
        return build(StudyConfig if "study" in fields else RunConfig, fields, "recipe")
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error  # YAML draws where it is


def describe(run: RunConfig | StudyConfig) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(plain(run), sort_keys=False)


def plain(run: RunConfig | StudyConfig) -> dict[str, Any]:
    """The resolved recipe as JSON has it."""
    fields: dict[str, Any] = json.loads(json.dumps(asdict(run)))
    return fields


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
