"""A long text in pieces: does memory stay where it is, and does speed?

T tokens of the text.
"""

import resource
import sys
import time
from argparse import ArgumentParser, Namespace

import torch
from tqdm import tqdm

from mm_rwkv7.generate import PIECE, prefill
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.state import State

HELP = "read a long text in pieces: tokens a second and peak memory as it grows"
REPORTS = 5


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default="nano", help="nano, hf:OWNER/REPO or a checkpoint folder")
    parser.add_argument("--T", type=int, default=1_000_000, help="tokens to read (default one million)")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row after each fifth of the text: tokens read, tokens a second since the last row, peak memory so far."""
    if arguments.T < REPORTS * PIECE:
        raise ValueError(f"--T is {arguments.T}, expected at least {REPORTS * PIECE}")
    pipeline = Pipeline.from_pretrained(arguments.model)
    readable = torch.tensor(pipeline.tokenizer.encode("the quick brown fox jumps over the lazy dog 0123456789\n"))
    generator = torch.Generator().manual_seed(0)
    state: State | None = None
    found: list[dict[str, object]] = []
    began = time.perf_counter()
    pieces = arguments.T // PIECE
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
                    "peak_memory_mb": round(_peak_memory() / 1e6, 1),
                    "state_mb": round(sum(t.nbytes for layer in state.layers for t in layer) / 1e6, 3),
                }
            )
            began, last = now, piece
    return found


def _peak_memory() -> int:
    """Bytes of this process at its largest."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
