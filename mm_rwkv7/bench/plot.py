"""Rows of `bench context` as a picture: speed and memory against context, both axes logarithmic."""

from pathlib import Path
from typing import Any, cast


def draw(rows: list[dict[str, object]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for colour, name in enumerate(dict.fromkeys(str(row["model"]) for row in rows)):
        own = [row for row in rows if row["model"] == name]
        style: dict[str, Any] = {"color": f"C{colour}", "marker": "o", "markersize": 3.5}
        contexts = [cast("int", row["context"]) for row in own]
        written = [cast("dict[str, float]", row["decode_tokens_per_s"]) for row in own]
        speed.plot(contexts, [rate["median"] for rate in written], label=f"{name}, writing", **style)
        lowest, highest = ([rate[end] for rate in written] for end in ("low", "high"))
        speed.fill_between(contexts, lowest, highest, color=f"C{colour}", alpha=0.2, linewidth=0)
        read = [(context, row["prefill_tokens_per_s"]) for context, row in zip(contexts, own, strict=True)]
        read = [(context, rate) for context, rate in read if rate is not None]
        if read:
            speed.plot(*zip(*read, strict=True), label=f"{name}, reading", linestyle="--", **style)
        memory.plot(contexts, [cast("float", row["memory_mb"]) for row in own], label=name, **style)
    first = rows[0]
    weights = cast("float", first["weights_mb"])
    memory.axhline(weights, color="grey", linestyle=":", label="weights of either model")
    speed.set_ylabel("tokens / s")
    memory.set_ylabel("state or cache, MB")
    for axes in (speed, memory):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("context, tokens")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1024:g}k"))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.grid(which="major", alpha=0.3)
        axes.legend(fontsize=8)
    where = "GPU" if first["device"] != "cpu" else f"CPU, {first['threads']} threads"
    millions = cast("int", first["parameters"]) / 1e6
    figure.suptitle(f"{millions:.0f} M parameters, {first['dtype']}, batch 1, {where}", fontsize=10)
    figure.savefig(path, format="png", dpi=110)
