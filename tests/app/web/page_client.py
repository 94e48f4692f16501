"""The page as a program talks to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradio_client import Client, handle_file

CONTROLS = {
    "remember": True,
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "presence_penalty": 0,
    "count_penalty": 0,
    "penalty_decay": 1,
    "max_new_tokens": 8,
    "seed": 0,
}


class PageClient:
    """A visitor: one conversation after another, as the page shows them."""

    def __init__(self, url: str, **options: Any) -> None:
        self.client = Client(url, verbose=False, **options)

    def submit(self, text: str, *files: Path, **controls: Any) -> Any:
        """The job of an answer, whose iteration gives the components' values."""
        return self.client.submit(message(text, *files), *(CONTROLS | controls).values(), api_name="/ask")

    def ask(self, text: str, *files: Path, **controls: Any) -> str:
        return answers(self.submit(text, *files, **controls).result())[-1]

    def do(self, name: str, *inputs: Any) -> Any:
        return self.client.predict(*inputs, api_name=f"/{name}")


def message(text: str, *files: Path) -> dict[str, Any]:
    return {"text": text, "files": [handle_file(str(file)) for file in files]}


def said(outputs: Any) -> Iterator[tuple[str, str]]:
    """Who says what in the chat; a picture or a sound is its alternative text."""
    for one in outputs[0]:
        for part in one["content"]:
            yield one["role"], part["text"] if part["type"] == "text" else part["alt_text"]


def answers(outputs: Any) -> list[str]:
    return [text for role, text in said(outputs) if role == "assistant"]
