"""How far something is, for the eye and for a screen reader."""

from html import escape

import gradio as gr

CSS = """
progress { appearance: none; display: block; width: 100%; height: 0.6em; margin-bottom: 0.4em; border: none;
  border-radius: 0.3em; overflow: hidden; background: var(--border-color-primary); }
progress::-webkit-progress-bar { background: var(--border-color-primary); }
progress::-webkit-progress-value { background: var(--color-accent); }
progress::-moz-progress-bar { background: var(--color-accent); }
"""


def progress_place(elem_id: str) -> gr.HTML:
    """Where `progress_bar` is shown."""
    return gr.HTML(css_template=CSS, apply_default_css=False, elem_id=elem_id)


def progress_bar(done: int, total: int, told: str) -> str:
    """HTML that says it in words, too."""
    words = escape(told)
    return f'<progress value="{done}" max="{total}" aria-label="{words}"></progress><div role="status">{words}</div>'
