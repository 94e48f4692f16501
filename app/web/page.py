"""The web page: its tabs, over one engine or several."""

import gradio as gr

from app.engine import Engine
from app.models import Models, only
from app.web.chat_tab import chat_tab
from app.web.document_tab import add_document
from app.web.gallery import add_gallery
from app.web.handlers import Handlers
from app.web.look import NAMES, SWITCH
from app.web.media_panel import AT_ONCE
from app.web.picker import Leave, engines_of, model_picker, picked_chat
from app.web.state_view import add_state_view

INTRODUCTION = """# mm-rwkv7
RWKV-7, a recurrent network without attention: all it has read is a small state, undone, forked and saved at once."""
UPLOADS_KEPT = 3600  # seconds


def build(served: Engine | Models) -> gr.Blocks:
    """The page around an engine, or around several models of which a visitor picks one. Each visitor, that is each open
    tab, has conversations of their own."""
    engines = engines_of(served) if isinstance(served, Models) else only(served)
    with gr.Blocks(title="mm-rwkv7", analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
        with gr.Row(elem_id="head"):
            gr.Markdown(INTRODUCTION, elem_id="introduction")
            model = model_picker(served) if isinstance(served, Models) else gr.State("")
            switch = gr.Button("Light or dark", size="sm", elem_id="theme")
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap"):
            with gr.Tab("Chat", id="chat"):
                leave = picked_chat(served, model) if isinstance(served, Models) else _chat(served)
            with gr.Tab("Many files", id="gallery"):
                add_gallery(engines, model)
            with gr.Tab("Long text", id="document"):
                add_document(engines, model)
            with gr.Tab("What it remembers", id="state"):
                add_state_view(engines, model)
        switch.click(None, js=SWITCH, **AT_ONCE)
        page.load(None, js=NAMES, **AT_ONCE)
        page.unload(leave)
    return page


def _chat(engine: Engine) -> Leave:
    handlers = Handlers(engine)
    chat_tab(handlers)
    return handlers.leave
