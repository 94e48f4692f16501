"""`python -m mm_rwkv7.bench <what> [--peers DIR] [--json]`: results on stdout, progress on stderr."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from mm_rwkv7.bench import answers, context, decode, prefill, sound, train, wkv
from mm_rwkv7.command import Parser, run_command

SIDE_BY_SIDE = 8
BENCHES = {
    "wkv": wkv,
    "decode": decode,
    "prefill": prefill,
    "train": train,
    "context": context,
    "sound": sound,
    "answers": answers,
}

PEERS_HELP = "folder of checkouts to measure beside ours: llama.cpp (built), RWKV-LM, wind_rwkv, flash-linear-attention"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one measurement and prints its rows; returns the exit code (2: bad usage)."""
    parser = Parser(prog="python -m mm_rwkv7.bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, bench in BENCHES.items():
        command = commands.add_parser(name, help=bench.HELP, description=bench.HELP)
        command.add_argument("--json", action="store_true", help="print a list of rows as JSON")
        command.add_argument("--peers", type=Path, metavar="DIR", help=PEERS_HELP)
        bench.add_arguments(command)
    return run_command(parser, argv, _measure)


def _measure(options: Namespace) -> None:
    if options.peers is not None and not options.peers.is_dir():
        raise ValueError(f"--peers is {options.peers}, expected a folder")
    rows = BENCHES[options.bench].rows(options)
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
