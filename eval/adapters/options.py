"""What other harnesses ask of generation, as our own `Sampling`."""

from collections.abc import Mapping
from typing import Any

from mm_rwkv7.sampling import Sampling

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
WITHOUT_EFFECT = {"num_beams": (1, None), "use_cache": (True, False, None), "return_dict_in_generate": (True, False)}


def sampling(options: Mapping[str, Any], max_new_tokens: int) -> Sampling:
    """Generation options as tasks give them. Greedy unless `do_sample` or a temperature without it says otherwise;
    `max_new_tokens` where they set no length. A ValueError names an option that we cannot follow."""
    left = dict(options)
    until = left.pop("until", None) or ()
    lengths = [value for value in (left.pop(name, None) for name in LENGTHS) if value is not None]
    temperature = float(left.pop("temperature", None) or 0.0)
    sampled = left.pop("do_sample", None)
    if sampled and not temperature:
        temperature = 1.0
    top_p, top_k = left.pop("top_p", None), left.pop("top_k", None)
    unknown = {name: value for name, value in left.items() if value not in WITHOUT_EFFECT.get(name, ())}
    if unknown:
        raise ValueError(f"the task asks for {unknown}, which this model does not do")
    return Sampling(
        max_new_tokens=int(lengths[0]) if lengths else max_new_tokens,
        temperature=temperature if sampled is not False else 0.0,
        top_p=1.0 if top_p is None else float(top_p),
        top_k=int(top_k or 0),
        seed=0,
        stop=(until,) if isinstance(until, str) else tuple(filter(None, until)),
    )


def place(device: str | None) -> str:
    """Our name of a device. The harnesses say cuda:0 to whoever names none, on every machine."""
    return "auto" if device in (None, "cuda:0") else device
