"""The commands about checkpoints: `encoders`, `inspect` and `convert`. `app.cli` makes commands of them."""

import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.options import AsJson, Debug
from app.output import print_json
from mm_rwkv7.command import check_writable
from mm_rwkv7.sources import check_source, locate


class Format(StrEnum):
    NATIVE = "native"
    HF = "hf"
    BLINKDL = "blinkdl"


def encoders(as_json: AsJson = False, debug: Debug = False) -> None:
    """List the encoders that are known by name.

    Tokens are those for a picture or a window of sound; the licence is that of the weights."""
    from encoders.catalogue import CATALOGUE, SOUNDS

    columns = ("name", "library", "width", "tokens", "licence")
    rows = [{column: getattr(entry, column) for column in columns} for entry in (*CATALOGUE, *SOUNDS)]
    if as_json:
        print_json(rows)
        return
    lines = [columns, *(tuple(str(value) for value in row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())


def inspect(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A checkpoint's file or folder, nano, or hf:...")],
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say what a checkpoint holds, without reading its weights."""
    check_source(file)
    from app.inspection import inspected

    found = inspected(file)
    if as_json:
        print_json(asdict(found))
    else:
        print(found.table())


def convert(
    source: Annotated[str, typer.Argument(metavar="IN", help="A checkpoint's file or folder, nano, or hf:...")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; a .pth file for blinkdl.")],
    to: Annotated[
        Format, typer.Option(metavar="FORMAT", help="native, hf (transformers) or blinkdl (LM alone).")
    ] = Format.NATIVE,
    warm_start: Annotated[bool, typer.Option("--warm-start", help="Begin an RWKV-7 from an RWKV-6.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a checkpoint in another format, bit for bit."""
    check_writable(out.resolve().parent)
    check_source(source)
    from mm_rwkv7.interop.convert import convert as write

    done = write(locate(source), out, to, warm_start)
    if done.start is not None:
        print("this model needs training before it is of use", file=sys.stderr)
        print("carried over:", *done.start.carried, file=sys.stderr)
        print("begun anew:", *done.start.initialised, file=sys.stderr)
        print("left behind:", *done.start.dropped, file=sys.stderr)
    if done.lost is not None:
        print(done.lost, file=sys.stderr)
    if as_json:
        print_json({"format": done.format, "out": str(done.out), "parameters": done.parameters})
    else:
        print(f"{done.out}: {done.parameters:,} parameters, from {done.format}")
