"""`python -m mm_rwkv7.bench <what> [--json]`: results on stdout, progress on stderr."""

import json
import sys
from argparse import Namespace
from collections.abc import Sequence

from mm_rwkv7.bench import context, wkv
from mm_rwkv7.command import Parser, run_command

BENCHES = {"wkv": wkv, "context": context}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one measurement and prints its rows; returns the exit code (2: bad usage)."""
    parser = Parser(prog="python -m mm_rwkv7.bench", description=__doc__)
    commands = parser.add_subparsers(dest="bench", required=True)
    for name, bench in BENCHES.items():
        command = commands.add_parser(name, help=bench.HELP, description=bench.HELP)
        command.add_argument("--json", action="store_true", help="print a list of rows as JSON")
        bench.add_arguments(command)
    return run_command(parser, argv, _measure)


def _measure(options: Namespace) -> None:
    rows = BENCHES[options.bench].rows(options)
    print(json.dumps(rows, indent=2) if options.json else as_table(rows))


def as_table(rows: list[dict[str, object]]) -> str:
    """Rows become columns side by side, one line for each figure."""
    lines = [[name, *(_cell(row[name]) for row in rows)] for name in rows[0]]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return f"{value['median']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
