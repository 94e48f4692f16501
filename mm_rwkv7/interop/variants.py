"""Relatives of RWKV-7 that this project does not compute, told by their tensors' names so that they can be refused by
theirs."""

import re
from collections.abc import Iterable

RWKV6 = "RWKV-6 (x060)"
# The first that matches names the variant, so what a later version added comes before what it kept.
MARKS = (
    (re.compile(r"(^|\.)rosa"), "RWKV-8 with ROSA"),
    (re.compile(r"blocks\.\d+\.qkv\.enn"), "RWKV-8 hybrid (x080 with attention)"),
    (re.compile(r"\.ffn\.enn\."), "RWKV-8 (x080, DeepEmbed)"),
    (re.compile(r"blocks\.\d+\.qkv\."), "RWKV-7b (x070b: DeepEmbed and attention)"),
    (re.compile(r"\.ffn\.s(_emb|[012]$)"), "RWKV-7a (x070a: DeepEmbed)"),
    (re.compile(r"\.(time_maa_\w+|attn\.bonus)$"), RWKV6),
    (re.compile(r"\.(time_faaaa|time_mix_g)$"), "RWKV-5 (x052)"),
    (re.compile(r"\.time_first$"), "RWKV-4"),
    (re.compile(r"\.time_state$"), "a tuned initial state, which is no model"),
)


def variant(names: Iterable[str]) -> str | None:
    """The name of the variant whose marks are among `names`, None where there are none."""
    names = list(names)
    for mark, name in MARKS:
        if any(mark.search(given) for given in names):
            return name
    return None
