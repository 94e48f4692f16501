"""`mm-rwkv7`: the command line. Results go to stdout, everything else to stderr.

Commands import what they need when they run, so that `--help` answers at once and bad input is refused before
a model is loaded. Exit codes: 0 done, 1 failed, 2 bad input or usage, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.checkpoints import convert, encoders, inspect
from app.options import (
    AsJson,
    Debug,
    Device,
    Document,
    DType,
    InType,
    MaxNewTokens,
    Model,
    OnDevice,
    Seed,
    Temperature,
    TopK,
    TopP,
)
from app.output import print_json, print_stream, print_tags
from app.serve_commands import app, serve

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Answer, Pipeline
    from mm_rwkv7.sampling import Sampling
    from mm_rwkv7.state import State

    Ready = Callable[[], tuple[Pipeline, Sampling]]

INTERRUPTED = 130
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every error of every command ends here, as one line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _commands()(arguments, prog_name="mm-rwkv7", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _fail(f"{error.format_message()} (mm-rwkv7 --help says more)", 2)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone; what is left in the buffer must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the outermost place: all that is left to do is to say it
        if "--debug" in arguments:
            traceback.print_exc()
        if isinstance(error, ValueError):
            return _fail(str(error), 2)
        return _fail(f"{type(error).__name__}: {error} (--debug shows where)", 1)
    return code or 0


def _commands() -> typer.Typer:
    """Every command, in the order in which --help lists them."""
    cli = typer.Typer(
        name="mm-rwkv7",
        help="RWKV-7 as a multimodal model: asks it about pictures and sounds, trains it, measures it.",
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    for command in (ask, caption, tag, chat, embed, app, serve, encoders, inspect, convert, doctor):
        cli.command()(command)
    for program in (train, evaluate, bench):
        name = {evaluate: "eval"}.get(program)
        cli.command(name, context_settings=PASS_ON, add_help_option=False)(program)
    return cli


def _fail(message: str, code: int) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return code


def ask(
    inputs: Annotated[
        list[str] | None, typer.Argument(metavar="[MEDIA]... QUESTION", help="Pictures and sounds, then the question.")
    ] = None,
    batch: Annotated[Path | None, typer.Option(metavar="IN.jsonl", help="Answer a file of questions.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="OUT.jsonl", help="Where its answers go.")] = None,
    document: Document = None,
    model: Model = "nano",
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Answer a question about pictures and sounds, or about a text."""

    def ready() -> "tuple[Pipeline, Sampling]":
        sampling = _sampling(max_new_tokens, temperature, top_p, top_k, seed)
        return _pipeline(model, device, dtype), sampling

    if batch is None and out is None:
        return _ask_once(inputs or [], document, as_json, ready)
    if document is not None:
        raise ValueError(f"a batch has no document, got {document}")
    if inputs and batch is not None:
        raise ValueError(f"a batch brings its own questions, got {inputs[-1]!r} beside it")
    return _ask_batch(batch, out, ready)


def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Pictures.")],
    model: Model = "nano",
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Describe pictures, one line each."""
    from app.media import read_picture

    for image in images:
        read_picture(image)
    sampling = _sampling(max_new_tokens, temperature, top_p, top_k, seed)
    pipeline = _pipeline(model, device, dtype)
    for image in images:
        text = pipeline.caption(image, sampling)
        if as_json:
            print_json({"image": image, "caption": text})
        else:
            print(text if len(images) == 1 else f"{image}: {text}", flush=True)


def tag(
    sounds: Annotated[list[str], typer.Argument(metavar="AUDIO...", help="Sounds.")],
    top: Annotated[int, typer.Option(min=1, help="How many labels for each.")] = 10,
    model: Model = "nano",
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Name what is heard in sounds, the likeliest first."""
    from mm_rwkv7.sounds import check_sound

    for sound in sounds:
        check_sound(sound)
    from mm_rwkv7.listening import open_listener

    listener = open_listener(model, device, dtype)
    for sound in sounds:
        tags = listener.tag(sound, top)
        if as_json:
            print_json({"audio": sound, "tags": [{"label": label, "score": score} for label, score in tags]})
        else:
            print_tags(tags, None if len(sounds) == 1 else sound)


