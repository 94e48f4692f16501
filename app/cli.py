"""`mm-rwkv7`: the command line. Results go to stdout, everything else to stderr.

Commands import what they need when they run, so that `--help` answers at once and bad input is refused before
a model is loaded. Exit codes: 0 done, 1 failed, 2 bad input or usage, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from app.asking import ask_batch, ask_once, hint_at_media, state_after, text_of
from app.checkpoints import convert, encoders, inspect
from app.each import answer_each
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
from app.output import print_error, print_json, print_tags
from app.serve_commands import app, serve
from mm_rwkv7.sources import check_source

if TYPE_CHECKING:
    from mm_rwkv7.listening import Listener
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampling

INTERRUPTED = 130
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every error of every command ends here, as one line."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = _commands()(arguments, prog_name="mm-rwkv7", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = "mm-rwkv7" if context is None else context.command_path
        return _fail(f"{error.format_message()} ({command} --help says more)", 2)
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
        context_settings={"help_option_names": ["-h", "--help"]},
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
    print_error(message)
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
        return ask_once(inputs or [], document, as_json, ready)
    if document is not None:
        raise ValueError(f"a batch has no document, got {document}")
    if inputs and batch is not None:
        raise ValueError(f"a batch brings its own questions, got {inputs[-1]!r} beside it")
    return ask_batch(batch, out, ready)


def caption(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Pictures.")],
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
    """Describe pictures, one line each."""
    from app.media import read_picture

    def ready() -> "tuple[Pipeline, Sampling]":
        sampling = _sampling(max_new_tokens, temperature, top_p, top_k, seed)
        return _pipeline(model, device, dtype), sampling

    def describe(opened: "tuple[Pipeline, Sampling]", image: str) -> None:
        pipeline, sampling = opened
        text = pipeline.caption(image, sampling)
        if as_json:
            print_json({"image": image, "caption": text})
        else:
            print(text if len(images) == 1 else f"{image}: {text}", flush=True)

    return answer_each(images, read_picture, ready, describe)


def tag(
    sounds: Annotated[list[str], typer.Argument(metavar="AUDIO", help="Sounds.")],
    top: Annotated[int, typer.Option(min=1, help="How many labels for each.")] = 10,
    model: Model = "nano",
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    as_json: AsJson = False,
    debug: Debug = False,
) -> int:
    """Name what is heard in sounds, the likeliest first."""
    from mm_rwkv7.sounds import check_sound

    def open_model() -> "Listener | Pipeline":
        check_source(model)
        from mm_rwkv7.listening import open_listener

        return open_listener(model, device, dtype)

    def name(listener: "Listener | Pipeline", sound: str) -> None:
        tags = listener.tag(sound, top)
        if as_json:
            print_json({"audio": sound, "tags": [{"label": label, "score": score} for label, score in tags]})
        else:
            print_tags(tags, None if len(sounds) == 1 else sound)

    return answer_each(sounds, check_sound, open_model, name)


def chat(
    media: Annotated[
        list[str] | None, typer.Argument(metavar="MEDIA", help="Pictures and sounds to talk about.")
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
    remember: Annotated[
        bool | None,
        typer.Option(help="Ask each question after the ones before it [default: as the model was trained]."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Talk with the model; /help lists commands, and an empty line ends it."""
    from app.media import read_medium
    from app.talk import Point, Talk, talk

    parts = tuple(read_medium(path) for path in media or [])
    text = text_of(document)
    sampling = _sampling(max_new_tokens, temperature, top_p, top_k, seed)
    pipeline = _pipeline(model, device, dtype)
    if not parts:
        hint_at_media(pipeline)
    talk(Talk(pipeline, sampling, Point(state_after(pipeline, text), parts), remember))


def embed(
    texts: Annotated[list[str], typer.Argument(metavar="TEXT", help="Texts, one vector for each.")],
    model: Model = "nano",
    device: OnDevice = Device.AUTO,
    dtype: InType = DType.AUTO,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Turn texts into vectors, one line each."""
    if not all(texts):
        raise ValueError("a text is empty, expected some words")
    pipeline = _pipeline(model, device, dtype)
    for text in texts:
        vector = pipeline.embed(text).tolist()
        if as_json:
            print_json({"text": text, "embedding": vector})
        else:
            print(*(f"{value:.6g}" for value in vector), flush=True)


def doctor(as_json: AsJson = False, debug: Debug = False) -> int:
    """Say what this machine offers, and the way a model takes."""
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
    check_source(model)
    from mm_rwkv7.pipeline import Pipeline

    return Pipeline.from_pretrained(model, device, dtype)


def _sampling(max_new_tokens: int | None, temperature: float, top_p: float, top_k: int, seed: int | None) -> "Sampling":
    from mm_rwkv7.sampling import Sampling

    return Sampling(max_new_tokens, temperature, top_p, top_k, seed=seed)


if __name__ == "__main__":
    sys.exit(main())
