"""`python -m eval run|score|merge|report`, or all of it at once: results on stdout, progress on stderr."""

import json
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.catalogue import TASKS, open_task
from eval.merge import merge
from eval.run import Settings, prepare, run
from eval.score import score
from eval.task import Mode, Task
from mm_rwkv7.command import Parser, check_writable, run_command

if TYPE_CHECKING:
    from mm_rwkv7.listening import Listener
    from mm_rwkv7.pipeline import Pipeline

INTERRUPTED = 130
DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("auto", "fp32", "bf16", "fp16", "int8")
COMMANDS = {
    "all": "run, score and report (what is done when no command is named)",
    "run": "ask the model and write its predictions down; again: go on where it ended",
    "score": "judge predictions: needs no model",
    "merge": "join the predictions of several ranks or machines",
    "report": "write report.html, report.md and report.json",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (2: bad usage or bad input, 1: the machine refused something, 130:
    interrupted)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in ("-h", "--help")):
        arguments = ["all", *arguments]
    try:
        return run_command(_parser(), arguments, _act)
    except KeyboardInterrupt as stopped:
        kept = str(stopped) or "the answers written so far are kept"
        print(f"interrupted: {kept}; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> Parser:
    parser = Parser(prog="mm-rwkv7 eval", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("--tasks", required=True, metavar="T,...", help=", ".join(TASKS))
        command.add_argument(
            "--data", type=Path, default=Path(), help="folder of the official files, one for each task"
        )
        command.add_argument("--out", type=Path, required=True, help="folder of predictions, scores and the report")
        if name in ("all", "run"):
            _add_model(command)
        if name == "score":
            command.add_argument("--partial", action="store_true", help="score although predictions are missing")
        if name in ("all", "score"):
            command.add_argument("--json", action="store_true", help="print scores.json instead of a line a task")
        if name in ("all", "report"):
            command.add_argument("--compare", type=Path, metavar="OTHER_OUT", help="another run to compare with")
    return parser


def _add_model(command: ArgumentParser) -> None:
    command.add_argument("--limit", type=int, metavar="N", help="ask N questions only, drawn by --seed")
    command.add_argument("--seed", type=int, default=0, help="of --limit, and of --temperature (default 0)")
    command.add_argument("--model", default="nano", help="as everywhere: nano, a file, a folder, hf:owner/repo")
    command.add_argument("--device", default="auto", choices=DEVICES, help="auto takes a GPU if there is one")
    command.add_argument("--dtype", default="auto", choices=DTYPES, help="auto is bf16 on a GPU, else fp32")
    command.add_argument("--batch", type=int, default=Settings.batch, help="questions answered at once (default 64)")
    command.add_argument("--shard", metavar="I/N", help="answer the I-th of N parts, from 0 (torchrun's ranks do so)")
    command.add_argument("--max-new-tokens", type=int, help="instead of the task's own bound")
    command.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the likeliest token")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--debug", action="store_true", help="show where an unexpected error arose")


def _act(options: Namespace) -> None:
    names = list(dict.fromkeys(options.tasks.split(",")))
    tasks = [open_task(name) for name in names]
    check_writable(options.out)
    if options.command in ("all", "run"):
        settings = _settings(options)
        other = getattr(options, "compare", None)
        if other is not None and not any((other / name).is_dir() for name in names):
            raise ValueError(f"--compare {other}: there is no {' and no '.join(str(other / name) for name in names)}")
        _run(tasks, options, settings)
        if settings.shard is not None:
            return  # the other parts are not here yet
    if options.command == "merge":
        for task in tasks:
            print(merge(task, options.data, options.out))
    if options.command in ("all", "score"):
        _score(tasks, options)
    if options.command in ("all", "report"):
        from eval.report import report

        print(report(tasks, options.data, options.out, options.compare), file=sys.stderr)


def _settings(options: Namespace) -> Settings:
    return Settings(
        options.limit,
        options.seed,
        _shard(options.shard),
        options.batch,
        options.max_new_tokens,
        options.temperature,
        options.top_p,
    )


def _shard(text: str | None) -> tuple[int, int] | None:
    """`I/N`, or the rank that torchrun gives this process."""
    if text is None:
        rank, world = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
        if rank is None or world == "1":
            return None
        text = f"{rank}/{world}"
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise ValueError(f"--shard is {text!r}, expected I/N with I from 0 to N - 1")
    return int(i), int(n)


def _run(tasks: Sequence[Task], options: Namespace, settings: Settings) -> None:
    from mm_rwkv7.hub import PREFIX
    from mm_rwkv7.sources import locate

    if not options.model.startswith(PREFIX):  # a download can wait until the task's files are found whole
        locate(options.model)
    prepared = [prepare(task, options.data, options.out, settings) for task in tasks]
    model = _open_model(options, [task.mode for task in tasks])
    for one in prepared:
        one.agree(model)  # before hours are spent on another one
    for one in prepared:
        print(run(one, model), file=sys.stderr)


def _open_model(options: Namespace, modes: Sequence[Mode]) -> "Pipeline | Listener":
    """A tagger without a language model will do where only tagging heads are asked."""
    import torch

    from mm_rwkv7.listening import open_listener
    from mm_rwkv7.pipeline import Pipeline

    local = os.environ.get("LOCAL_RANK")
    if local is not None and torch.cuda.is_available():
        torch.cuda.set_device(int(local))
    opening = open_listener if set(modes) == {Mode.HEAD} else Pipeline.from_pretrained
    return opening(options.model, options.device, options.dtype)


def _score(tasks: Sequence[Task], options: Namespace) -> None:
    found = [score(task, options.data, options.out, getattr(options, "partial", False)) for task in tasks]
    if options.json:
        print(json.dumps(found if len(found) > 1 else found[0], indent=1, ensure_ascii=False))
        return
    for scores in found:
        main = scores["main"]
        value = "not scored here" if main is None else f"{main} {scores['metrics'][main]:.2f}"
        error = scores["stderr"].get("clustered", scores["stderr"].get(f"{main}_bootstrap"))
        margin = "" if error is None else f" ± {error:.2f}"
        print(f"{scores['task']}: {value}{margin} (n {scores['n']}{', partial' if scores['partial'] else ''})")


if __name__ == "__main__":
    sys.exit(main())