def chat(
    media: Annotated[
        list[str] | None, typer.Argument(metavar="[MEDIA]...", help="Pictures and sounds to talk about.")
    ] = None,
    document: Document = None,
    model: Model = "nano",
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    seed: Seed = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    debug: Debug = False,
) -> None:
    """Talk with the model; an empty line or the end of the input ends it."""
    from app.media import read_medium, user_message

    parts = [read_medium(path) for path in media or []]
    text = _text(document)
    sampling = _sampling(max_new_tokens, temperature, top_p, top_k, seed)
    pipeline = _pipeline(model, device, dtype)
    state = _after(pipeline, text)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not (question := line.strip()):
            if not line:  # the end of the input, which has written no line's end after the prompt
                print(file=sys.stderr)
            return
        stream = pipeline.stream(user_message(question, parts), sampling, state)
        print_stream(stream)
        state, parts = stream.answer.state, []


def embed(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts, one vector for each.")],
    model: Model = "nano",
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Turn texts into vectors, one line each."""
    pipeline = _pipeline(model, device, dtype)
    for text in texts:
        vector = pipeline.embed(text).tolist()
        if as_json:
            print_json({"text": text, "embedding": vector})
        else:
            print(*(f"{value:.6g}" for value in vector), flush=True)


def doctor(as_json: AsJson = False, debug: Debug = False) -> int:
    """Say what this machine offers and which path the model takes on it."""
    from app.doctor import examine

    diagnosis = examine()
    if as_json:
        print_json(asdict(diagnosis))
    else:
        print(diagnosis.table())
    return 0 if diagnosis.torch else 1


def train(context: typer.Context) -> int:
    """Train a model by a recipe (= python -m training)."""
    return _hand_over("training.__main__", context)


def evaluate(context: typer.Context) -> int:
    """Score a model on benchmarks (= python -m eval)."""
    return _hand_over("eval.__main__", context)


def bench(context: typer.Context) -> int:
    """Measure speed (= python -m mm_rwkv7.bench)."""
    return _hand_over("mm_rwkv7.bench.__main__", context)


def _hand_over(module: str, context: typer.Context) -> int:
    return import_module(module).main(context.args) or 0


def _pipeline(model: str, device: str, dtype: str) -> "Pipeline":
    from mm_rwkv7.pipeline import Pipeline

    return Pipeline.from_pretrained(model, device, dtype)


def _sampling(max_new_tokens: int | None, temperature: float, top_p: float, top_k: int, seed: int | None) -> "Sampling":
    from mm_rwkv7.sampling import Sampling

    return Sampling(max_new_tokens, temperature, top_p, top_k, seed=seed)


def _text(document: Path | None) -> str | None:
    if document is None:
        return None
    from app.document import load_document

    return load_document(document)


def _after(pipeline: "Pipeline", text: str | None) -> "State | None":
    if text is None:
        return None
    from app.document import read_with_bar

    return read_with_bar(pipeline, text)


def _ask_once(inputs: list[str], document: Path | None, as_json: bool, ready: "Ready") -> int:
    from app.media import question_and_media, user_message

    question, media = question_and_media(inputs)
    text = _text(document)
    pipeline, sampling = ready()
    stream = pipeline.stream(user_message(question, media), sampling, _after(pipeline, text))
    if as_json:
        print_json(_described(stream.answer, pipeline.name))
    else:
        print_stream(stream)
    return 0


def _ask_batch(source: Path | None, target: Path | None, ready: "Ready") -> int:
    from app.batch import answer_file, check_batch

    source, target = check_batch(source, target)
    pipeline, sampling = ready()
    failed = answer_file(pipeline, source, target, sampling)
    if failed:
        print(f'{failed} failed; the "error" of a line in {target} says why', file=sys.stderr)
    return 1 if failed else 0


def _described(answer: "Answer", model: str) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "timings": asdict(answer.timings),
        "model": model,
    }


if __name__ == "__main__":
    sys.exit(main())
