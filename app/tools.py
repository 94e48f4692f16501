"""Tools for other models, by the Model Context Protocol: ask about a picture or a sound, describe them, tag a sound.

Gradio's MCP server offers every function of the Blocks that it is given, so these stand in Blocks of their own, apart
from the page's handlers.
"""

from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.config import ServerConfig
from app.api.errors import Refused, refusals
from app.api.guard import Guard
from app.api.media import SOUNDS, picture, sound
from app.api.metrics import Metrics
from app.engine import Engine
from app.requests import Request
from app.tagging import tag
from mm_rwkv7.sampling import Sampling

PATH = "/tools"
SPOKEN = f"{PATH}/gradio_api/mcp"  # where the protocol is
LONGEST = 1024  # tokens of an answer
MOST_TAGS = 50


class Tools:
    """What is offered. Docstrings are what the other model reads."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self._engine, self._config = engine, config

    def ask_about_picture(self, image: str, question: str) -> str:
        """Answer a question about a picture.

        Args:
            image: The picture (PNG, JPEG, WebP, GIF or BMP) as a data URI: data:image/png;base64,...
            question: The question in plain words.
        """
        return self._told(lambda: self._answer(question, {"type": "image", "image": picture(image, self._config)}))

    def caption_picture(self, image: str) -> str:
        """Describe a picture in a sentence.

        Args:
            image: The picture (PNG, JPEG, WebP, GIF or BMP) as a data URI: data:image/png;base64,...
        """
        return self.ask_about_picture(image, self._engine.pipeline.model.config.template.caption)

    def ask_about_sound(self, audio: str, audio_format: str, question: str) -> str:
        """Answer a question about a sound.

        Args:
            audio: The sound file's bytes in base64.
            audio_format: What the file is: wav, mp3, flac or ogg.
            question: The question in plain words.
        """
        return self._told(lambda: self._answer(question, {"type": "audio", "audio": self._sound(audio, audio_format)}))

    def tag_sound(self, audio: str, audio_format: str, top: int = 5) -> str:
        """Name what is heard in a sound: one label a line, with its probability, the likeliest first.

        Args:
            audio: The sound file's bytes in base64.
            audio_format: What the file is: wav, mp3, flac or ogg.
            top: How many labels.
        """

        def tags() -> str:
            if not 1 <= top <= MOST_TAGS:
                raise ValueError(f"top is {top}, expected 1 to {MOST_TAGS}")
            heard = self._engine.pipeline.processor.sound(self._sound(audio, audio_format))
            found = tag(self._engine, heard, top, self._config.answer_s)
            return "\n".join(f"{label}: {score:.3f}" for label, score in found)

        return self._told(tags)

    @property
    def offered(self) -> list[Callable[..., str]]:
        """What the model can do. ValueError for one that takes words alone."""
        model = self._engine.pipeline.model
        tools: list[Callable[..., str]] = []
        if model.tower is not None:
            tools += [self.ask_about_picture, self.caption_picture]
        if model.sound is not None:
            tools += [self.ask_about_sound, *([] if model.sound.head is None else [self.tag_sound])]
        if not tools:
            raise ValueError(f"{self._engine.pipeline.name} neither sees nor hears, so there are no tools to offer")
        return tools

    def _answer(self, question: str, medium: dict[str, Any]) -> str:
        messages = [{"role": "user", "content": [medium, {"type": "text", "text": question}]}]
        most = min(LONGEST, self._config.answer_tokens)
        sampling = Sampling(min(most, self._engine.pipeline.model.config.max_new_tokens))
        request = Request(messages, sampling=sampling, timeout_s=self._config.answer_s)
        return self._engine.submit(request).result().text

    def _sound(self, audio: str, audio_format: str) -> bytes:
        if audio_format not in SOUNDS:
            raise ValueError(f"audio_format is {audio_format[:20]!r}, expected one of {', '.join(SOUNDS)}")
        return sound(audio, audio_format, self._config)

    def _told(self, work: Callable[[], str]) -> str:
        try:
            with refusals():
                return work()
        except Refused as error:
            raise gr.Error(error.message, print_exception=False) from None


def add_tools(app: FastAPI, engine: Engine, config: ServerConfig, at_once: int, metrics: Metrics) -> None:
    """Mount the tools, behind the interface's key and bounds. Before the page, which takes every path."""
    with gr.Blocks(title="mm-rwkv7 tools", analytics_enabled=False) as blocks:
        for tool in Tools(engine, config).offered:
            gr.api(tool, api_name=tool.__name__, queue=False)
    gr.mount_gradio_app(app, blocks, path=PATH, mcp_server=True, show_error=True, ssr_mode=False, run_history=False)
    app.add_middleware(_GuardedTools, config=config, at_once=at_once, metrics=metrics)


class _GuardedTools:
    """The interface's guard before the tools alone, and nothing but their protocol behind it: Gradio's other routes
    would take files, and keep them."""

    def __init__(self, app: ASGIApp, config: ServerConfig, at_once: int, metrics: Metrics) -> None:
        self._app, self._guarded = app, Guard(self._speak, config, at_once, metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        inside = scope["type"] == "http" and _within(scope["path"], PATH)
        await (self._guarded if inside else self._app)(scope, receive, send)

    async def _speak(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _within(scope["path"], SPOKEN):
            raise Refused(404, f"there is nothing here but {SPOKEN}/")
        await self._app(scope, receive, send)


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")
