"""A Stop button, which can be pressed while there is something to stop."""

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from app.web.media_panel import AT_ONCE

Run = tuple[list[Any], Any]  # what begins it, and the event that it is


def stop_button(elem_id: str) -> gr.Button:
    return gr.Button("Stop", variant="stop", interactive=False, min_width=110, elem_id=elem_id)


def stoppable(stop: gr.Button, runs: Sequence[Run]) -> None:
    """Have `stop`, which must cancel all of `runs`, be grey while none of them runs. The browser keeps the count: it
    knows at once what was begun, and in which order things end."""
    for number, (begun, run) in enumerate(runs):
        gr.on(begun, None, None, stop, js=_counted(stop, f"runs.add({number})"), **AT_ONCE)
        run.then(None, None, stop, js=_counted(stop, f"runs.delete({number})"), **AT_ONCE)
    stop.click(None, None, stop, js=_counted(stop, "runs.clear()"), **AT_ONCE)


def _counted(stop: gr.Button, change: str) -> str:
    runs = f"const runs = (window.stoppable ??= {{}})[{json.dumps(stop.elem_id)}] ??= new Set();"
    return f"() => {{ {runs} {change}; return {{__type__: 'update', interactive: runs.size > 0}}; }}"
