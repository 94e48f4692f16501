"""What the page does when something is pressed. Each handler gives the new values of the components it names."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from app.conversation import Conversation, Visitors
from mm_rwkv7.pipeline import Answer, Pipeline
from mm_rwkv7.sampling import Sampling

Update = tuple[Any, ...]


class Handlers:
    """`ask` and `describe` give (chat, question, figures, stop) again and again while an answer is written."""

    def __init__(self, pipeline: Pipeline, visitors: Visitors) -> None:
        self.caption = pipeline.model.config.template.caption
        self.visitors = visitors

    def ask(
        self,
        picture: str | None,
        question: str,
        request: gr.Request,
        follow_up: bool,
        temperature: float,
        top_p: float,
        top_k: int,
        presence_penalty: float,
        count_penalty: float,
        penalty_decay: float,
        max_new_tokens: int,
        seed: int,
    ) -> Iterator[Update]:
        """Answer a question about a picture. The conversation comes as messages, and grows as it is written."""
        with _refusals_as_messages(picture):
            sampling = Sampling(
                int(max_new_tokens),
                temperature,
                top_p,
                int(top_k),
                presence_penalty,
                count_penalty,
                penalty_decay,
                seed=seed or None,
            )
            conversation = self.visitors.of(str(request.session_hash))
            yield from _updates(conversation, question, picture, sampling, follow_up)

    def describe(self, picture: str | None, question: str, request: gr.Request, *controls: Any) -> Iterator[Update]:
        """Describe a picture. The controls are those of `ask`, in its order."""
        if picture is None:
            raise gr.Error("there is no picture to describe", print_exception=False)
        for chat, _, figures, stop in self.ask(picture, self.caption, request, *controls):
            yield chat, question, figures, stop

    def stop(self, request: gr.Request) -> None:
        self.visitors.of(str(request.session_hash)).stop()

    def change(self, request: gr.Request) -> Update:
        """Another picture: an empty (chat, figures).

        The event may come after the first question about that picture, which is then left alone.
        """
        visitor = str(request.session_hash)
        if self.visitors.of(visitor).busy:
            return gr.skip(), gr.skip()
        self.visitors.forget(visitor)
        return [], ""

    def clear(self, request: gr.Request) -> Update:
        """(picture, chat, question, figures, stop), all as at the start."""
        self.visitors.forget(str(request.session_hash))
        return None, [], "", "", self.idle()

    def idle(self) -> Any:
        """The Stop button while nothing is being written."""
        return gr.Button(interactive=False)


def _updates(
    conversation: Conversation, question: str, picture: str | None, sampling: Sampling, follow_up: bool
) -> Iterator[Update]:
    asked = {"role": "user", "content": question}
    for progress in conversation.ask(question, picture, sampling, follow_up):
        if progress.answer is None:
            turns = [*conversation.turns, asked, {"role": "assistant", "content": progress.text}]
            yield turns, "", "Writing …", gr.Button(interactive=True)
        else:
            figures = describe_figures(progress.answer, progress.read_s)
            yield conversation.turns, "", figures, gr.Button(interactive=False)


def describe_figures(answer: Answer, read_s: float | None) -> str:
    """How fast an answer came, in one line; `read_s` is what reading its picture took, if it was new."""
    timings, written = answer.timings, answer.usage.completion_tokens
    state_bytes = sum(tensor.nbytes for layer in answer.state.layers for tensor in layer)
    parts = [
        f"{written} tokens, {timings.decode_tokens_per_s:.0f} a second",
        f"first after {timings.first_token_s:.2f} s",
        f"state {state_bytes / 1e6:.2f} MB",
    ]
    if read_s is not None:
        parts.insert(0, f"picture read in {read_s:.2f} s")
    if ending := {"length": "cut at the limit", "cancelled": "stopped"}.get(answer.finish_reason):
        parts.append(ending)
    return " · ".join(parts)


@contextmanager
def _refusals_as_messages(picture: str | None) -> Iterator[None]:
    """Bad input is shown to the visitor, without the folder that an upload lies in."""
    try:
        yield
    except ValueError as error:
        message = str(error).replace(picture, Path(picture).name) if picture else str(error)
        raise gr.Error(message, print_exception=False) from error
