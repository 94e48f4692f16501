"""The page's choice among several models: the chat is drawn anew for the one that is picked."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import gradio as gr

from app.engine import Engine
from app.models import Engines, Models
from app.requests import Busy
from app.web.chat_tab import chat_tab
from app.web.handlers import Handlers
from app.web.look import NAMES
from app.web.media_panel import AT_ONCE
from app.web.refusals import REFUSED

log = logging.getLogger(__name__)

Leave = Callable[[gr.Request], None]  # what a visitor who leaves sets off


def model_picker(models: Models) -> gr.Dropdown:
    return gr.Dropdown(
        models.names,
        value=models.names[0],
        label="Model",
        show_label=False,
        container=False,
        filterable=False,
        min_width=160,
        elem_id="model",
    )


def engines_of(models: Models) -> Engines:
    """The engines, of which a visitor hears no more than that one cannot be opened: paths are for the log."""

    @contextmanager
    def use(name: str) -> Iterator[Engine]:
        with ExitStack() as using:
            try:
                engine = using.enter_context(models.use(name))
            except Busy:
                raise
            except (ValueError, OSError, RuntimeError) as error:
                log.exception("model %s cannot be opened", name)
                raise ValueError(f"{name} cannot be opened; the server's log says why") from error
            yield engine

    return use


def picked_chat(models: Models, model: gr.components.Component) -> Leave:
    """The chat with the model whose name `model` holds, inside the running `gr.Blocks`; returns what ends a visitor's
    chats. Each model has conversations of its own: a state means nothing to another one."""
    known: dict[str, Handlers] = {}
    use, tries = engines_of(models), gr.State(0)

    @gr.render(inputs=[model, tries])
    def chat(name: str, number: int) -> None:
        if name not in known:
            try:
                with use(name):
                    known.setdefault(name, Handlers(models.engine(name)))
            except REFUSED as error:  # no other model's chat under this one's name
                gr.Markdown(f"{name}: {error}" if isinstance(error, Busy) else str(error), elem_id="no-chat")
                again = gr.Button("Try again")
                # In the queue: outside, Gradio 6.31 does not tell that the state has changed.
                again.click(lambda: number + 1, None, tries, api_visibility="private", show_progress="hidden")
                return
        with gr.Column() as place:
            chat_tab(known[name])
        drawn = list(_components(place))
        for block in drawn:
            # Gradio tells inputs from outputs by the page's events, and does not look at those of what is drawn later.
            if getattr(block, "interactive", False) is None and not isinstance(block, gr.Chatbot):
                block.interactive = True
        named = {block.elem_id: block for block in drawn}
        shown = [named[elem_id] for elem_id in ("chat", "question", "figures", "conversations")]
        once = gr.Timer(0.1)

        def said_before(request: gr.Request) -> tuple[Any, ...]:
            visitor = known[name].visitors.of(str(request.session_hash))
            return *known[name].show(visitor.shown, request), gr.Timer(active=False)

        once.tick(said_before, None, [*shown, once], **AT_ONCE).then(None, js=NAMES, **AT_ONCE)

    def leave(request: gr.Request) -> None:
        for handlers in list(known.values()):
            handlers.leave(request)

    return leave


def _components(place: gr.blocks.BlockContext) -> Iterator[gr.components.Component]:
    for block in place.children:
        if isinstance(block, gr.blocks.BlockContext):
            yield from _components(block)
        elif isinstance(block, gr.components.Component):
            yield block
