"""Reading a text at batch 1, against the speed of its matrix products and other implementations."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable

import torch

from mm_rwkv7.bench.models import DTYPES, Samples, add_model_arguments, timed_in_turns, times_faster
from mm_rwkv7.bench.roofline import matrix_rate
from mm_rwkv7.bench.timing import milliseconds
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.weights import choose_device, choose_dtype


def add_arguments(parser: ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--T", type=int, default=1024, help="tokens (default 1024)")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row per path. `products_gflop` are the matrix products of all tokens, and of the head for the last one;
    `share_of_products` is their time at the speed of one large product in this run, over the time taken."""
    if arguments.T < 1:
        raise ValueError(f"--T is {arguments.T}, expected 1 or more")
    device = choose_device(arguments.device)
    paths: list[str] = []

    def ours(dtype: str, model: RWKV7) -> Samples:
        paths.append(f"hidden {dtype}")
        return {f"hidden {dtype}": _sample(model, arguments.T)}

    timings, known, models, missing = timed_in_turns(arguments, ours, "prefill", arguments.T)
    rates = {dtype: matrix_rate(choose_dtype(dtype, device), device) for dtype in DTYPES if dtype in models}
    flops = _flops(models[arguments.dtype[0]], arguments.T)
    found: list[dict[str, object]] = []
    for path, timing in timings.items():
        rate = rates[str(known[path]["dtype"])]
        found.append(
            {
                "path": path,
                "shape": arguments.shape,
                "T": arguments.T,
                "device": device.type,
                "threads": torch.get_num_threads(),
                **known[path],
                "ms": timing.as_dict(),
                "tokens_per_s": timing.rate(arguments.T).as_dict(),
                "products_gflop": round(flops / 1e9, 1),
                "matrix_gflop_per_s": round(rate / 1e9),
                "share_of_products": float(f"{flops / rate / timing.median * 1000:.3g}"),
                **times_faster(path, timings, paths),
            }
        )
    return [*found, *missing]


def _sample(model: RWKV7, T: int) -> Callable[[], float]:
    device = model.emb.weight.device
    ids = torch.randint(model.config.vocab_size, (1, T), device=device)

    def read() -> None:
        hidden, _ = model.hidden(model.embed(ids))
        model.head(hidden[:, -1])

    @torch.no_grad()
    def sample() -> float:
        return milliseconds(read, device)

    return sample


def _flops(model: RWKV7, T: int) -> int:
    """Two operations for each weight of a matrix and token; int8 matrices are filled up, so sizes are the config's."""
    config = model.config
    D = config.width
    ranks = config.decay_rank + config.iclr_rank + config.gate_rank
    layers = config.layers * (4 * D * D + 2 * D * config.hidden + 2 * D * ranks)
    residual = (config.layers - 1) * 2 * D * config.value_rank
    return 2 * (T * (layers + residual) + D * config.vocab_size)
