"""`python -m training RECIPE [--data DIR] [--set key=value ...] [--dry-run]` trains, alone or under torchrun, and
`python -m training prepare IN OUT` writes shards (`training.data.prepare`)."""

import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from mm_rwkv7.command import Parser, check_writable, run_command

PATIENCE = 10.0  # seconds
PREPARE = "`python -m training prepare IN OUT` writes shards of your own data; with --help it says more."
INTERRUPTED = 128 + signal.SIGINT
FAILED = 1  # nothing is wrong with what was asked for
ADVICE = (
    "Go on there with --set engine.on_bad_loss=skip, which leaves such steps out; "
    "or in another folder (--set run=DIR) a lower learning_rate, or precision=fp32"
)


def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["prepare"]:
        from training.data.prepare import main as prepare

        return prepare(given[1:])
    parser = Parser(prog="python -m training", description="Train a model by a recipe.", epilog=PREPARE)
    parser.add_argument("recipe", help="a name in training/recipes/, or a YAML file")
    parser.add_argument("--data", help="folder of the data (see docs/training.md)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved recipe, what it takes and what it would read, and stop",
    )
    return run_command(parser, given, _train)


def _train(options: Namespace) -> None:
    from mm_rwkv7.weights import choose_device
    from training.config import RunConfig, describe, load_any

    run = load_any(options.recipe, [*options.set, *([f"data={options.data}"] if options.data else [])])
    if not options.dry_run:
        check_writable(Path(run.run))
    if not isinstance(run, RunConfig):
        from training.state_tracking import run_study

        print(describe(run) if options.dry_run else run_study(run))
        return
    device = choose_device(options.device)
    processes, first = int(os.environ.get("WORLD_SIZE", "1")), os.environ.get("RANK", "0") == "0"
    if options.dry_run:
        from training.dry_run import dry_run

        if first:  # what one process finds, all would
            plan = dry_run(run, device, processes)
            print(plan.text)
            if plan.wrong:
                raise ValueError(f"this run would not begin: {'; '.join(plan.wrong)}")
        return
    from training.logs import summary
    from training.loop import BadLossError
    from training.run import check_processes, train

    try:
        check_processes(run, processes)
    except ValueError:
        if first:
            raise
        _leave_word_to_the_first(2)
    try:
        place = train(run, device)
    except KeyboardInterrupt:
        if first:
            print(f"interrupted: {_kept(run.run)}; the same command goes on from there", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BadLossError as error:
        if not first:
            _leave_word_to_the_first(FAILED)
        print(f"error: {error}; {_kept(run.run)}. {ADVICE}", file=sys.stderr)
        raise SystemExit(FAILED) from None
    if first:
        print(summary(Path(run.run)), file=sys.stderr)
        print(place)


def _kept(run: str) -> str:
    from training.checkpoints import kept_steps

    kept = max(kept_steps(Path(run)), default=0)
    return f"{run} keeps step {kept}"


def _leave_word_to_the_first(code: int) -> NoReturn:
    """torchrun ends all processes with the first that fails: let that be the one that says why."""
    time.sleep(PATIENCE)
    raise SystemExit(code) from None


if __name__ == "__main__":
    sys.exit(main())
