"""Conversations as tokens, and several of them in one row without a gap.

Letters: T tokens of a row.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from mm_rwkv7.processor import Clip, Medium, Message, Picture, Processor
from training.data.conversations import Conversation
from training.data.media import samples_of, tiles_of


class TooLongError(ValueError):
    """Not even the first answer of a conversation ends within the room there is."""


@dataclass(frozen=True)
class Sample:
    """A conversation in tokens. `answers` are the stretches (begin, end) of `ids` that the model learns to say; `sizes`
    are the tiles of each picture and the samples of each sound among `media`, which its placeholders were counted
    from."""

    conversation: Conversation
    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]
    media: tuple[Medium, ...]
    sizes: tuple[int, ...]


def tokenize(processor: Processor, conversation: Conversation, room: int) -> Sample:
    """The ids are those that `processor` gives for the messages, up to the last answer that ends within `room` tokens.
    ValueError where the messages cannot be read; TooLongError where no answer fits."""
    ids: list[int] = []
    answers: list[tuple[int, int]] = []
    media: list[Medium] = []
    sizes: list[int] = []
    length = kept = 0
    for message in conversation.messages:
        segments = _segments(processor, message)
        for number, segment in enumerate(segments):
            if isinstance(segment, Medium):
                size, piece = _placeholders(processor, segment)
                media.append(segment)
                sizes.append(size)
            else:
                piece = processor.tokenizer.encode(segment)
            ids += piece
            if message["role"] == "assistant" and number == len(segments) - 1 and len(ids) <= room:
                answers.append((len(ids) - len(piece), len(ids)))
                length, kept = len(ids), len(media)
        if len(ids) > room:
            break
    if not answers:
        if len(ids) > room:
            raise TooLongError(f"it has more than {room} tokens up to the end of the first answer")
        raise ValueError("there is no answer in it")
    return Sample(conversation, tuple(ids[:length]), tuple(answers), tuple(media[:kept]), tuple(sizes[:kept]))


def _segments(processor: Processor, message: Message) -> list[str | Medium]:
    """The pieces of one message as they stand inside a conversation."""
    if message.get("role") != "assistant":
        answer = {"role": "assistant", "content": ""}  # two pieces; without them a turn of media alone stays open
        return processor.segments([message, answer], generate=False)[:-2]
    if not message["content"]:
        raise ValueError("there is an empty answer in it")
    return processor.segments([message], generate=False)


def _placeholders(processor: Processor, medium: Medium) -> tuple[int, list[int]]:
    if isinstance(medium, Picture):
        tiles = tiles_of(medium.source, processor.tiling)
        return tiles, processor.placeholders(tiles)
    assert isinstance(medium, Clip)
    assert processor.sound_tokens is not None  # `segments` refuses sounds without it
    samples = samples_of(medium.source, processor.sound_tokens.frontend.rate)
    return samples, processor.sound_placeholders(samples)


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which of the lengths lie together in rows of `room`: the longest first, each where it leaves least empty (best
    fit decreasing). Every index once."""
    packs: list[list[int]] = []
    open_packs: list[tuple[int, int]] = []  # (room left, pack), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fits = bisect_left(open_packs, (lengths[index], 0))
        if fits < len(open_packs):
            left, number = open_packs.pop(fits)
        else:
            left, number = room, len(packs)
            packs.append([])
        assert lengths[index] <= left
        packs[number].append(index)
        insort(open_packs, (left - lengths[index], number))
    return packs
