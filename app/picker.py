"""The page's choice among several models: the chat is drawn anew for the one that is picked."""

from collections.abc import Callable

import gradio as gr

from app.chat_tab import chat_tab
from app.handlers import Handlers
from app.models import Models

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
            known.setdefault(name, Handlers(models.engine(name)))
        chat_tab(known[name])

    def leave(request: gr.Request) -> None:
        for handlers in list(known.values()):
            handlers.leave(request)

    return leave
