"""The web page: its tabs, over one engine."""

import gradio as gr

from app.chat_tab import chat_tab
from app.engine import Engine
from app.handlers import Handlers
from app.look import NAMES, SWITCH
from app.media_panel import AT_ONCE

INTRODUCTION = """# mm-rwkv7
RWKV-7, a recurrent network without attention: all it has read is a small state, undone, forked and saved at once."""
UPLOADS_KEPT = 3600  # seconds


def build(engine: Engine) -> gr.Blocks:
    """The page around an engine. Each visitor, that is each open tab, has conversations of their own."""
    handlers = Handlers(engine)
    with gr.Blocks(title="mm-rwkv7", analytics_enabled=False, delete_cache=(UPLOADS_KEPT, UPLOADS_KEPT)) as page:
        with gr.Row(elem_id="head"):
            gr.Markdown(INTRODUCTION, elem_id="introduction")
            switch = gr.Button("Light or dark", size="sm", elem_id="theme")
        with gr.Tabs(elem_id="tabs"):  # noqa: SIM117 - a line for each further tab
            with gr.Tab("Chat", id="chat"):
                chat_tab(handlers)
        switch.click(None, js=SWITCH, **AT_ONCE)
        page.load(None, js=NAMES, **AT_ONCE)
        page.unload(handlers.leave)
    return page
