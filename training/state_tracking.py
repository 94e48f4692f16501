"""Can a model follow a state for longer than it was taught to? RWKV-7 with eigenvalues in (0, 1) and in (-1, 1), and
attention.

Every model learns word problems (`word_problems.py`) of up to `trained_length` letters, and is then asked about words
of up to `tested_length`. Source of the claim: arXiv 2503.14456, sections 3 and 7.

B words, T letters, A alphabet, G elements of the group, D width.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mm_rwkv7.initialisation import initialise
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.typed import build
from training.word_problems import WordProblem

MODELS = ("rwkv7 x1", "rwkv7 x2", "attention")  # what the in-context learning rate is multiplied by


@dataclass(frozen=True)
class Task:
    """A word problem, and what is trained on it. `alphabet`: see `WordProblem.of`."""

    name: str
    alphabet: str
    layers: int
    steps: int


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
    study: str = "state_tracking"
    models: tuple[str, ...] = MODELS
    tested_words: int = 256

    def __post_init__(self) -> None:
        if not 4 <= self.trained_length < self.tested_length:
            raise ValueError(
                f"words of {self.trained_length} letters are trained and of {self.tested_length} tested, "
                "expected at least 4, and more"
            )

    def lengths(self) -> list[int]:
        """Of the words that the results tell about: powers of two from 4 on."""
        return [2**i for i in range(2, 32) if 2**i <= self.tested_length]


class Attention(nn.Module):
    """The baseline: causal `nn.TransformerEncoder` layers. Positions are sinusoids without parameters; training shifts
    each batch to a random place, so that at no tested length the model meets a position that it has never seen."""

    def __init__(self, letters: int, answers: int, width: int, layers: int, heads: int, longest: int) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.emb = nn.Embedding(letters, width)
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, answers)
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        angles = torch.arange(longest)[:, None] * rates
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], dim=-1), persistent=False)

    def forward(self, letters: Tensor) -> Tensor:
        """(B, T) -> (B, T, G)"""
        T = letters.shape[1]
        assert isinstance(self.positions, Tensor)
        start = int(torch.randint(len(self.positions) - T + 1, ())) if self.training else 0
        x = self.emb(letters) + self.positions[start : start + T]
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        logits: Tensor = self.head(self.encoder(x, mask, is_causal=True))
        return logits


class Recurrent(nn.Module):
    """Our RWKV7, whose head is cut to the answers where they are fewer than the letters and the other way round."""

    def __init__(self, answers: int, config: RWKV7Config) -> None:
        super().__init__()
        self.answers = answers
        self.lm = RWKV7(config)
        initialise(self.lm)

    def forward(self, letters: Tensor) -> Tensor:
        """(B, T) -> (B, T, G)"""
        logits, _ = self.lm(letters)
        return logits[..., : self.answers]


def build_model(name: str, task: Task, config: StudyConfig) -> nn.Module:
    """One of MODELS, of the same width and number of layers as the others."""
    problem = WordProblem.of(task.name, task.alphabet)
    A, G = problem.table.shape
    if name == "attention":
        heads = config.width // config.head_size
        return Attention(A, G, config.width, task.layers, heads, config.tested_length)
    return Recurrent(
        G,
        RWKV7Config(
            vocab_size=max(A, G),
            width=config.width,
            layers=task.layers,
            head_size=config.head_size,
            **{f"{rank}_rank": config.rank for rank in ("decay", "iclr", "value", "gate")},
            iclr_multiplier=float(name.removeprefix("rwkv7 x")),
        ),
    )


def train(
    model: nn.Module, problem: WordProblem, task: Task, config: StudyConfig, seed: int
) -> Iterator[dict[str, float]]:
    """Yields what each step came to."""
    peak = config.attention_learning_rate if isinstance(model, Attention) else config.learning_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    model.train()
    for step in range(task.steps):
        progress = (step + 1) / task.steps
        length = round(4 + (config.trained_length - 4) * min(1.0, 2 * progress))
        letters, products = problem.sample(config.batch, length, seed=2 * (seed * task.steps + step))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / 50, 2 * (1 - progress) + 0.01)
        logits = model(letters)
        loss = F.cross_entropy(logits.flatten(0, 1), products.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        accuracy = (logits[:, -1].argmax(-1) == products[:, -1]).float().mean()
        yield {"step": step + 1, "length": length, "loss": loss.item(), "accuracy": accuracy.item()}


@torch.no_grad()
def test(model: nn.Module, problem: WordProblem, config: StudyConfig) -> list[float]:
    """The share of right answers after each letter (tested_length,) of words that no training drew (odd seeds). What is
    said after letter t is what is said about words of t letters."""
    model.eval()
    right = torch.zeros(config.tested_length)
    parts = max(1, config.tested_words // 32)
    for part in range(parts):
        letters, products = problem.sample(32, config.tested_length, seed=2 * part + 1)
        right += (model(letters).argmax(-1) == products).float().mean(0)
    return (right / parts).tolist()


def at(accuracy: list[float], length: int) -> float:
    """Accuracy on words of about `length` letters: the mean over its last eighth, which many words make certain."""
    window = accuracy[length - max(1, length // 8) : length]
    return sum(window) / len(window)


def load(path: str | Path, changes: Iterable[tuple[str, Any]] = ()) -> StudyConfig:
    fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    config: StudyConfig = build(StudyConfig, {**fields, **dict(changes)}, "recipe")
    return config


def run(config: StudyConfig) -> Path:
    """Every model on every task and seed, each a line in `results.jsonl`; what has its line is not done again. Returns
    the plot."""
    folder = Path(config.run)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    done = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    results = {key(result): result for result in map(json.loads, done)}
    for seed in config.seeds:
        for task in config.tasks:
            for name in config.models:
                wanted = {"model": name, "seed": seed, "task": asdict(task)}
                if key(wanted) in results:
                    continue
                result = wanted | one(name, task, config, seed)
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(result) + "\n")
    return path


def one(name: str, task: Task, config: StudyConfig, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    problem = WordProblem.of(task.name, task.alphabet)
    model = build_model(name, task, config)
    began = time.perf_counter()
    bar = tqdm(
        train(model, problem, task, config, seed), f"{task.name} {name} {seed}", total=task.steps, mininterval=10
    )
    losses = []
    for record in bar:
        losses.append(round(record["loss"], 4))
        bar.set_postfix({k: f"{v:.3g}" for k, v in record.items()}, refresh=False)
    seconds = time.perf_counter() - began
    accuracy = test(model, problem, config)
    told = {length: round(at(accuracy, length), 4) for length in config.lengths()}
    print(name, task, seed, f"{seconds:.0f} s", told, flush=True)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "losses": losses[:: max(1, len(losses) // 100)],
        "accuracy": [round(value, 4) for value in accuracy],
    }


def key(result: dict[str, Any]) -> str:
    return json.dumps([result["model"], result["seed"], result["task"]], sort_keys=True)


if __name__ == "__main__":
    import sys

    run(load(sys.argv[1]))
