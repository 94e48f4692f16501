"""Beside the chat: a camera, examples, and what the model makes of a sound."""

from typing import Any

import gradio as gr

from app.web import example_scenes, example_sounds
from app.web.handlers import Handlers
from app.web.heard import TAGS

AT_ONCE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def examples(handlers: Handlers, question: gr.MultimodalTextbox) -> None:
    """Messages that fill the question box."""
    model = handlers.engine.pipeline.model
    shown = example_scenes.examples() if model.tower is not None else []
    shown += example_sounds.examples() if model.sound is not None else []
    if shown:
        said = [[{"text": text, "files": [path]}] for path, text in shown]
        gr.Examples(said, [question], label="Examples", examples_per_page=len(said), elem_id="examples")
        question.keep_in_cache |= question.temp_files  # or these would go as old uploads do


def camera(question: gr.MultimodalTextbox) -> None:
    """A picture that is taken goes into the question box, which has no camera of its own."""
    with gr.Accordion("Camera", open=False, elem_id="camera-panel"):
        taken = gr.Image(
            label="Camera",
            type="filepath",
            sources=["webcam"],
            buttons=[],
            height=260,
            alt_text="The picture that was taken",
            elem_id="camera",
        )
    taken.input(_with_picture, [question, taken], [question, taken], **AT_ONCE)


def _with_picture(message: dict[str, Any] | None, path: str | None) -> tuple[Any, Any]:
    if path is None:
        return gr.skip(), gr.skip()
    said = message or {"text": "", "files": []}
    return {"text": said["text"], "files": [*said["files"], path]}, None


def heard(
    handlers: Handlers, question: gr.MultimodalTextbox, sent: list[Any], asked: gr.Button, left: list[Any]
) -> None:
    """The spectrogram and the tags of the sound that was sent last, with a message or before `asked` for them, until
    its conversation is `left` or a message taken back."""
    hearing = handlers.engine.pipeline.model.sound
    if hearing is None:
        return
    with gr.Column(visible=False) as place:
        spectrogram = gr.Image(
            label="The sound as the model sees it",
            format="png",
            interactive=False,
            buttons=[],
            alt_text="Spectrogram: time to the right, pitch upwards, the loud bright",
            elem_id="spectrogram",
        )
        tags = gr.Label(
            label="Heard",
            num_top_classes=TAGS,
            show_heading=False,
            visible=hearing.head is not None,
            elem_id="tags",
        )
    shown = [spectrogram, tags]
    # Beside the answer: Gradio 6.31 ends with one listener of an event before it begins with the next, and waits for
    # none that comes after another.
    begun = gr.on(sent, None, js="() => []", **AT_ONCE)
    drawn = begun.then(handlers.overhear, question, shown, api_visibility="private", show_progress="hidden")
    again = asked.click(handlers.hear, question, shown, api_name="hear", show_progress="hidden")
    for event in (drawn, again):
        event.success(lambda drawn: gr.Column(visible=drawn is not None), spectrogram, place, **AT_ONCE)
    gr.on(left, lambda: (None, None, gr.Column(visible=False)), None, [*shown, place], **AT_ONCE)
