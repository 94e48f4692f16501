"""A long text in pieces: does memory stay where it is, and does speed?

T tokens of the text.
"""

import sys
import time

import torch
from tqdm import tqdm

from mm_rwkv7.bench.memory import process_peak
from mm_rwkv7.generate import PIECE, prefill
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.state import State

REPORTS = 5


def read_long_text(checkpoint: str, T: int, device: str = "auto") -> list[dict[str, object]]:
    """One row after each fifth of the text: tokens read, tokens a second since the last row, peak memory so far."""
    if T < REPORTS * PIECE:
        raise ValueError(f"--T is {T}, expected at least {REPORTS * PIECE}")
    pipeline = Pipeline.from_pretrained(checkpoint, device)
    readable = torch.tensor(pipeline.tokenizer.encode("the quick brown fox jumps over the lazy dog 0123456789\n"))
    generator = torch.Generator().manual_seed(0)
    state: State | None = None
    found: list[dict[str, object]] = []
    began = time.perf_counter()
    pieces = T // PIECE
    marks = {pieces * (i + 1) // REPORTS for i in range(REPORTS)}
    last = 0
    for piece in tqdm(range(1, pieces + 1), unit="piece", file=sys.stderr):
        choice = torch.randint(len(readable), (1, PIECE), generator=generator)
        _, state = prefill(pipeline.model, readable[choice].to(pipeline.device), state)
        if piece in marks:
            now = time.perf_counter()
            found.append(
                {
                    "tokens": piece * PIECE,
                    "tokens_per_s": round((piece - last) * PIECE / (now - began)),
                    "peak_memory_mb": round(process_peak() / 1e6, 1),
                    "state_mb": round(sum(t.nbytes for layer in state.layers for t in layer) / 1e6, 3),
                }
            )
            began, last = now, piece
    return found
