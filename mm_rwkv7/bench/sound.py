"""What hearing costs against the length of the sound: the RWKV-7 encoder beside AST, whose attention is quadratic.

Each reads the whole spectrogram as one window, so that every moment may know of every other.
"""

import math
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from encoders.ast import AST, PATCH, ASTConfig
from encoders.birwkv7 import BASE, SMALL, TINY, BiRWKV7, BiRWKV7Config
from encoders.sound import SoundEncoder
from encoders.spectrogram import Spectrogram
from mm_rwkv7.bench.long_sound import cost, read_long_sound
from mm_rwkv7.bench.peers import Unmeasured
from mm_rwkv7.ops import wkv7
from mm_rwkv7.weights import choose_device

SIZES = {"tiny": TINY, "small": SMALL, "base": BASE}
LENGTHS = (10, 30, 60, 180, 600, 1800, 3600)
FRAMES = 100  # a second


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--size", default="base", choices=list(SIZES), help="A-RWKV's tiny, small or base (default)")
    parser.add_argument("--longest", type=int, default=3600, help="seconds of the longest sound (default 3600)")
    parser.add_argument(
        "--limit", type=float, default=60, help="an encoder stops before a run that is to take longer (default 60 s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it, too")
    parser.add_argument("--minutes", type=int, help="instead, memory while --model reads and tags 1, 10 and so many")
    parser.add_argument("--model", default="nano", help="for --minutes: nano, hf:OWNER/REPO or a checkpoint folder")


def rows(arguments: Namespace) -> list[dict[str, Any]]:
    """One row per encoder and length. `peak_mb` is the whole process's memory, None where the system does not tell."""
    if arguments.minutes is not None:
        return read_long_sound(arguments.model, arguments.minutes, arguments.device)
    if arguments.plot is not None and not arguments.plot.parent.is_dir():
        raise ValueError(f"--plot is {arguments.plot}, whose folder does not exist")
    device = choose_device(arguments.device)
    found: list[dict[str, Any]] = []
    taken: dict[str, list[tuple[int, float]]] = {"RWKV-7": [], "AST": []}
    with torch.inference_mode():
        for seconds in (length for length in LENGTHS if length <= arguments.longest):
            for name, known in taken.items():
                if (wanted := expected(known, seconds)) > arguments.limit:
                    reason = f"it would take about {wanted:.0f} s, {known[-1][0]} s of sound took {known[-1][1]} s"
                    found.append(Unmeasured(f"{name} at {seconds} s", reason).row())
                    continue
                row = measure(name, SIZES[arguments.size], seconds, device)
                known.append((seconds, row["seconds"]))
                found.append(row)
    if arguments.plot is not None:
        draw([row for row in found if "not_measured" not in row], arguments.plot)
    return found


def expected(known: list[tuple[int, float]], length: int) -> float:
    """Seconds that a sound of this length is to take if they grow on as they did over the last two lengths, of which
    `known` has (length, seconds); at least in proportion."""
    if not known:
        return 0.0
    (last, seconds), power = known[-1], 1.0
    if len(known) > 1:
        before, sooner = known[-2]
        power = max(1.0, math.log(seconds / sooner) / math.log(last / before))
    return seconds * (length / last) ** power


def measure(name: str, size: BiRWKV7Config, seconds: int, device: torch.device) -> dict[str, Any]:
    """Encode one sound of so many seconds, and a short one before it to warm up."""
    frames = seconds * FRAMES // PATCH * PATCH
    encoder = _encoder(name, size, frames).to(device).eval()
    windows = torch.randn(1, frames, Spectrogram().bins, device=device)
    there = torch.tensor([frames], device=device)
    short = _encoder(name, size, 10 * PATCH).to(device).eval()
    short(windows[:, : 10 * PATCH], there.clamp(max=10 * PATCH))
    taken, peak = cost(lambda: encoder(windows, there), device)
    return {
        "encoder": name,
        "parameters": sum(p.numel() for n, p in encoder.named_parameters() if "position" not in n),
        "length_s": seconds,
        "tokens": encoder.tokens,
        "seconds": round(taken / 1000, 3),
        "peak_mb": None if peak is None else round(peak / 1e6),
        "device": device.type,
        "threads": torch.get_num_threads(),
    }


def _encoder(name: str, size: BiRWKV7Config, frames: int) -> SoundEncoder:
    spectrogram = Spectrogram(frames=frames)
    if name == "AST":
        heads = size.width // size.head_size
        return AST(ASTConfig(size.width, size.layers, heads, 4 * size.width, PATCH, spectrogram))
    return BiRWKV7(replace(size, spectrogram=spectrogram), wkv7)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds and memory against the length of the sound, both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure = Figure(figsize=(9, 4), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name in dict.fromkeys(row["encoder"] for row in rows):
        own = [row for row in rows if row["encoder"] == name]
        lengths = [row["length_s"] for row in own]
        label = f"{name}, {own[0]['parameters'] / 1e6:.0f} M"
        time.plot(lengths, [row["seconds"] for row in own], marker="o", label=label)
        memory.plot(lengths, [row["peak_mb"] for row in own], marker="o", label=label)
    time.set_ylabel("seconds to encode")
    memory.set_ylabel("memory of the process, MB")
    for axes in (time, memory):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("length of the sound")
        axes.set_xticks(LENGTHS, map(_length, LENGTHS), fontsize=8)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    first = rows[0]
    where = "GPU" if first["device"] != "cpu" else f"CPU, {first['threads']} thread{'s' * (first['threads'] > 1)}"
    figure.suptitle(f"one window as long as the sound, fp32, batch 1, {where}", fontsize=10)
    figure.savefig(path, format="png", dpi=110)


def _length(seconds: int) -> str:
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 3600 else f"{seconds // 3600} h"
