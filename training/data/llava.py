"""Training data as LLaVA and VisualRWKV write it: a JSON list of conversations beside a folder of pictures.

Records stay in the file; only where each of them begins is kept.
"""

import codecs
import json
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from training.data.conversations import Conversation, Indexed, media_in
from training.data.records import messages_of

BLOCK = 1 << 20
SPACE = " \t\r\n"


class Llava(Indexed):
    """`[{"id", "image": path or [paths], "conversations": [{"from": "human" | "gpt", "value"}]}]`, or such records one
    a line; `records` has the layouts. Paths begin at `folder`: unless it is given the folder `images` beside
    the file, or the file's own.

    A ValueError names the file and the record that is no JSON object. What is wrong with a record itself is told when
    it is drawn, but for the first: a file of something else is refused.
    """

    def __init__(self, path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> None:
        self.path = Path(path)
        self.name = os.fspath(path)
        beside = self.path.parent / "images"
        self.folder = Path(folder) if folder is not None else beside if beside.is_dir() else self.path.parent
        self._starts, self._stops = array("Q"), array("Q")
        for start, stop in record_spans(self.path):
            self._starts.append(start)
            self._stops.append(stop)
        if not self._starts:
            raise ValueError(f"{path} has no records")
        try:
            self.get(0, 0)
        except ValueError as error:
            raise ValueError(f"{self.label(0, 0)}: {error}") from error

    @property
    def blocks(self) -> Sequence[int]:
        return (len(self._starts),)

    def label(self, block: int, item: int) -> str:
        return f"{self.path.name}, record {item}"

    def get(self, block: int, item: int) -> Conversation:
        with self.path.open("rb") as file:
            file.seek(self._starts[item])
            text = file.read(self._stops[item] - self._starts[item])
        try:
            record = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{self.path} has changed: {error}") from error
        messages = messages_of(record, lambda entry: media_in(self.folder, entry))
        return Conversation(f"{item} ({record['id']})" if "id" in record else str(item), messages, self.name)


def record_spans(path: Path) -> Iterator[tuple[int, int]]:
    """Where every record of a JSON list, or of a file with one record a line, begins and ends, in bytes. Memory does
    not grow with the file."""
    decoder, utf8 = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8")()
    text, at, place, count, wanted = "", 0, 0, 0, BLOCK

    def wrong(what: object) -> ValueError:
        return ValueError(f"{path}, record {count}: {what}")

    try:
        file = path.open("rb")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    with file:
        if file.read(3) == codecs.BOM_UTF8:
            place = 3
        file.seek(place)
        ended = begun = listed = False
        while True:
            while at < len(text) and (text[at] in SPACE + "," or (text[at] == "[" and not begun)):
                listed = listed or text[at] == "["
                begun = begun or listed
                place += 1
                at += 1
            whole = False
            if at < len(text):
                if text[at] == "]":
                    return
                if text[at] != "{":
                    raise wrong(f"found {text[at : at + 20]!r}, expected an object with a conversation")
                begun = True
                try:
                    _, end = decoder.raw_decode(text, at)
                    whole = True
                except json.JSONDecodeError as error:
                    if ended:
                        raise wrong(f"is no JSON: {error.msg}") from error
            if whole:
                length = len(text[at:end].encode())
                yield place, place + length
                place, at, count, wanted = place + length, end, count + 1, BLOCK
                continue
            if ended and listed:
                raise wrong("the list is cut short")
            if ended:
                return
            block = file.read(wanted)
            ended, wanted = not block, 2 * wanted
            try:
                text, at = text[at:] + utf8.decode(block, final=ended), 0
            except UnicodeDecodeError as error:
                raise wrong(f"is no UTF-8: {error.reason}") from error
