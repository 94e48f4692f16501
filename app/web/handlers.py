"""What the page does when something is pressed. Each handler gives the new values of the components it names."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from app.engine import Engine
from app.web import chat_view
from app.web.conversation import Conversation, Progress, Turn
from app.web.heard import hear
from app.web.presets import presets
from app.web.refusals import REFUSED, refusal, refusals_as_messages
from app.web.saved import restore, save
from app.web.spectrogram import draw
from app.web.uploads import Unreadable, announced, check_length, read_uploads
from app.web.visitors import Visitor, Visitors
from mm_rwkv7.sampling import Sampling

Update = tuple[Any, ...]
Said = dict[str, Any]  # "text" and "files", as the question box gives them

EMPTY: Said = {"text": "", "files": []}
FILE = "conversation.safetensors"
NOT_LAST = "questions are about what was sent last: send it again, or have earlier questions remembered"
UNSEEN = "Nothing to look at or to listen to was sent yet: this answers the words alone"


class Handlers:
    """Unless they say otherwise they give (chat, question, figures, conversations) of the visitor's conversation; those
    that are answered do so again and again while the answer is written."""

    def __init__(self, engine: Engine, visitors: Visitors | None = None) -> None:
        self.engine = engine
        self.visitors = visitors or Visitors(engine)
        self.presets = presets(engine.pipeline)

    def ask(self, message: Said | None, request: gr.Request, remember: bool, **controls: Any) -> Iterator[Update]:
        """Answer a message of words, pictures and sounds, {"text": ..., "files": [...]}. A picture or a sound without
        words is described."""
        text = (message or {}).get("text", "")
        yield from self._said(message, text, "", self._visitor(request), remember, controls)

    def preset(self, label: str) -> Any:
        """The handler of a button."""

        def asked(message: Said | None, request: gr.Request, remember: bool, **controls: Any) -> Iterator[Update]:
            """Ask what the button says, about the files of `message` or about what was sent before. Its text stays."""
            said, visitor, (text, about) = message or EMPTY, self._visitor(request), self.presets[label]
            with refusals_as_messages():
                media = announced(said["files"])
                if about not in visitor.current.kinds(media, remember):
                    raise ValueError(NOT_LAST if about in visitor.current.kinds(media) else _none_of(about))
            yield from self._said(said, text, said["text"], visitor, remember, controls)

        return asked

    def edit(self, event: gr.EditData, request: gr.Request, remember: bool, **controls: Any) -> Iterator[Update]:
        """Say something else in the place of a message, and have it answered."""
        visitor = self._visitor(request)
        conversation = visitor.current
        with refusals_as_messages():
            number = chat_view.turn_of(conversation.turns, _index(event.index))
            asked = conversation.edit(number, str(event.value).replace(chat_view.LESS, "<"), _sampling(**controls))
            yield from self._updates(visitor, conversation, asked)

    def retry(self, request: gr.Request, remember: bool, **controls: Any) -> Iterator[Update]:
        """Answer the last message once more."""
        visitor = self._visitor(request)
        conversation = visitor.current
        with refusals_as_messages():
            yield from self._updates(visitor, conversation, conversation.regenerate(_sampling(**controls)))

    def undo(self, request: gr.Request) -> Update:
        """Take the last message and its answer back; it is in the question box then."""
        visitor = self._visitor(request)
        with refusals_as_messages():
            undone = visitor.current.undo()
        files = [medium.path for medium in undone.media if medium.path and Path(medium.path).exists()]
        return self._view(visitor, {"text": undone.text, "files": files})

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being written. Gives nothing."""
        self._visitor(request).current.stop()

    def new(self, request: gr.Request) -> Update:
        """Begin another conversation."""
        return self._opened(request, None, EMPTY)

    def fork(self, request: gr.Request) -> Update:
        """Go on with a copy of the conversation."""
        return self._opened(request, self._visitor(request).current.fork())

    def show(self, number: int, request: gr.Request) -> Update:
        """Turn to another conversation."""
        visitor = self._visitor(request)
        with refusals_as_messages():
            visitor.show(number)
        return self._view(visitor, EMPTY)

    def close(self, request: gr.Request) -> Update:
        """End the conversation and turn to another one, a new one if there is none."""
        visitor = self._visitor(request)
        visitor.close()
        return self._view(visitor, EMPTY)

    def reopen(self, request: gr.Request) -> Update:
        """Go on with the conversation that was ended last."""
        visitor = self._visitor(request)
        with refusals_as_messages():
            visitor.reopen()
        return self._view(visitor)

    def reopenable(self, request: gr.Request) -> Any:
        """Its button, while there is such a conversation."""
        return gr.Button(visible=self._visitor(request).closed is not None)

    def save(self, request: gr.Request) -> str:
        """The conversation's file."""
        with refusals_as_messages():
            data = save(self._visitor(request).current.turns, self.visitors.shelf, self.engine.pipeline)
        return save_bytes_to_cache(data, FILE, get_upload_folder())

    def restore(self, path: str, request: gr.Request) -> Update:
        """Go on with a saved conversation, beside the others."""
        with refusals_as_messages([path]):
            turns = restore(Path(path).read_bytes(), self.visitors.shelf, self.engine.pipeline)
        return self._opened(request, Conversation(self.engine, self.visitors.shelf, turns), EMPTY)

    def overhear(self, message: Said | None) -> Update:
        """What the last sound of a message looks like to the model, and the likeliest labels: (spectrogram, tags).
        Nothing for what cannot be read: who answers the message says what is wrong with it."""
        with suppress(ValueError, gr.Error):
            sounds = [one.path for one in announced((message or EMPTY)["files"]) if one.kind == "audio"]
            if sounds:
                check_length(sounds[-1])
                return self._heard(sounds[-1])
        return gr.skip(), gr.skip()

    def hear(self, message: Said | None, request: gr.Request) -> Update:
        """The same, of the sound that was sent last if there is none in the message."""
        turns, files = self._visitor(request).current.turns, (message or EMPTY)["files"]
        with refusals_as_messages(files):
            media = [*(one for turn in turns for one in turn.media if Path(one.path).exists()), *read_uploads(files)]
        sounds = [one.path for one in media if one.kind == "audio"]
        if not sounds:
            raise refusal(_none_of("audio"))
        return self._heard(sounds[-1])

    def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        self.visitors.forget(str(request.session_hash))

    def idle(self, request: gr.Request) -> Update:
        """(chat, question) after something went wrong: what was written in the place of a message goes."""
        current = self._visitor(request).current
        return gr.skip() if current.busy else chat_view.messages(current.turns), _box(current.busy)

    def _heard(self, path: str) -> Update:
        with refusals_as_messages([path]):
            sound, tags = hear(self.engine, path)
        return draw(sound), dict(tags) or None

    def _visitor(self, request: gr.Request) -> Visitor:
        if not request.session_hash:  # whoever sends none would share one conversation
            raise refusal("a session is needed")
        return self.visitors.of(str(request.session_hash))

    def _opened(self, request: gr.Request, conversation: Conversation | None, said: Said | None = None) -> Update:
        visitor = self._visitor(request)
        with refusals_as_messages():
            visitor.open(conversation)
        return self._view(visitor, said)

    def _view(self, visitor: Visitor, question: Said | None = None) -> Update:
        turns = visitor.current.turns
        figures = self._figures(turns) if turns and turns[-1].figures.ending else ""
        return chat_view.messages(turns), _box(visitor.current.busy, question), figures, _choice(visitor)

    def _figures(self, turns: Sequence[Turn]) -> str:
        """Of the last turn; and a hint where a model that knows pictures and sounds, and few words, was sent none."""
        figures = chat_view.describe(turns[-1].figures)
        model = self.engine.pipeline.model
        senses = model.tower is not None or model.sound is not None
        if senses and model.config.vocabulary is not None and not any(turn.media for turn in turns):
            figures += f" · {UNSEEN}"
        return figures

    def _said(
        self, message: Said | None, text: str, left: str, visitor: Visitor, remember: bool, controls: dict[str, Any]
    ) -> Iterator[Update]:
        """Ask `text` about the files of a message, of whose own words `left` stay in the question box. When it is
        refused, or stopped before an answer began, all of it is there again, but for the files that cannot be read."""
        held = message or EMPTY
        files = held["files"]

        def decode(turn: Turn) -> Turn:
            media = read_uploads(files)
            template = self.engine.pipeline.model.config.template
            usual = template.caption if media[-1].kind == "image" else template.sound_caption
            return replace(turn, media=tuple(media), text=text if text.strip() or template.wordless else usual)

        conversation = visitor.current
        with refusals_as_messages(files):
            try:
                asked = conversation.ask(text, announced(files), _sampling(**controls), remember, decode)
                yield from self._updates(visitor, conversation, asked, left, held)
            except REFUSED as refused:
                others = refused.others if isinstance(refused, Unreadable) else files
                if visitor.current is conversation:
                    yield self._again(visitor, {"text": held["text"], "files": others})
                raise

    def _again(self, visitor: Visitor, said: Said) -> Update:
        """What was refused is in the question box, and in the chat no longer, unless that is busy with another one."""
        if visitor.current.busy:
            return gr.skip(), _box(True, said), gr.skip(), gr.skip()
        return self._view(visitor, said)

    def _updates(
        self,
        visitor: Visitor,
        conversation: Conversation,
        asked: Iterator[Progress],
        left: str | None = None,
        held: Said | None = None,
    ) -> Iterator[Update]:
        """What changes while `asked` is written, as long as its conversation is the one that is shown. The question box
        has the words `left` then, and `held` when it was stopped before an answer began; None changes nothing."""
        first, ended = True, False
        for progress in asked:
            ended = bool(progress.last.figures.ending)
            if visitor.current is conversation:
                figures = chat_view.reading(progress.last.media) if progress.reading else self._figures(progress.turns)
                box = _box(not ended, {"text": left, "files": []} if first and left is not None else None)
                yield (
                    chat_view.messages(progress.turns),
                    box if first or ended else gr.skip(),
                    figures,
                    _choice(visitor) if ended else gr.skip(),
                )
                first = False
            else:
                yield gr.skip(), gr.skip(), gr.skip(), _choice(visitor) if ended else gr.skip()
        if not conversation.busy and visitor.current is conversation and not ended:
            yield self._view(visitor, held)


def _box(writing: bool, said: Said | None = None) -> Any:
    """The question box: Stop in the place of Send while an answer is being written, and what it holds, if that
    changes."""
    held: dict[str, Any] = {} if said is None else {"value": said}
    return gr.MultimodalTextbox(submit_btn=not writing, stop_btn=writing, **held)


def _none_of(kind: str) -> str:
    return f"there is no {'picture' if kind == 'image' else 'sound'} yet, send one first"


def _choice(visitor: Visitor) -> Any:
    return gr.Dropdown(choices=visitor.titles, value=visitor.shown)


def _index(index: Any) -> int:
    return index[0] if isinstance(index, list | tuple) else int(index)


def _sampling(top_k: float, max_new_tokens: float, seed: float | None, **controls: Any) -> Sampling:
    return Sampling(int(max_new_tokens), top_k=int(top_k), seed=int(seed or 0) or None, **controls)
