"""What `ask` and `chat` do around the model: a text is read before the question, and an answer is shown."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.output import print_json, print_stream

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Answer, Pipeline
    from mm_rwkv7.sampling import Sampling
    from mm_rwkv7.state import State

    Ready = Callable[[], tuple[Pipeline, Sampling]]


def ask_once(inputs: list[str], document: Path | None, as_json: bool, ready: "Ready") -> int:
    """Answer one question; the model is `ready` when the input is known to be good."""
    from app.media import question_and_media, user_message

    question, media = question_and_media(inputs)
    text = text_of(document)
    pipeline, sampling = ready()
    if not media:
        hint_at_media(pipeline)
    stream = pipeline.stream(user_message(question, media), sampling, state_after(pipeline, text))
    if as_json:
        print_json(_described(stream.answer, pipeline.name))
    else:
        print_stream(stream)
    return 0


def ask_batch(source: Path | None, target: Path | None, ready: "Ready") -> int:
    """Answer a file of questions; 1 where some line failed."""
    from app.batch import answer_file, check_batch

    source, target = check_batch(source, target)
    pipeline, sampling = ready()
    failed = answer_file(pipeline, source, target, sampling)
    if failed:
        print(f'{failed} failed; the "error" of a line in {target} says why', file=sys.stderr)
    return 1 if failed else 0


def hint_at_media(pipeline: "Pipeline") -> None:
    """Say on stderr that a model with a vocabulary of its own, which knows single questions about pictures and sounds,
    is asked about none."""
    config = pipeline.model.config
    senses = (("picture", config.tower), ("sound", config.sound))
    known = [name for name, sense in senses if sense is not None]
    if config.vocabulary is not None and known:
        print(
            f"hint: {pipeline.name} knows {' and '.join(f'{name}s' for name in known)} only, "
            f"and what it says without one means nothing; a {' or a '.join(known)} goes before the question",
            file=sys.stderr,
            flush=True,
        )


def text_of(document: Path | None) -> str | None:
    """What a file says, if there is one."""
    if document is None:
        return None
    from app.document import load_document

    return load_document(document)


def state_after(pipeline: "Pipeline", text: str | None) -> "State | None":
    """The model's state when it has read a text, if there is one."""
    if text is None:
        return None
    from app.document import read_with_bar

    return read_with_bar(pipeline, text)


def _described(answer: "Answer", model: str) -> dict[str, Any]:
    return {
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "usage": asdict(answer.usage),
        "timings": asdict(answer.timings),
        "model": model,
    }
