"""`python -m mm_rwkv7.bench <what> [--peers DIR] [--json]`: results on stdout, progress on stderr."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mm_rwkv7.command import Parser, run_command

SIDE_BY_SIDE = 8
# What each measures; its module is imported when it is the one that is asked for: all of them import torch.
BENCHES = {
    "wkv": "the WKV-7 recurrence: forward, and forward with backward, of each path",
    "decode": "tokens a second when writing, as a share of what the memory's bandwidth allows, beside other "
    "implementations",
    "prefill": "tokens a second when reading, as a share of what the matrix products allow, beside other "
    "implementations",
    "train": "one training step with our kernels and with plain torch: tokens a second and memory",
    "context": "tokens a second and memory against context, beside a same-size Llama; with --T, a long text in pieces. "
    "Decoding is measured at each context with a state or cache of that size that holds random values; texts are read "
    "in pieces, up to the longest context or for --seconds, whichever ends first.",
    "sound": "seconds to encode a sound, by its length, beside AST of the same width and depth on the same patches; "
    "random weights, fp32, one window as long as the sound; with --minutes, a long file through a whole model",
    "answers": "questions a second: each with its picture by itself, and many about several pictures at once",
}

PEERS_HELP = "folder of checkouts to measure beside ours: llama.cpp (built), RWKV-LM, wind_rwkv, flash-linear-attention"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one measurement and prints its rows; returns the exit code (2: bad usage)."""
    parser = Parser(prog="python -m mm_rwkv7.bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    arguments = sys.argv[1:] if argv is None else argv
    named = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name, measures in BENCHES.items():
        command = commands.add_parser(name, help=measures, description=measures)
        command.add_argument("--json", action="store_true", help="print a list of rows as JSON")
        command.add_argument("--peers", type=Path, metavar="DIR", help=PEERS_HELP)
        if name == named:
            _module(name).add_arguments(command)
    return run_command(parser, arguments, _measure)


def _module(name: str) -> Any:
    return import_module(f"mm_rwkv7.bench.{name}")


def _measure(options: Namespace) -> None:
    if options.peers is not None and not options.peers.is_dir():
        raise ValueError(f"--peers is {options.peers}, expected a folder")
    rows = _module(options.bench).rows(options)
    print(json.dumps(rows, indent=2) if options.json else as_table(rows))


def as_table(rows: list[dict[str, object]]) -> str:
    """Rows become columns side by side, one line for each figure that any of them has; many rows stay lines. What was
    not measured stands below."""
    measured = [row for row in rows if "not_measured" not in row]
    names = list(dict.fromkeys(name for row in measured for name in row))
    lines = [[name, *(_cell(row.get(name)) for row in measured)] for name in names]
    if len(measured) > SIDE_BY_SIDE:
        lines = [list(line) for line in zip(*lines, strict=True)]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    missing = [f"not measured: {row['path']} ({row['not_measured']})" for row in rows if "not_measured" in row]
    return "\n".join([*table, *missing])


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
    return "" if value is None else str(value)


if __name__ == "__main__":
    sys.exit(main())
