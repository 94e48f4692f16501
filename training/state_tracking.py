"""Can a model follow a state for longer than it was taught to? RWKV-7 with eigenvalues in (0, 1) and in (-1, 1), and
attention.

Every model learns word problems (`word_problems.py`) of up to `trained_length` letters, and is then asked about words
of up to `tested_length`. Source of the claim: arXiv 2503.14456, sections 3 and 7.

B words, T letters, A alphabet, G elements of the group, D width.
"""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from mm_rwkv7.initialisation import initialise
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.whole import write_text
from training.study import StudyConfig, Task
from training.word_problems import WordProblem

WARMUP = 50  # steps


class Attention(nn.Module):
    """The baseline: causal, pre-norm `nn.TransformerEncoder` layers; positions are sinusoids without parameters."""

    def __init__(
        self, letters: int, answers: int, width: int, hidden: int, layers: int, heads: int, longest: int
    ) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.emb = nn.Embedding(letters, width)
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        for matrix in self.encoder.parameters():
            if matrix.ndim > 1:  # torch makes every layer a copy of the first
                nn.init.xavier_uniform_(matrix)
        self.head = nn.Linear(width, answers)
        rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        angles = torch.arange(longest)[:, None] * rates
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], dim=-1), persistent=False)

    def forward(self, letters: Tensor) -> Tensor:
        """(B, T) -> (B, T, G)"""
        T = letters.shape[1]
        assert isinstance(self.positions, Tensor)
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        logits: Tensor = self.head(self.encoder(self.emb(letters) + self.positions[:T], mask, is_causal=True))
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
    """One of MODELS, all of the same width. Attention has layers of its own number; their feed-forward is as wide as
    the model, or wider if that makes its parameters as many as RWKV-7's."""
    A, G = WordProblem.of(task.name, task.alphabet).table.shape
    if name != "attention":
        return _recurrent(A, G, task.layers, config, float(name.removeprefix("rwkv7 x")))

    def attention(hidden: int) -> Attention:
        heads = config.width // config.head_size
        return Attention(A, G, config.width, hidden, task.attention_layers, heads, config.tested_length)

    wanted = count(_recurrent(A, G, task.layers, config, 1.0))
    narrow, wider = (count(attention(hidden)) for hidden in (1, 2))
    return attention(max(config.width, 1 + math.ceil((wanted - narrow) / (wider - narrow))))


def count(model: nn.Module) -> int:
    """The number of its parameters."""
    return sum(p.numel() for p in model.parameters())


def _recurrent(letters: int, answers: int, layers: int, config: StudyConfig, multiplier: float) -> Recurrent:
    sizes = RWKV7Config(
        vocab_size=max(letters, answers),
        width=config.width,
        layers=layers,
        head_size=config.head_size,
        **{f"{rank}_rank": config.rank for rank in ("decay", "iclr", "value", "gate")},
        iclr_multiplier=multiplier,
    )
    return Recurrent(answers, sizes)


