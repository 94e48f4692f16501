"""What the page does when something is pressed. Each handler gives the new values of the components it names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from app.conversation import Conversation, Medium, Progress, Visitors
from app.spectrogram import draw
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling

Update = tuple[Any, ...]

NAMES = {"image": "picture", "audio": "sound"}


class Handlers:
    """`ask` and `describe` give (chat, question, figures, stop) again and again while an answer is written."""

    def __init__(self, pipeline: Pipeline, visitors: Visitors) -> None:
        self.pipeline = pipeline
        self.visitors = visitors

    def ask(
        self,
        picture: str | None,
        sound: str | None,
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
        """Answer a question about a picture, a sound or both. The conversation comes as messages, and grows as it is
        written."""
        media = [(kind, path) for kind, path in (("image", picture), ("audio", sound)) if path is not None]
        with _refusals_as_messages(media):
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
            yield from _updates(conversation, question, media, sampling, follow_up)

    def describe(
        self, picture: str | None, sound: str | None, question: str, request: gr.Request, *controls: Any
    ) -> Iterator[Update]:
        """Describe a picture, or a sound without one. The controls are those of `ask`, in its order."""
        if picture is None and sound is None:
            wanted = "picture" if self.pipeline.model.sound is None else "picture or sound"
            raise gr.Error(f"there is no {wanted} to describe", print_exception=False)
        template = self.pipeline.model.config.template
        asked = template.sound_caption if picture is None else template.caption
        for chat, _, figures, stop in self.ask(picture, sound, asked, request, *controls):
            yield chat, question, figures, stop

    def hear(self, sound: str | None) -> Update:
        """What a sound looks like to the model, and the likeliest labels: (spectrogram, tags)."""
        hearing = self.pipeline.model.sound
        if sound is None or hearing is None:
            return None, None
        with _refusals_as_messages([("audio", sound)]):
            heard = self.visitors.heard.of(sound)
            return draw(heard.sound), None if hearing.head is None else dict(heard.tags)

    def stop(self, request: gr.Request) -> None:
        self.visitors.of(str(request.session_hash)).stop()

    def change(self, request: gr.Request) -> Update:
        """Another picture or sound: an empty (chat, figures).

        The event may come after the first question about it, which is then left alone.
        """
        visitor = str(request.session_hash)
        if self.visitors.of(visitor).busy:
            return gr.skip(), gr.skip()
        self.visitors.forget(visitor)
        return [], ""

    def clear(self, request: gr.Request) -> Update:
        """(picture, sound, chat, question, figures, stop), all as at the start."""
        self.visitors.forget(str(request.session_hash))
        return None, None, [], "", "", self.idle()

    def idle(self) -> Any:
        """The Stop button while nothing is being written."""
        return gr.Button(interactive=False)


def _updates(
    conversation: Conversation, question: str, media: Sequence[Medium], sampling: Sampling, follow_up: bool
) -> Iterator[Update]:
    asked = {"role": "user", "content": question}
    for progress in conversation.ask(question, media, sampling, follow_up):
        if progress.answer is None:
            turns = [*conversation.turns, asked, {"role": "assistant", "content": progress.text}]
            yield turns, "", "Writing …", gr.Button(interactive=True)
        else:
            yield conversation.turns, "", describe_figures(progress), gr.Button(interactive=False)


def describe_figures(progress: Progress) -> str:
    """How fast an answer came, in one line, and how long it took to read what was new."""
    answer = progress.answer
    assert answer is not None
    timings, written = answer.timings, answer.usage.completion_tokens
    state_bytes = sum(tensor.nbytes for layer in answer.state.layers for tensor in layer)
    parts = [
        f"{written} tokens, {timings.decode_tokens_per_s:.0f} a second",
        f"first after {timings.first_token_s:.2f} s",
        f"state {state_bytes / 1e6:.2f} MB",
    ]
    if progress.read:
        parts.insert(0, f"{' and '.join(NAMES[kind] for kind, _ in progress.read)} read in {progress.read_s:.2f} s")
    if ending := {"length": "cut at the limit", "cancelled": "stopped"}.get(answer.finish_reason):
        parts.append(ending)
    return " · ".join(parts)


@contextmanager
def _refusals_as_messages(media: Sequence[Medium]) -> Iterator[None]:
    """Bad input is shown to the visitor, without the folder that an upload lies in."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        for _, path in media:
            message = message.replace(path, Path(path).name)
        raise gr.Error(message, print_exception=False) from error
