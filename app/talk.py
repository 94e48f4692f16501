"""A conversation in a terminal, line by line. A state is a value: undo is going back to the one before the turn.

A model with a vocabulary of its own, such as nano, was trained on single questions: it is asked each about the pictures
and sounds alone, as the page does it.
"""

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
    "/save": "/save FILE   write the state after the last answer",
    "/load": "/load FILE   go on from such a file",
    "/reset": "/reset       begin anew",
    "/help": "/help        say this",
    "/quit": "/quit        end, as an empty line does",
}

WITH_FILE = ("/image", "/sound", "/save", "/load")


@dataclass(frozen=True)
class Point:
    """Where a question is asked: after what was read, with the pictures and sounds that go before its words."""

    state: "State | None"
    parts: tuple[Part, ...] = ()


class Talk:
    """`take` a line after the other, until one ends the talk. `remembers` tells whether a question comes after the ones
    before it; None leaves it to the model."""

    def __init__(self, pipeline: "Pipeline", sampling: "Sampling", begin: Point, remembers: bool | None = None) -> None:
        self._pipeline, self._sampling, self._begin = pipeline, sampling, begin
        self.remembers = pipeline.model.config.vocabulary is None if remembers is None else remembers
        self._now = begin
        self._after = begin.state  # the last answer
        self._asked: list[tuple[Point, str, State | None]] = []  # each question, where, and the state to save before it

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
        elif command in WITH_FILE:
            if not rest:
                raise ValueError(f"{command} wants a file")
            self._with_file(command, _file(rest))
        elif command == "/help":
            print(*COMMANDS.values(), sep="\n", file=sys.stderr)
        elif command == "/reset":
            self._now, self._after, self._asked = self._begin, self._begin.state, []
            _tell("begun anew")
        else:
            self._go_back(again=command == "/retry")
        return True

    def _ask(self, point: Point, question: str) -> None:
        stream = self._pipeline.stream(user_message(question, point.parts), self._sampling, point.state)
        print_stream(stream)
        self._asked.append((point, question, self._after))
        self._after = stream.answer.state
        self._now = Point(self._after) if self.remembers else point

    def _go_back(self, again: bool) -> None:
        if not self._asked:
            raise ValueError("nothing was asked here yet")
        point, question, after = self._asked[-1]
        if again:
            self._ask(point, question)
            self._asked[-2:] = [(point, question, after)]
        else:
            self._now, self._after = point, after
            del self._asked[-1]
            _tell(f"back before: {question}")

    def _with_file(self, command: str, file: str) -> None:
        model = self._pipeline.model
        if command in ("/image", "/sound") and (model.tower if command == "/image" else model.sound) is None:
            raise ValueError(f"this model takes no {'pictures' if command == '/image' else 'sounds'}")
        if command == "/image":
            self._give({"type": "image", "image": read_picture(file)})
        elif command == "/sound":
            self._give(read_sound(file))
        elif command == "/load":
            self._after = _load(file, self._pipeline)
            self._now, self._asked = Point(self._after), []
            _tell(f"going on from {file}")
        elif self._after is None:
            raise ValueError("nothing was asked yet, so there is nothing to save")
        else:
            _save(self._after, file)
            _tell(f"written to {file}")

    def _give(self, part: Part) -> None:
        """Beside what was given since the last question."""
        used = bool(self._asked) and self._asked[-1][0] is self._now  # which happens only where nothing is remembered
        begin = Point(self._begin.state) if used else self._now
        self._now = Point(begin.state, (*begin.parts, part))
        _tell("it goes before the next question" if self.remembers else "the next questions are about it")


def talk(talking: Talk) -> None:
    """Until an empty line, /quit or the end of the input. What cannot be done is said, and ends only a script."""
    asks = sys.stdin.isatty()
    if asks:
        alone = "" if talking.remembers else "; this model takes each question by itself"
        _tell(f"ask your questions{alone}; /help lists commands, an empty line ends the talk")
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


def _tell(what: str) -> None:
    print(what, file=sys.stderr)


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
    try:
        return load(data, pipeline)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
