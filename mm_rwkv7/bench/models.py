"""A model of random weights in every precision asked for, and others' on the same weights: what `decode` and `prefill`
time."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import accumulate

import torch

from mm_rwkv7.bench.peers.language import language_peers
from mm_rwkv7.bench.shapes import add_shape, random_model, shape
from mm_rwkv7.bench.timing import Timing, sample_in_turns
from mm_rwkv7.int8 import quantise
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.weights import choose_device, choose_dtype

DTYPES = ("fp32", "bf16", "fp16", "int8")
ALIGNED = 256  # bytes
Samples = Mapping[str, Callable[[], float]]


def add_model_arguments(parser: ArgumentParser) -> None:
    add_shape(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default auto)")
    parser.add_argument(
        "--dtype", nargs="+", default=["fp32"], metavar="DTYPE", help=f"some of {', '.join(DTYPES)} (default fp32)"
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, at least 2 (default 5)")


def timed_in_turns(
    arguments: Namespace, ours: Callable[[str, RWKV7], Samples], which: str, tokens: int
) -> tuple[dict[str, Timing], dict[str, dict[str, object]], dict[str, RWKV7], list[dict[str, object]]]:
    """Milliseconds of our paths, which `ours` makes for a precision and its model, and of the peers' method `which`.

    -> timings, what is known of each path, our models by precision, and rows of the peers that are not to be had.
    """
    if wrong := [dtype for dtype in arguments.dtype if dtype not in DTYPES]:
        raise ValueError(f"--dtype is {wrong[0]!r}, expected some of {', '.join(DTYPES)}")
    if arguments.rounds < 2:
        raise ValueError(f"--rounds is {arguments.rounds}, expected 2 or more")
    device = choose_device(arguments.device)
    base = random_model(shape(arguments.shape), torch.float32, "cpu")
    models = {dtype: _in_precision(deepcopy(base), dtype, device) for dtype in arguments.dtype}
    samples: dict[str, Callable[[], float]] = {}
    known: dict[str, dict[str, object]] = {}
    for dtype, model in models.items():
        for path, sample in ours(dtype, model).items():
            samples[path] = sample
            known[path] = {"dtype": dtype, "weights_mb": round(bytes_read(model) / 1e6, 1)}
    with torch.no_grad(), language_peers(base.to(device), arguments.dtype, arguments.peers) as (peers, missing):
        for peer in peers:
            method: Callable[[int], float] = getattr(peer, which)
            samples[peer.name] = partial(method, tokens)
            known[peer.name] = {"dtype": peer.dtype, "weights_mb": round(peer.weight_bytes / 1e6, 1)}
        timings = sample_in_turns(samples, arguments.rounds)
    return timings, known, models, [absent.row() for absent in missing]


def times_faster(path: str, timings: Mapping[str, Timing], ours: Sequence[str]) -> dict[str, float]:
    """How many times faster a path of ours is than each path that is not."""
    if path not in ours:
        return {}
    others = {other: timing for other, timing in timings.items() if other not in ours}
    return {f"times {other}": round(timing.median / timings[path].median, 2) for other, timing in others.items()}


def bytes_read(model: RWKV7) -> int:
    """By one step: every weight, but of the embedding table a row."""
    return sum(tensor.nbytes for tensor in model.state_dict().values()) - model.emb.weight.nbytes


def gathered(model: RWKV7) -> torch.Tensor:
    """Puts all that a step reads, every weight but the embedding table, into one buffer, which comes back as integers.
    How fast memory is read depends on where it lies, so a limit must be measured there."""
    tensors = [t for name, t in (*model.named_parameters(), *model.named_buffers()) if not name.startswith("emb.")]
    ends = list(accumulate(-(-tensor.nbytes // ALIGNED) * ALIGNED for tensor in tensors))
    buffer = torch.zeros(ends[-1] // 8, dtype=torch.int64, device=model.emb.weight.device)
    for tensor, start in zip(tensors, [0, *ends], strict=False):
        place = buffer.view(torch.uint8)[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        place.copy_(tensor.detach())
        tensor.data = place
    return buffer


def _in_precision(model: RWKV7, dtype: str, device: torch.device) -> RWKV7:
    """As a checkpoint would have been opened."""
    model = model.to(device, choose_dtype(dtype, device))
    if dtype == "int8":
        quantise(model)
    return model
