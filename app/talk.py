"""A conversation in a terminal, line by line. A state is a value: undo is going back to the one before the turn."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from app.media import Part, read_picture, read_sound, user_message
from app.output import print_error, print_stream

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampling
    from mm_rwkv7.state import State

COMMANDS = {
    "/image": "/image FILE  show a picture with the next question",
    "/sound": "/sound FILE  play a sound with the next question",
    "/undo": "/undo        go back before the last question",
    "/retry": "/retry       ask it again",
    "/save": "/save FILE   write the conversation's state",
    "/load": "/load FILE   go on from such a file",
    "/reset": "/reset       begin anew",
    "/help": "/help        say this",
    "/quit": "/quit        end, as an empty line does",
}


@dataclass(frozen=True)
class Point:
    """Where a question is asked: after what was read, with the pictures and sounds that go before its words."""

    state: "State | None"
    parts: tuple[Part, ...] = ()


class Talk:
    """`take` a line after the other, until one ends the talk."""

    def __init__(self, pipeline: "Pipeline", sampling: "Sampling", begin: Point) -> None:
        self._pipeline, self._sampling, self._begin = pipeline, sampling, begin
        self._now = begin
        self._asked: list[tuple[Point, str]] = []  # each question, and where it was asked

    def take(self, line: str) -> bool:
        """Answer a question or obey a command; False at the end. ValueError for what cannot be done, which changes
        nothing."""
        command, rest = (*line.split(maxsplit=1), "", "")[:2]
        if not line or command == "/quit":
            return False
        if not line.startswith("/"):
            self._ask(self._now, line)
        elif command not in COMMANDS:
            raise ValueError(f"there is no {command}; /help lists what there is")
        elif COMMANDS[command].split()[1] == "FILE":
            if not rest:
                raise ValueError(f"{command} wants a file")
            self._with_file(command, _file(rest))
        elif command == "/help":
            print(*COMMANDS.values(), sep="\n", file=sys.stderr)
        elif command == "/reset":
            self._now, self._asked = self._begin, []
        else:
            self._go_back(again=command == "/retry")
        return True

    def _ask(self, point: Point, question: str) -> None:
        stream = self._pipeline.stream(user_message(question, point.parts), self._sampling, point.state)
        print_stream(stream)
        self._asked.append((point, question))
        self._now = Point(stream.answer.state)

    def _go_back(self, again: bool) -> None:
        if not self._asked:
            raise ValueError("nothing was asked yet")
        point, question = self._asked[-1]
        if again:
            self._ask(point, question)
            del self._asked[-2]
        else:
            self._now = point
            del self._asked[-1]

    def _with_file(self, command: str, file: str) -> None:
        state, parts, model = self._now.state, self._now.parts, self._pipeline.model
        if command in ("/image", "/sound") and (model.tower if command == "/image" else model.sound) is None:
            raise ValueError(f"this model takes no {'pictures' if command == '/image' else 'sounds'}")
        if command == "/image":
            self._now = Point(state, (*parts, {"type": "image", "image": read_picture(file)}))
        elif command == "/sound":
            self._now = Point(state, (*parts, read_sound(file)))
        elif command == "/load":
            self._now, self._asked = Point(_load(file, self._pipeline)), []
        elif state is None:
            raise ValueError("nothing was asked yet, so there is nothing to save")
        else:
            _save(state, file)


def talk(talking: Talk) -> None:
    """Until an empty line, /quit or the end of the input. What cannot be done is said, and ends only a script."""
    asks = sys.stdin.isatty()
    if asks:
        print("ask about what you gave; /help lists commands, an empty line ends the talk", file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        try:
            if not talking.take(line.strip()):
                break
        except ValueError as error:
            if not asks:
                raise
            print_error(str(error))
    if not line:  # the end of the input, which has written no line's end after the prompt
        print(file=sys.stderr)


def _file(named: str) -> str:
    """As a shell would have it: in quotes or not, ~ for the home."""
    if len(named) > 1 and named[0] == named[-1] and named[0] in "'\"":
        named = named[1:-1]
    return os.path.expanduser(named)


def _save(state: "State", file: str) -> None:
    try:
        state.save(file)
    except OSError as error:
        raise ValueError(f"cannot write {file}: {error.strerror}") from error


def _load(file: str, pipeline: "Pipeline") -> "State":
    from app.state_files import load

    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    return load(data, pipeline)
