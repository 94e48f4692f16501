"""The page's choice among several models: the chat is drawn anew for the one that is picked."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app.models import Models
from app.web.chat_tab import chat_tab
from app.web.handlers import Handlers
from app.web.look import NAMES
from app.web.media_panel import AT_ONCE
from app.web.refusals import refusals_as_messages

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


def picked_chat(models: Models, model: gr.components.Component) -> Leave:
    """The chat with the model whose name `model` holds, inside the running `gr.Blocks`; returns what ends a visitor's
    chats. Each model has conversations of its own: a state means nothing to another one."""
    known: dict[str, Handlers] = {}

    @gr.render(inputs=model)
    def chat(name: str) -> None:
        if name not in known:
            with refusals_as_messages():
                known.setdefault(name, Handlers(models.engine(name)))
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
