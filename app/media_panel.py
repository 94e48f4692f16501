"""The page's place for a picture and a sound, with examples of both and what the model makes of a sound."""

from typing import Any

import gradio as gr
from gradio.helpers import Examples

from app import example_scenes, example_sounds
from app.handlers import Handlers
from app.heard import TAGS

AT_ONCE: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


def picture_and_sound(handlers: Handlers, question: gr.Textbox) -> tuple[gr.Image, gr.Audio | gr.State]:
    """A tab for each; a model that cannot hear has the picture alone, and a sound that is always none.

    An example also fills in the `question`, and takes away what the other tab holds.
    """
    model = handlers.pipeline.model
    if model.sound is None:
        picture = _picture()
        _scenes(picture, question)
        return picture, gr.State()
    with gr.Tabs(selected="sound" if model.tower is None else "picture", elem_id="media"):
        with gr.Tab("Picture", id="picture", visible=model.tower is not None) as picture_tab:
            picture = _picture()
            scenes = _scenes(picture, question)
        with gr.Tab("Sound", id="sound") as sound_tab:
            sound = _sound()
            sounds = _sounds(sound, question)
            _heard(sound, handlers)
    gr.on([picture.change, sound.change], _marked, [picture, sound], [picture_tab, sound_tab], **AT_ONCE)
    scenes.dataset.click(_nothing, None, sound, **AT_ONCE)
    sounds.dataset.click(_nothing, None, picture, **AT_ONCE)
    return picture, sound


def _nothing() -> None:
    return None


def _marked(picture: str | None, sound: str | None) -> list[gr.Tab]:
    """The tabs, with a mark on one that holds something: it is asked about even while the other is shown."""
    return [
        gr.Tab(label=name if held is None else f"{name} ●") for name, held in (("Picture", picture), ("Sound", sound))
    ]


def _picture() -> gr.Image:
    return _with_path(
        gr.Image(
            label="Picture",
            type="filepath",
            sources=["upload", "clipboard", "webcam"],
            height=340,
            buttons=["fullscreen"],
            alt_text="The picture that is asked about",
            elem_id="picture",
        )
    )


def _sound() -> gr.Audio:
    return _with_path(
        gr.Audio(
            label="Sound",
            type="filepath",
            sources=["upload", "microphone"],
            buttons=[],
            elem_id="sound",
        )
    )


def _with_path(component: Any) -> Any:
    """Gradio would open some files itself, and fail without saying why; the pipeline's readers say it."""

    def path(payload: Any) -> str | None:
        return None if payload is None else payload.path

    component.preprocess = path
    return component


def _heard(sound: gr.Audio, handlers: Handlers) -> None:
    """The spectrogram and the tags, which are there while a sound that can be read is."""
    hearing = handlers.pipeline.model.sound
    assert hearing is not None
    with gr.Column(visible=False) as place:
        spectrogram = gr.Image(
            label="As the model sees it",
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
    hidden = sound.change(lambda: gr.Column(visible=False), None, place, **AT_ONCE)
    heard = hidden.then(handlers.hear, sound, [spectrogram, tags], api_name="hear", show_progress="hidden")
    heard.success(lambda sound: gr.Column(visible=sound is not None), sound, place, **AT_ONCE)


def _scenes(picture: gr.Image, question: gr.Textbox) -> Examples:
    return gr.Examples(
        example_scenes.examples(), [picture, question], label="Examples", visible_columns=[0], elem_id="examples"
    )


def _sounds(sound: gr.Audio, question: gr.Textbox) -> Examples:
    examples: Examples = gr.Examples(
        example_sounds.examples(),
        [sound, question],
        label="Examples",
        example_labels=example_sounds.names(),
        elem_id="sound-examples",
    )
    # What Gradio does for the pictures: without it these would go as old uploads do.
    sound.keep_in_cache |= sound.temp_files
    return examples