def train(
    model: nn.Module, problem: WordProblem, task: Task, config: StudyConfig, seed: int
) -> Iterator[dict[str, float]]:
    """Yields what each step came to."""
    attends = isinstance(model, Attention)
    peak = config.attention_learning_rate if attends else config.learning_rate
    steps = task.attention_steps if attends else task.steps
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    model.train()
    for step in range(steps):
        progress = (step + 1) / steps
        length = round(4 + (config.trained_length - 4) * min(1.0, 2 * progress))
        letters, products = problem.sample(config.batch, length, seed=2 * (seed * steps + step))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, (step + 1) / WARMUP, 2 * (1 - progress) + 0.01)
        logits = model(letters)
        loss = F.cross_entropy(logits.flatten(0, 1), products.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        accuracy = (logits[:, -1].argmax(-1) == products[:, -1]).float().mean()
        yield {"step": step + 1, "length": length, "loss": loss.item(), "accuracy": accuracy.item()}


@torch.no_grad()
def evaluate(model: nn.Module, problem: WordProblem, config: StudyConfig) -> list[float]:
    """The share of right answers after each letter (tested_length,) of words that no training drew (odd seeds). What is
    said after letter t is what is said about words of t letters."""
    model.eval()
    right = torch.zeros(config.tested_length)
    parts = max(1, config.tested_words // 32)
    for part in range(parts):
        letters, products = problem.sample(32, config.tested_length, seed=2 * part + 1)
        right += (model(letters).argmax(-1) == products).float().mean(0)
    return (right / parts).tolist()


def at(accuracy: Sequence[float], length: int) -> float:
    """Accuracy on words of about `length` letters: the mean over its last eighth, which many words make certain."""
    window = accuracy[length - max(1, length // 8) : length]
    return sum(window) / len(window)


def run_study(config: StudyConfig) -> str:
    """Train and test every model on every task with every seed. Each becomes a line of `results.jsonl` in the run's
    folder, and what has its line is not done again; `accuracy.png` is drawn anew after each. Returns the table of
    accuracies."""
    folder = Path(config.run)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.jsonl"
    wanted: list[dict[str, Any]] = [
        {"model": model, "seed": seed, "task": asdict(task), "settings": config.settings()}
        for seed in config.seeds
        for task in config.tasks
        for model in config.models
    ]
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith("\n"):  # a kill tore it
        write_text(path, "".join(lines := lines[:-1]))
    done = list(map(json.loads, lines))
    results = [result for result in done if {name: result.get(name) for name in wanted[0]} in wanted]
    for run in wanted:
        if not any(run.items() <= result.items() for result in results):
            results.append({**run, **_one(run["model"], Task(**run["task"]), config, run["seed"])})
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(results[-1]) + "\n")
        plot(results, config, folder / "accuracy.png")
    return table(results, config)


def _one(name: str, task: Task, config: StudyConfig, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    problem = WordProblem.of(task.name, task.alphabet)
    model = build_model(name, task, config)
    began = time.perf_counter()
    losses = []
    steps = task.attention_steps if isinstance(model, Attention) else task.steps
    with tqdm(total=steps, desc=f"{task.name}, {name}, seed {seed}", unit="step", mininterval=1) as bar:
        for record in train(model, problem, task, config, seed):
            losses.append(round(record["loss"], 4))
            bar.update()
            bar.set_postfix(loss=f"{record['loss']:.3f}", accuracy=f"{record['accuracy']:.2f}", refresh=False)
    seconds = time.perf_counter() - began
    return {
        "parameters": count(model),
        "seconds": round(seconds, 1),
        "losses": losses[:: max(1, len(losses) // 100)],
        "accuracy": [round(value, 4) for value in evaluate(model, problem, config)],
    }


def _curves(results: Sequence[dict[str, Any]], task: Task, model: str) -> list[list[float]]:
    return [run["accuracy"] for run in results if (run["task"], run["model"]) == (asdict(task), model)]


def table(results: Sequence[dict[str, Any]], config: StudyConfig) -> str:
    """Accuracy by length as Markdown, in percent: the seeds' mean, and their lowest and highest where they differ."""
    lengths = config.lengths()
    lines = ["| task | model | " + " | ".join(map(str, lengths)) + " |", "|---" * (len(lengths) + 2) + "|"]
    for task in config.tasks:
        for model in config.models:
            curves = _curves(results, task, model)
            cells = []
            for length in lengths:
                found = sorted(100 * at(curve, length) for curve in curves)
                spread = f" ({found[0]:.0f} to {found[-1]:.0f})" if found and found[-1] - found[0] >= 1 else ""
                cells.append(f"{sum(found) / len(found):.0f}{spread}" if found else "-")
            lines.append(f"| {task.name} | {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Sequence[dict[str, Any]], config: StudyConfig, path: Path) -> None:
    """Accuracy by length, a panel a task, a line a seed; the trained lengths are grey, the dotted line is a guess."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(config.tasks), 3.6), layout="constrained")
    panels = figure.subplots(1, len(config.tasks), sharey=True, squeeze=False)[0]
    lengths = sorted({round(2 ** (i / 4)) for i in range(8, 80) if 2 ** (i / 4) <= config.tested_length})
    for panel, task in zip(panels, config.tasks, strict=True):
        _, answers = WordProblem.of(task.name, task.alphabet).table.shape
        panel.set(
            title=f"{task.name}: layers {task.layers}, of attention {task.attention_layers}",
            xlabel="letters",
            ylim=(0, 1.03),
        )
        panel.set_xscale("log", base=2)
        panel.axvspan(lengths[0], config.trained_length, color="0.92")
        panel.axhline(1 / answers, color="0.5", linestyle=":", linewidth=1)
        for number, model in enumerate(config.models):
            for i, curve in enumerate(_curves(results, task, model)):
                told = [at(curve, length) for length in lengths]
                panel.plot(lengths, told, color=f"C{number}", label=None if i else model, linewidth=1.5)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("accuracy")
    if panels[0].lines[1:]:
        panels[0].legend(loc="lower left")
    figure.savefig(path, dpi=110)
