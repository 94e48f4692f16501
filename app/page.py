"""The web page: its tabs, over one engine."""

import gradio as gr

from app.chat_tab import chat_tab
from app.engine import Engine
from app.handlers import Handlers

INTRODUCTION = """# mm-rwkv7
RWKV-7, a recurrent network without attention: whatever it has read is a small state, so it can be undone, forked and
saved at once."""
UPLOADS_KEPT = 3600  # seconds


def build(engine: Engine) -> gr.Blocks:
    """The page around an engine. Each visitor, that is each open tab, has conversations of their own."""
    handlers = Handlers(engine)
    with gr.Blocks(title="mm-rwkv7", analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
        gr.Markdown(INTRODUCTION, elem_id="introduction")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat", id="chat"):
                chat_tab(handlers)
        page.unload(handlers.leave)
    return page
