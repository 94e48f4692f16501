"""A record of any known layout as messages: LLaVA's and VisualRWKV's, chat messages, question and answer, captions."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mm_rwkv7.config import PromptTemplate
from mm_rwkv7.processor import Message

ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
KEYS = {"image": ("image", "images"), "audio": ("audio", "audios")}  # what a record may call its pictures and sounds
MARKERS = {"<image>": "image", "<audio>": "audio"}
SAYS = ("conversations", "messages", "texts", "question", "caption")  # one of which a record has
LAYOUTS = "conversations, messages, texts, question and answer, or caption"

Turn = tuple[str, Any]  # role, content: a text with markers, or a list of parts
Part = dict[str, Any]


def messages_of(record: Mapping[str, Any], media: Callable[[Any], Any]) -> tuple[Message, ...]:
    """The messages of a record. `media` turns what the record says of a picture or a sound into its source.

    Pictures are listed under `image` or `images`, sounds under `audio` or `audios`, in the order of the markers
    `<image>` and `<audio>` in what the user says. A single one stands before the words of its turn, wherever its
    marker is, as the trainers of LLaVA and VisualRWKV put it; several stay where their markers are. In records without
    markers (`texts`, question and answer, captions) all stand before the first question. ValueError where a record has
    no known layout, or more or fewer markers than media.
    """
    given = {kind: [media(entry) for entry in _listed(record, keys)] for kind, keys in KEYS.items()}
    turns, marked = _turns(record, "audio" if given["audio"] and not given["image"] else "image")
    if not turns:
        raise ValueError(f"there are no turns, expected {LAYOUTS}")
    if not marked:
        first = [{"type": kind, kind: source} for kind, sources in given.items() for source in sources]
        index = next((i for i, (role, _) in enumerate(turns) if role == "user"), 0)
        role, text = turns[index]
        turns[index] = role, [*first, {"type": "text", "text": text}] if first else text
        return tuple({"role": role, "content": content} for role, content in turns)
    waiting = {kind: iter(sources) for kind, sources in given.items()}
    found = dict.fromkeys(KEYS, 0)
    messages = []
    for role, content in turns:
        if role == "user":
            content = list(_filled(content, waiting, found))
            content = content[0]["text"] if [part["type"] for part in content] == ["text"] else content
        elif not isinstance(content, str):
            content = "\n".join(_text(part, "text") for part in _pieces(content))
        messages.append({"role": role, "content": content})
    for kind, sources in given.items():
        if found[kind] != len(sources):
            raise ValueError(f"there are {found[kind]} <{kind}> markers for {len(sources)} {kind} files")
    return tuple(messages)


def _listed(record: Mapping[str, Any], keys: Sequence[str]) -> list[Any]:
    values = [record[key] for key in keys if record.get(key) not in (None, "", [])]
    return [entry for value in values for entry in (value if isinstance(value, list | tuple) else [value])]


def _turns(record: Mapping[str, Any], medium: str) -> tuple[list[Turn], bool]:
    """The turns of a record, and whether markers say where its media are."""
    if (turns := record.get("conversations")) is not None:
        return [_turn(turn, i, "from", "value") for i, turn in enumerate(_list(turns, "conversations"))], True
    if (turns := record.get("messages")) is not None:
        return [_turn(turn, i, "role", "content") for i, turn in enumerate(_list(turns, "messages"))], True
    if (pairs := record.get("texts")) is not None:
        both = [(_text(pair, "user"), _text(pair, "assistant")) for pair in _list(pairs, "texts")]
        return [turn for user, answer in both for turn in (("user", user), ("assistant", answer))], False
    if "question" in record:
        return [("user", _text(record, "question")), ("assistant", _text(record, "answer"))], False
    if "caption" in record:
        template = PromptTemplate()
        ask = template.caption if medium == "image" else template.sound_caption
        return [("user", ask), ("assistant", _text(record, "caption"))], False
    return [], False


def _list(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} is {value!r:.60}, expected a list")
    return value


def _text(record: Any, key: str) -> str:
    value = record.get(key) if isinstance(record, Mapping) else None
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r:.60}, expected a text")
    return value


def _turn(turn: Any, number: int, who: str, what: str) -> Turn:
    if not isinstance(turn, Mapping) or not {who, what} <= turn.keys():
        raise ValueError(f"turn {number} is {turn!r:.60}, expected {who!r} and {what!r}")
    if turn[who] not in ROLES:
        raise ValueError(f"turn {number} is from {turn[who]!r}, expected one of {', '.join(ROLES)}")
    if not isinstance(turn[what], str | list):
        raise ValueError(f"turn {number} says {turn[what]!r:.60}, expected a text")
    return ROLES[turn[who]], turn[what]


def _filled(content: Any, waiting: Mapping[str, Iterator[Any]], found: dict[str, int]) -> list[Part]:
    """The parts of what a user says, with the next picture or sound at every marker."""
    parts: list[Part] = []
    for piece in _pieces(content):
        kind = MARKERS.get(piece) if isinstance(piece, str) else piece.get("type")
        if kind in KEYS:
            found[kind] += 1
            parts.append({"type": kind, kind: next(waiting[kind], None)})
        elif isinstance(piece, str):
            if piece.strip():
                parts.append({"type": "text", "text": piece.strip()})
        else:
            parts.append({"type": "text", "text": _text(piece, "text")})
    media = [part for part in parts if part["type"] != "text"]
    if len(media) == 1:
        parts.sort(key=lambda part: part["type"] == "text")
    return parts


def _pieces(content: Any) -> Iterator[Any]:
    if isinstance(content, str):
        yield from re.split("(" + "|".join(MARKERS) + ")", content)
        return
    for part in content:
        if not isinstance(part, Mapping):
            raise ValueError(f"a turn has the part {part!r:.60}, expected a text, an image or an audio")
        yield part
