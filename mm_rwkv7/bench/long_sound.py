"""A long sound as a file: does memory stay where it is while it is read, and while it is tagged?"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mm_rwkv7.bench.memory import peak_of
from mm_rwkv7.bench.timing import milliseconds
from mm_rwkv7.pipeline import Pipeline

RATE, CHANNELS = 48_000, 2
MARKS = (1, 10)  # minutes, before the longest


def read_long_sound(checkpoint: str, minutes: int, device: str = "auto") -> list[dict[str, object]]:
    """One row for a minute, ten and the longest sound: tokens, size of the file and of the state, and of reading and
    tagging the seconds and the peak memory of the process, None where the system does not tell."""
    if minutes < 1:
        raise ValueError(f"--minutes is {minutes}, expected 1 or more")
    pipeline = Pipeline.from_pretrained(checkpoint, device)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for length in (*(mark for mark in MARKS if mark < minutes), minutes):
            path = Path(folder) / "sound.flac"
            write_sound(path, 60 * length)
            print(f"reading and tagging {length} min", file=sys.stderr)
            found.append(_measure(pipeline, path, length))
    return found


def write_sound(path: Path, seconds: int) -> None:
    """A FLAC of 48 kHz in stereo, written second by second: a tone at each side that changes every second, in noise."""
    import soundfile

    rng = np.random.default_rng(0)
    time = np.arange(RATE) / RATE
    with soundfile.SoundFile(path, "w", RATE, CHANNELS, subtype="PCM_16", format="FLAC") as file:
        for _ in range(seconds):
            tones = np.sin(2 * np.pi * rng.uniform(100, 7_000, CHANNELS) * time[:, None])
            file.write(0.3 * tones + rng.normal(0, 0.01, tones.shape))


def _measure(pipeline: Pipeline, path: Path, minutes: int) -> dict[str, object]:
    message = {"role": "user", "content": [{"type": "audio", "audio": path}]}
    row: dict[str, object] = {
        "minutes": minutes,
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "tokens": len(pipeline.processor.sound_placeholders(pipeline.processor.sound(path).samples)),
    }
    ways: dict[str, Callable[[], object]] = {
        "reading": lambda: pipeline.prefill([message]),
        "tagging": lambda: pipeline.tag(path),
    }
    for name, run in ways.items():
        taken, peak = cost(run, pipeline.device)
        row[f"{name}_s"] = round(taken / 1000, 1)
        row[f"{name}_peak_mb"] = None if peak is None else round(peak / 1e6)
    return row


def cost(run: Callable[[], object], device: torch.device) -> tuple[float, int | None]:
    """The milliseconds of a call and its peak memory; see `peak_of`."""
    taken: list[float] = []
    peak = peak_of(lambda: taken.append(milliseconds(run, device)), device)
    return taken[0], peak
