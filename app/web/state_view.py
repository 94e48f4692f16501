"""The page's tab on what the model remembers: the state over time, for a text and a picture or a sound before it."""

from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr
import torch

from app.engine import Engine
from app.models import Engines
from app.prompts import Prompt, prepare
from app.requests import Request, Ticket
from app.row import Row
from app.web.heat_map import CSS, Token, draw
from app.web.refusals import refusals_as_messages
from app.web.stop_button import stop_button, stoppable, stoppable_until
from app.web.uploads import part_of
from mm_rwkv7.generate import Writer
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.remembering import Remembered, remember
from mm_rwkv7.state import State

MOST = 1024  # tokens: columns that can still be told apart
PIECE = 16  # of them are read between two of the engine's turns
EXAMPLE = "The red ball lies under the table. Where is the ball?"


def add_state_view(engines: Engines, model: gr.components.Component) -> None:
    """The tab's components, inside the running `gr.Blocks`. `model` holds the name of the model that is asked."""

    def look(name: str, medium: str | None, text: str) -> Iterator[tuple[Any, Any]]:
        """Read a text, after a picture or a sound if there is one, and draw the state after each token."""
        with refusals_as_messages([medium] if medium else []), engines(name) as engine:
            parts: list[dict[str, Any]] = [] if medium is None else [part_of(medium)]
            if text.strip():
                parts.append({"type": "text", "text": text})
            for step in trace(engine, [{"role": "user", "content": parts}]):
                if isinstance(step, str):
                    yield step, gr.skip()
                else:
                    yield "", draw(*step)

    gr.Markdown(
        "How large each head's part of the state is after every token that is read, and how much of it each step "
        "keeps. Point at a column to see its token."
    )
    text = gr.Textbox(EXAMPLE, label="Text", lines=3, max_lines=8, elem_id="remembered-text")
    with gr.Accordion("A picture or a sound before it", open=False):
        medium = gr.File(label="Picture or sound", file_types=["image", "audio"], height=140, elem_id="look-medium")
    with gr.Row():
        run = gr.Button("Look", variant="primary", min_width=110, elem_id="look")
        stop = stop_button("look-stop")
    progress = gr.Markdown(elem_id="look-progress")
    maps = gr.HTML(css_template=CSS, apply_default_css=False, elem_id="maps")
    stoppable(stop, "look", [run.click])
    looking = run.click(look, [model, medium, text], [progress, maps], api_name="look", show_progress="hidden")
    stop.click(lambda: "", None, progress, cancels=looking, queue=False, api_visibility="private")
    stoppable_until(stop, "look", looking)


def trace(engine: Engine, messages: Sequence[Any]) -> Iterator[str | tuple[Remembered, list[Token]]]:
    """Read messages piece by piece on the engine's thread: says how far it is, and at last what was remembered after
    each token. ValueError for what cannot be read, or is too long."""
    request = Request(messages, write=False)
    prompt = prepare(engine.pipeline, engine.media, request)
    total = len(prompt.ids)
    if total > MOST:
        raise ValueError(f"that is {total:,} tokens, of which at most {MOST:,} can be shown")
    reading = _Reading(engine, request, prompt)
    while reading.position < total:
        engine.call(reading.go_on).result()
        yield f"{reading.position:,} of {total:,} tokens read"
    yield Remembered(*map(torch.cat, zip(*reading.seen, strict=True))), _tokens(engine.pipeline, prompt)


class _Reading:
    """A prompt while it is read, as the engine reads its rows."""

    def __init__(self, engine: Engine, request: Request, prompt: Prompt) -> None:
        self.seen: list[Remembered] = []
        self._engine = engine
        writer = Writer(engine.pipeline.tokenizer, (), 0)
        self._row = Row(request, Ticket(lambda: None), prompt, writer, None)
        self._state: State | None = None

    @property
    def position(self) -> int:
        return self._row.position

    def go_on(self, pipeline: Pipeline) -> None:
        """Encode some of what is missing, or else read a piece; on the engine's thread."""
        row, media = self._row, self._engine.media
        for medium in row.prompt.media:
            if medium.start not in row.features:
                row.features[medium.start] = media.begin(medium)
        if (count := min(row.readable(), PIECE)) <= 0:
            media.work(row.wanted())
            for error in (features.error for features in row.features.values() if features.error):
                raise error
            return
        ids = torch.tensor(row.prompt.ids[row.position : row.position + count], device=pipeline.device)
        features = (row.tokens_of(kind, count) for kind in ("image", "audio"))
        given = [torch.cat(tokens) if tokens else None for tokens in features]
        with torch.no_grad():
            x = pipeline.model.embed(ids[None], *given)[0]
        seen, self._state = remember(pipeline.model.lm, pipeline.step, x, self._state)
        self.seen.append(seen)
        row.position += count


def _tokens(pipeline: Pipeline, prompt: Prompt) -> list[Token]:
    names = {pipeline.tokenizer.image_id: "picture", pipeline.tokenizer.audio_id: "sound"}
    return [
        Token(names[i], True) if i in names else Token(pipeline.tokenizer.token_bytes(i).decode(errors="replace"))
        for i in prompt.ids
    ]
