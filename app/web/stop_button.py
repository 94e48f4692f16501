"""A Stop button, which can be pressed while there is something to stop. The browser keeps count: it knows at once what
was begun, and in which order things end."""

import json
from typing import Any

import gradio as gr

from app.web.media_panel import AT_ONCE


def stop_button(elem_id: str) -> gr.Button:
    """Grey. What it cancels, its other listeners say."""
    stop = gr.Button("Stop", variant="stop", interactive=False, min_width=110, elem_id=elem_id)
    stop.click(None, None, stop, js=_counted(stop, "runs.clear()"), **AT_ONCE)
    return stop


def stoppable(stop: gr.Button, run: str, begun: list[Any]) -> None:
    """`stop` can be pressed from `begun` on. To be called before the run itself listens to these: Gradio 6.31 ends with
    one listener of an event before it begins with the next."""
    gr.on(begun, None, None, stop, js=_counted(stop, f"runs.add({json.dumps(run)})"), **AT_ONCE)


def stoppable_until(stop: gr.Button, run: str, ended: Any) -> None:
    """`stop` is grey again when the event `ended` has, and nothing else runs."""
    for after in (ended.then, ended.failure):  # Gradio 6.31 takes no refusal for an end
        after(None, None, stop, js=_counted(stop, f"runs.delete({json.dumps(run)})"), **AT_ONCE)


def _counted(stop: gr.Button, change: str) -> str:
    runs = f"const runs = (window.stoppable ??= {{}})[{json.dumps(stop.elem_id)}] ??= new Set();"
    return f"() => {{ {runs} {change}; return {{__type__: 'update', interactive: runs.size > 0}}; }}"
