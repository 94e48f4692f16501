"""Writing one token after another at batch 1, against the bandwidth of memory and other implementations."""

from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Callable

import torch

from mm_rwkv7.bench.models import Samples, add_model_arguments, bytes_read, gathered, timed_in_turns, times_faster
from mm_rwkv7.bench.roofline import reading_rate
from mm_rwkv7.bench.timing import milliseconds, summary
from mm_rwkv7.decode import ModuleStepper, Stepper, stepper
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.weights import choose_device


def add_arguments(parser: ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--tokens", type=int, default=16, help="in each measurement (default 16)")


def rows(arguments: Namespace) -> list[dict[str, object]]:
    """One row per path. `limit_tokens_per_s` is the bandwidth over the bytes of all weights but the embedding table,
    which a step reads once; `share_of_limit` what was reached of it. The bandwidth is that of reading these very
    weights, which lie in one piece: another place may be read twice as fast. It moves while others use the memory, so
    it is measured right before and after every measurement of our paths; a precision's is the median of its own. The
    logits are computed for every token; choosing one of them is not measured."""
    if arguments.tokens < 1:
        raise ValueError(f"--tokens is {arguments.tokens}, expected 1 or more")
    device = choose_device(arguments.device)
    bandwidths: defaultdict[str, list[float]] = defaultdict(list)
    paths: list[str] = []

    def ours(dtype: str, model: RWKV7) -> Samples:
        weights = gathered(model)
        made: dict[str, Callable[[], float]] = {f"step {dtype}": _sample(stepper(model), model, arguments.tokens)}
        if dtype != "int8":  # the modules make all of it fp32 again for every token
            made[f"modules {dtype}"] = _sample(ModuleStepper(model), model, arguments.tokens)
        paths.extend(made)
        return {path: _between_readings(sample, weights, bandwidths[dtype]) for path, sample in made.items()}

    timings, known, models, missing = timed_in_turns(arguments, ours, "decode", arguments.tokens)
    found: list[dict[str, object]] = []
    for path, timing in timings.items():
        dtype = str(known[path]["dtype"])
        bandwidth = summary([rate / 1e9 for rate in bandwidths[dtype]])
        limit = bandwidth.median * 1e9 / bytes_read(models[dtype])
        rate = timing.rate(1)
        found.append(
            {
                "path": path,
                "shape": arguments.shape,
                "device": device.type,
                "threads": torch.get_num_threads(),
                **known[path],
                "ms_per_token": timing.as_dict(),
                "tokens_per_s": rate.as_dict(),
                "bandwidth_gb_per_s": bandwidth.as_dict(),
                "limit_tokens_per_s": round(limit, 1),
                "share_of_limit": float(f"{rate.median / limit:.3g}"),
                **times_faster(path, timings, paths),
            }
        )
    return [*found, *missing]


def _sample(step: Stepper, model: RWKV7, tokens: int) -> Callable[[], float]:
    """Milliseconds a token."""
    device = model.emb.weight.device
    ids = torch.randint(model.config.vocab_size, (tokens, 1), device=device)

    def write() -> None:
        state = model.initial_state()
        for token in ids:
            hidden, state = step(model.embed(token), state)
            step.logits(hidden)

    @torch.no_grad()
    def sample() -> float:
        return milliseconds(write, device) / tokens

    return sample


def _between_readings(
    sample: Callable[[], float], weights: torch.Tensor, bandwidths: list[float]
) -> Callable[[], float]:
    """The same sample; the bytes a second of reading the weights right before and after each go to `bandwidths`."""

    def measured() -> float:
        before = reading_rate(weights)
        found = sample()
        bandwidths.extend((before, reading_rate(weights)))
        return found

    return measured
