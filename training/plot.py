"""A run's log as a picture."""

import json
from pathlib import Path


def plot_loss(folder: Path) -> None:
    """Draw `loss.png` from `log.jsonl`: the loss of every step, and smoothed, one colour a stage."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    curves: dict[str, tuple[list[int], list[float], list[float]]] = {}
    for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["loss"] is None:  # a step that was skipped because of it
            continue
        steps, losses, means = curves.setdefault(record["stage"], ([], [], []))
        previous = means[-1] if means else record["loss"]
        steps.append(record["step"])
        losses.append(record["loss"])
        means.append(0.95 * previous + 0.05 * record["loss"])
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss, and its running mean", yscale="log")
    for number, (name, (steps, losses, means)) in enumerate(curves.items()):
        axes.plot(steps, losses, color=f"C{number}", alpha=0.3, linewidth=0.8)
        axes.plot(steps, means, color=f"C{number}", label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(folder / "loss.png", dpi=120)
