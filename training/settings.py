"""What a recipe may say of a stage, and of the engine that takes its steps."""

from dataclasses import dataclass

LOGS = ("tensorboard", "wandb", "trackio")
PARTS = ("tower", "projector", "sound_encoder", "sound_projector", "lm", "state")
PROJECTORS = ("projector", "sound_projector")

# What a stage of each kind may train: some of these.
KINDS: dict[str, tuple[str, ...]] = {
    "tower": ("tower",),
    "tagging": ("sound_encoder",),
    "answer": tuple(part for part in PARTS if part != "state"),
    "align": PROJECTORS,
    "finetune": ("tower", *PROJECTORS, "lm"),
    "lora": (*PROJECTORS, "lm"),
    "state": ("state",),
    "text": ("lm",),
}
PACKED = ("align", "finetune", "lora", "state", "text")  # kinds whose batches are packs of conversations or texts


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters on the language model's linear maps that `maps` names; its vectors are trained in full."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    maps: tuple[str, ...] = ("receptance", "key", "value", "output")


@dataclass(frozen=True)
class StageConfig:
    """One stage of a run.

    kind: "tower" pretrains the tower on picture-caption pairs and attribute targets; "tagging" the sound encoder on
        what is heard and when; "answer" trains on questions and answers about one picture or sound each. The others
        read packs, of `context` tokens each, from the run's `sources`: "align" trains projectors, "finetune" the
        language model too, "lora" adapters on it, "state" only the state that it begins with, "text" is plain
        pre-training.
    train: the parts whose parameters change, out of `PARTS`; the others stay frozen.
    data: how often each source is drawn, relative to the others.
    batch: pictures and sounds a step, each of which answers up to `questions` of its questions from one shared state;
        of the kinds that read packs, packs a step over all processes.
    blind: leave pictures and sounds out, so that the language model learns the words alone.
    freeze_embedding: the language model's embedding stays as it is.
    average: "token" weighs every trained token of a step alike, "sample" every sample.
    l2wrap: RWKV-LM's penalty on the largest logit (see `cross_entropy`); 1e-4 there.
    schedule: after the warm-up "cosine" falls to the end, "wsd" stays, then falls along a line over the last `decay`
        of the steps.
    carried: of a "text" stage: each of the step's packs goes on where the last step's stopped, with its state, as one
        endless text (truncated back-propagation through time), instead of documents with a state of their own.
    ema: what the running average of the trained weights keeps of itself a step (0.999); the stage leaves the average.
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
    schedule: str = "cosine"
    decay: float = 0.1
    final_learning_rate: float = 0.02  # as a share of the peak
    weight_decay: float = 0.1
    clip: float = 1.0
    context: int = 2048
    freeze_embedding: bool = False
    average: str = "token"
    l2wrap: float = 0.0
    ema: float = 0.0
    lora: LoRAConfig | None = None
    carried: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"stage {self.name!r} has kind {self.kind!r}, expected one of {', '.join(KINDS)}")
        if unknown := set(self.train) - set(PARTS):
            raise ValueError(f"stage {self.name!r} trains {sorted(unknown)}, expected some of {', '.join(PARTS)}")
        if set(self.train) - set(KINDS[self.kind]):
            raise ValueError(
                f"stage {self.name!r} is of kind {self.kind!r} and trains {list(self.train)}, "
                f"expected {'some of ' if len(KINDS[self.kind]) > 1 else ''}{list(KINDS[self.kind])}"
            )
        if not self.train or (self.blind and self.train != ("lm",)):
            raise ValueError(f"stage {self.name!r} trains {list(self.train)}, which learns nothing from its batches")
        for name in ("steps", "batch", "questions", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"stage {self.name!r} has {name} {getattr(self, name)}, expected at least 1")
        for name, choices in (("schedule", ("cosine", "wsd")), ("average", ("token", "sample"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"stage {self.name!r} has {name} {getattr(self, name)!r}, expected one of {choices}")
        for name in ("decay", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"stage {self.name!r} has {name} {getattr(self, name)}, expected 0 or more, below 1")
        if (self.kind == "lora") != (self.lora is not None):
            raise ValueError(f"stage {self.name!r} is of kind {self.kind!r} and has lora {self.lora}")
        if self.carried and self.kind != "text":
            raise ValueError(f"stage {self.name!r} is of kind {self.kind!r}: only texts carry their state on")
        if not self.data or min(self.data.values()) < 0 or not any(self.data.values()):
            raise ValueError(f"stage {self.name!r} draws from {self.data}, expected sources with positive weights")

    @property
    def packed(self) -> bool:
        """Whether its batches are packs."""
        return self.kind in PACKED


@dataclass(frozen=True)
class SourceConfig:
    """Where a source of conversations or texts lies: a file or a folder (see docs/data.md), or `hf:owner/name` on the
    hub. `folder` is where the paths in a JSON file begin, `column` what a table of texts is called."""

    path: str
    folder: str | None = None
    column: str = "text"


@dataclass(frozen=True)
class EngineConfig:
    """How the steps are computed; it changes how fast and where, and not what is learned.

    parallel: what torchrun's processes share: "ddp" nothing but gradients, "fsdp" also weights and optimizer.
    context_parallel: so many processes share every pack of a "text" stage, a span of it each (see
        `context_parallel.py`), with "ddp".
    recompute: keep the input of every block only, and compute the rest again for the gradients.
    compile: let torch compile the blocks.
    on_bad_loss: at a loss that is no number, or above `spike` times the usual one (0: never), "stop" names the samples
        and ends the run, "skip" names them in the log and leaves the weights as they are.
    broken_share: the run stops when more than this share of the samples has a picture or sound that cannot be read.
    asynchronous: write checkpoints while the training goes on; by default on a GPU.
    log: further places for the log: tensorboard, wandb, trackio.
    """

    parallel: str = "ddp"
    context_parallel: int = 1
    recompute: bool = False
    compile: bool = False
    on_bad_loss: str = "stop"
    spike: float = 0.0
    broken_share: float = 0.01
    asynchronous: bool | None = None
    log: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        choices = {"parallel": ("ddp", "fsdp"), "on_bad_loss": ("stop", "skip")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"engine.{name} is {getattr(self, name)!r}, expected one of {known}")
        if self.context_parallel < 1:
            raise ValueError(f"engine.context_parallel is {self.context_parallel}, expected at least 1")
        if self.context_parallel > 1 and self.parallel != "ddp":
            # Shards are gathered by all processes at a block at once, spans come to it one after another.
            raise ValueError(
                f"engine.context_parallel is {self.context_parallel} and engine.parallel {self.parallel!r}: "
                "processes that share packs need all weights, expected 'ddp'"
            )
        if self.spike and self.spike <= 1:
            raise ValueError(f"engine.spike is {self.spike}, expected more than 1 time the usual loss, or 0")
        if unknown := set(self.log) - set(LOGS):
            raise ValueError(f"engine.log names {sorted(unknown)}, expected some of {LOGS}")
