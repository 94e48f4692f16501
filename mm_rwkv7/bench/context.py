"""Speed and memory against the length of what was read: RWKV-7 beside a Llama of the same size."""

import sys
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

import torch

from mm_rwkv7.bench.long_text import read_long_text
from mm_rwkv7.bench.memory import available
from mm_rwkv7.bench.peers import Unmeasured
from mm_rwkv7.bench.readers import Attention, Reader, Recurrent
from mm_rwkv7.bench.shapes import add_shape, parameters, shape
from mm_rwkv7.bench.timing import time_in_turns, timed
from mm_rwkv7.generate import PIECE
from mm_rwkv7.weights import choose_device

SHORTEST = 1024
SPARE = 1.2
WRITTEN = 4  # tokens in one measurement of decoding
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def add_arguments(parser: ArgumentParser) -> None:
    add_shape(parser)
    parser.add_argument("--longest", type=int, default=131072, help="the longest context (default 131072)")
    parser.add_argument("--seconds", type=float, default=60, help="each model reads for so long (default 60)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of decoding at each context (default 5)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument("--dtype", default="fp32", help="of weights and cache: fp32, bf16 or fp16 (default fp32)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it, too")
    parser.add_argument("--T", type=int, help="instead, read a text of so many tokens with --model: five rows")
    parser.add_argument("--model", default="nano", help="for --T: nano, hf:OWNER/REPO or a checkpoint folder")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row per model and context. `prefill_tokens_per_s` is that of the stretch since the context before, None where
    the time was up; `memory_mb` is the state or the cache, `weights_mb` the model."""
    if arguments.T is not None:
        return read_long_text(arguments.model, arguments.T, arguments.device)
    for name, least in (("longest", SHORTEST), ("rounds", 2)):
        if getattr(arguments, name) < least:
            raise ValueError(f"--{name} is {getattr(arguments, name)}, expected {least} or more")
    if arguments.dtype not in DTYPES:
        raise ValueError(f"--dtype is {arguments.dtype!r}, expected one of {', '.join(DTYPES)}")
    if arguments.plot is not None and not arguments.plot.parent.is_dir():
        raise ValueError(f"--plot is {arguments.plot}, whose folder does not exist")
    config, device, dtype = shape(arguments.shape), choose_device(arguments.device), DTYPES[arguments.dtype]
    recurrent = Recurrent(config, arguments.shape, dtype, device)
    readers: list[Reader] = [recurrent, Attention(config, parameters(recurrent.model), dtype, device)]
    contexts = [SHORTEST]
    while contexts[-1] * 2 <= arguments.longest:
        contexts.append(contexts[-1] * 2)
    with torch.inference_mode():
        read = {reader.name: _prefill(reader, contexts, arguments.seconds, device) for reader in readers}
        found, missing = [], []
        for context in contexts:
            too_large = {reader.name: reason for reader in readers if (reason := _too_large(reader, context, device))}
            missing += [Unmeasured(f"{name} at {context}", reason).row() for name, reason in too_large.items()]
            found += _decode([r for r in readers if r.name not in too_large], context, arguments.rounds, device)
    for row in found:
        row["prefill_tokens_per_s"] = read[str(row["model"])].get(int(str(row["context"])))
        row |= {"dtype": arguments.dtype, "device": device.type, "threads": torch.get_num_threads()}
    if arguments.plot is not None:
        from mm_rwkv7.bench.plot import draw

        draw(found, arguments.plot)
    return [*found, *missing]


def _too_large(reader: Reader, context: int, device: torch.device) -> str | None:
    """Why a memory of that context cannot be held, with something to spare for computing with it."""
    wanted, there = reader.nbytes_after(context), available(device)
    if there is None or wanted * SPARE < there:
        return None
    return f"it would have to keep {wanted / 1e9:.1f} GB, and {there / 1e9:.1f} GB are free"


def _prefill(reader: Reader, contexts: list[int], seconds: float, device: torch.device) -> dict[int, float]:
    """Context -> tokens a second on the way to it from the one before, as far as `seconds` go."""
    ids = torch.randint(reader.rows, (1, PIECE), device=device)
    reader.read(ids, reader.empty())
    memory, position, total = reader.empty(), 0, 0.0
    found: dict[int, float] = {}
    for context in contexts:
        before, taken = position, 0.0
        while position < context:
            if _too_large(reader, context, device) or total + taken > seconds * 1000:
                return found
            step, (_, memory) = timed(partial(reader.read, ids, memory), device)
            position, taken = position + PIECE, taken + step
        total += taken
        found[context] = round(1000 * (position - before) / taken, 1)
        print(f"{reader.name} has read {position} tokens", file=sys.stderr)
    return found


def _decode(readers: list[Reader], context: int, rounds: int, device: torch.device) -> list[dict[str, object]]:
    """Both in turns. A memory grows by what is written after it, so one of the context's size is made with room."""
    memories = {reader.name: reader.filled(context, (rounds + 1) * WRITTEN) for reader in readers}

    def write(reader: Reader) -> None:
        for token in torch.randint(reader.rows, (WRITTEN, 1, 1), device=device):
            _, memories[reader.name] = reader.read(token, memories[reader.name])

    print(f"decoding at {context}", file=sys.stderr)
    taken = time_in_turns({reader.name: partial(write, reader) for reader in readers}, rounds, device)
    return [
        {
            "model": reader.name,
            "parameters": parameters(reader.model),
            "context": context,
            "decode_tokens_per_s": taken[reader.name].rate(WRITTEN).as_dict(),
            "prefill_tokens_per_s": None,
            "memory_mb": round(reader.nbytes(memories[reader.name]) / 1e6, 3),
            "weights_mb": round(sum(p.nbytes for p in reader.model.parameters()) / 1e6, 1),
        }
        for reader in readers
    ]
