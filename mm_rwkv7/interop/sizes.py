"""The sizes of an RWKV-7, told by the shapes of its parameters and never by a formula, which published files break."""

import re
from collections.abc import Callable, Mapping, Sequence

# Which parameters, inside or outside the blocks, tell a size: of how many dimensions, and in which of them.
SIZES = {
    "vocab_size": (("emb.weight", "head.weight"), 2, 0),
    "width": (("ln_out.weight", "ln1.weight"), 1, 0),
    "head_size": (("time_mix.r_k",), 2, 1),
    "decay_rank": (("time_mix.w1",), 2, 1),
    "iclr_rank": (("time_mix.a1",), 2, 1),
    "value_rank": (("time_mix.v1",), 2, 1),
    "gate_rank": (("time_mix.g1",), 2, 1),
    "ffn_width": (("channel_mix.key.weight",), 2, 0),
}
BLOCK = re.compile(r"blocks\.(\d+)\.")


def sizes(shapes: Mapping[str, Sequence[int]], source: object, spell: Callable[[str], str]) -> dict[str, int]:
    """The fields of `RWKV7Config` for parameters of these shapes under the names of `RWKV7`. A ValueError lists what
    tells a size and is missing everywhere, as `spell` names it."""
    blocks = sorted({int(match[1]) for name in shapes if (match := BLOCK.match(name))})
    found = {"layers": len(blocks)}
    missing = []
    for size, (names, dimensions, dimension) in SIZES.items():
        places = [*names, *(f"blocks.{n}.{name}" for n in blocks for name in names)]
        telling = [shapes[place] for place in places if place in shapes and len(shapes[place]) == dimensions]
        if telling:
            found[size] = telling[0][dimension]
        elif size != "value_rank" or len(blocks) > 1:  # one block alone mixes in no values
            missing.append(spell(places[-1]))
    if missing:
        raise ValueError(f"{source} does not tell the sizes of its language model: missing {', '.join(missing)}")
    if found["ffn_width"] == 4 * found["width"]:
        del found["ffn_width"]  # the default
    return found
