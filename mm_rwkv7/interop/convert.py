"""From a checkpoint of any known format to our folder, to one for transformers, or its language model to a file under
BlinkDL's names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mm_rwkv7 import checkpoint
from mm_rwkv7.interop import blinkdl
from mm_rwkv7.interop.files import read
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.naming import PILE_TOKENIZERS
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.interop.warm_start import WarmStart, warm_start
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.replaceable import check_exported, check_native
from mm_rwkv7.whole import replacing_file


@dataclass(frozen=True)
class Converted:
    """What was read (its format), what was written where, and the number of its parameters. `start` says what a warm
    start carried over, and `lost` what the written file cannot hold and a reader has to know."""

    format: str
    out: Path
    parameters: int
    start: WarmStart | None = None
    lost: str | None = None


@dataclass(frozen=True)
class Writer:
    """One value of `to`. `check` raises ValueError where nothing may be written to a path, and `write` writes the model
    and returns what of it was written."""

    check: Callable[[Path], None]
    write: Callable[[MMRWKV7, Checkpoint, Path, str], nn.Module]


def convert(source: Path, out: Path, to: str = "native", warm: bool = False) -> Converted:
    """Read `source`, check it as a load would, and write it in the types that it is stored in, whole or not at all.

    `to` is one of `WRITERS`. `warm` begins an RWKV-7 from an RWKV-6. Raises ValueError, also where `out` is something
    that this does not write and must not replace.
    """
    if to not in WRITERS:
        raise ValueError(f"cannot convert to {to!r}, expected one of {', '.join(WRITERS)}")
    if out.exists() and out.resolve() == source.resolve():
        raise ValueError(f"{out} would replace what it is made from: name another place")
    WRITERS[to].check(out)  # before gigabytes are read
    start = warm_start(read(source, joined=False)) if warm else None
    opened = start.checkpoint if start else open_checkpoint(source)
    model = checkpoint.build(opened, dtype=None)
    written = WRITERS[to].write(model, opened, out, _card(opened, start))
    parameters = sum(parameter.numel() for parameter in written.parameters())
    lost = None
    if to == "blinkdl" and (kept := opened.config.vocabulary) is not None:
        lost = f"{out} cannot say which {len(kept)} World ids its rows stand for: keep the list of {opened.path}"
    return Converted(opened.format, out, parameters, start, lost)


def _write_native(model: MMRWKV7, opened: Checkpoint, out: Path, card: str) -> nn.Module:
    beside = opened.path if opened.path.is_dir() else opened.path.parent
    needed = PILE_TOKENIZERS if opened.config.tokenizer == "pile" else ()
    tokenizers = [beside / name for name in needed if (beside / name).is_file()]
    checkpoint.save(model, out, card, beside=tokenizers[:1])
    return model


def _check_blinkdl(out: Path) -> None:
    if out.suffix != ".pth":
        raise ValueError(f"{out} does not end in .pth, as a file under BlinkDL's names does")
    if out.exists():
        raise ValueError(f"{out} exists: remove it or name another place")


def _write_blinkdl(model: MMRWKV7, opened: Checkpoint, out: Path, card: str) -> nn.Module:
    if (multiplier := model.config.lm.iclr_multiplier) != 1:
        raise ValueError(f"{opened.path} has iclr_multiplier {multiplier}; a file under BlinkDL's names says 1")
    out.parent.mkdir(parents=True, exist_ok=True)
    # A tensor that is part of a mapped file would take the whole file with it.
    tensors = {name: tensor.clone() for name, tensor in blinkdl.theirs(model.lm.state_dict()).items()}
    with replacing_file(out) as draft, draft.open("wb") as file:  # a file's name would go into the file
        torch.save(tensors, file)
    return model.lm


def _write_hf(model: MMRWKV7, opened: Checkpoint, out: Path, card: str) -> nn.Module:
    from mm_rwkv7.hf.folder import export

    export(model, out, card)
    return model


WRITERS = {
    "native": Writer(check_native, _write_native),
    "blinkdl": Writer(_check_blinkdl, _write_blinkdl),
    "hf": Writer(check_exported, _write_hf),
}


def _card(opened: Checkpoint, start: WarmStart | None) -> str:
    title = opened.path.name if opened.path.is_dir() else opened.path.stem
    card = f"# {title}\n\nConverted by mm-rwkv7 from `{opened.path.name}` ({opened.format}).\n"
    if start is None:
        return card
    lists = (("Carried over", start.carried), ("Begun anew", start.initialised), ("Left behind", start.dropped))
    return f"{card}\n**This model needs training before it is of use.**\n" + "".join(
        f"\n{title}:\n\n" + "".join(f"- `{name}`\n" for name in names) for title, names in lists
    )
