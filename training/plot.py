"""A run's log as a picture."""

import json
from pathlib import Path


def plot_loss(folder: Path) -> None:
    """Draw `loss.png` from `log.jsonl`: the loss of every step, smoothed, one colour a stage."""
    from matplotlib.figure import Figure

    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["loss"] is None:  # a step that was skipped because of it
            continue
        steps, losses = curves.setdefault(record["stage"], ([], []))
        previous = losses[-1] if losses else record["loss"]
        steps.append(record["step"])
        losses.append(0.95 * previous + 0.05 * record["loss"])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (running mean)", yscale="log")
    for name, (steps, losses) in curves.items():
        axes.plot(steps, losses, label=name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
