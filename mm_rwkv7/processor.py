"""Messages in, a batch for the model out. The prompt is put together here and nowhere else.

Letters: B rows, T tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from encoders.protocol import Pixels, Preprocess, Views, join
from mm_rwkv7.config import MMConfig
from mm_rwkv7.hearing import Heard, SoundTokens
from mm_rwkv7.pictures import PictureSource, load_picture
from mm_rwkv7.sounds import Sound, SoundSource
from mm_rwkv7.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """Stands among the pieces of a prompt where a picture's placeholders go."""

    source: PictureSource


@dataclass(frozen=True)
class Clip:
    """Stands among the pieces of a prompt where a sound's placeholders go."""

    source: SoundSource | Heard


Medium = Picture | Clip


@dataclass(frozen=True)
class Batch:
    """What the model reads: `ids` (B, T) int64; `mask` (B, T) bool, False where padded, None when nothing is;
    `pixels` in the order of their placeholders, None without pictures; `tiles`, how many of them each picture was cut
    into; `sounds` in the order of their placeholders. `open_turn` says that it ends with a picture or a sound in a
    user's turn that has no words yet."""

    ids: Tensor
    mask: Tensor | None = None
    pixels: Pixels | None = None
    tiles: tuple[int, ...] = ()
    sounds: tuple[Sound | Heard, ...] = ()
    open_turn: bool = False


class Processor:
    """Applies the prompt template of `config`, tokenizes, and prepares pictures as `preprocess` says.

    `image_tokens` placeholders stand for one picture, or for each of its tiles; `preprocess` is None for a model that
    cannot see, `sound_tokens` for one that cannot hear.
    """

    def __init__(
        self,
        config: MMConfig,
        tokenizer: Tokenizer,
        preprocess: Preprocess | Views | None,
        image_tokens: int,
        sound_tokens: SoundTokens | None = None,
    ) -> None:
        self.template = config.template
        self.tokenizer = tokenizer
        self.preprocess = preprocess
        self.tiling = config.tiling
        self.compressor = config.compressor
        self.image_tokens = image_tokens
        self.sound_tokens = sound_tokens

    def __call__(self, messages: Sequence[Message], generate: bool = True, open_turn: bool = False) -> Batch:
        """A batch of one row, which ends with the prompt for an answer when `generate`.

        The row is cut into tokens piece by piece: the rows of `messages[:k]` (without `generate`) and of
        `messages[k:]` join to the row of `messages`, so a saved state can be continued. Likewise a prompt with
        `generate` is the beginning of the row that holds its answer. Without `generate`, a last message of
        media alone leaves its turn open; what follows is then processed with `open_turn`, as its rest.
        """
        ids: list[int] = []
        pixels: list[Pixels] = []
        tiles: list[int] = []
        sounds: list[Sound | Heard] = []
        segments = self.segments(messages, generate, open_turn)
        for segment in segments:
            if isinstance(segment, Picture):
                parts = self.parts(segment.source)
                ids += self.placeholders(len(parts))
                pixels.append(self._prepare(parts))
                tiles.append(len(parts))
            elif isinstance(segment, Clip):
                sounds.append(segment.source if isinstance(segment.source, Heard) else self.sound(segment.source))
                ids += self.sound_placeholders(sounds[-1].samples)
            else:
                ids += self.tokenizer.encode(segment)
        joined = join(pixels) if pixels else None
        opened = isinstance(segments[-1], Medium)
        return Batch(torch.tensor([ids]), None, joined, tuple(tiles), tuple(sounds), opened)

    def placeholders(self, tiles: int = 1) -> list[int]:
        """The ids that stand for a picture of so many tiles."""
        start, end = ([] if mark is None else [mark] for mark in (self.template.image_start, self.template.image_end))
        count = self.image_tokens * tiles if self.compressor is None else self.compressor.count(tiles)
        return [*start, *[self.tokenizer.image_id] * count, *end]

    def sound_placeholders(self, samples: int) -> list[int]:
        """The ids that stand for a sound of so many samples."""
        assert self.sound_tokens is not None
        return [self.tokenizer.audio_id] * self.sound_tokens.count(samples)

    def sound(self, source: SoundSource) -> Sound:
        """A sound as the encoder's waveform."""
        return Sound.read(source, self._hearing().frontend.rate)

    def _hearing(self) -> SoundTokens:
        if self.sound_tokens is None:
            raise ValueError("this model has no sound encoder, it cannot hear")
        return self.sound_tokens

    def pixels(self, source: PictureSource) -> Pixels:
        """One picture, or its tiles, as the tower's input."""
        return self._prepare(self.parts(source))

    def parts(self, source: PictureSource) -> list[Image.Image]:
        """What the tower sees of one picture: itself, or what the config's tiling makes of it."""
        picture = load_picture(source)
        return [picture] if self.tiling is None else self.tiling.cut(picture)

    def _prepare(self, parts: Sequence[Image.Image]) -> Pixels:
        if self.preprocess is None:
            raise ValueError("this model has no vision tower, it cannot read pictures")
        return self.preprocess.pixels(parts)

    def collate(self, batches: Sequence[Batch]) -> Batch:
        """One batch of several one-row ones, padded on the right."""
        if not batches:
            raise ValueError("there is no row to collate")
        lengths = torch.tensor([batch.ids.shape[1] for batch in batches])
        longest = int(lengths.max())
        rows = [F.pad(batch.ids, (0, longest - batch.ids.shape[1]), value=self.tokenizer.end_id) for batch in batches]
        mask = torch.arange(longest) < lengths[:, None]  # (B, T)
        pixels = [batch.pixels for batch in batches if batch.pixels is not None]
        tiles = tuple(count for batch in batches for count in batch.tiles)
        sounds = tuple(sound for batch in batches for sound in batch.sounds)
        return Batch(torch.cat(rows), None if mask.all() else mask, join(pixels) if pixels else None, tiles, sounds)

    def segments(
        self, messages: Sequence[Message], generate: bool = True, open_turn: bool = False
    ) -> list[str | Medium]:
        """The prompt's pieces in order: texts, each tokenized by itself, pictures and sounds.

        A ValueError says what is wrong with the messages.
        """
        if not messages:
            raise ValueError("there are no messages")
        segments: list[str | Medium] = []
        for number, message in enumerate(messages, start=1):
            segments += self._turn(message, f"message {number}", open_turn and number == 1)
        if not segments and not generate:
            raise ValueError("the message is empty")
        if generate:
            role, content = messages[-1]["role"], messages[-1]["content"]
            if role != "user":
                raise ValueError(f"the last message is from {role!r}, expected 'user' when an answer is wanted")
            if not self.template.wordless and not _has_words(content):
                raise ValueError("the question is empty")
            segments.append(self.template.assistant)
        elif (
            isinstance(segments[-1], str) and messages[-1]["role"] == "user" and not _has_words(messages[-1]["content"])
        ):
            del segments[-1]  # the turn's end: the words are still to come
        return segments

    def _turn(self, message: Message, where: str, continued: bool) -> list[str | Medium]:
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where} is {message!r:.80}, expected a role and a content")
        role = message["role"]
        if role not in ROLES:
            raise ValueError(f"{where} has role {role!r}, expected one of {', '.join(ROLES)}")
        parts = list(_parts(message["content"], where))
        if role == "user":
            return self._user_turn(parts, continued)
        if continued:
            raise ValueError(f"{where} is from {role!r}, expected 'user' after a picture or a sound without a question")
        if any(isinstance(part, Medium) for part in parts):
            raise ValueError(f"{where} is from {role!r} and has a picture or a sound, expected them from 'user' only")
        text = "".join(part for part in parts if isinstance(part, str))
        if role == "system":
            return [self.template.system + text + self.template.turn_end]
        return [self.template.assistant, (self.template.answer + text if text else "") + self.template.turn_end]

    def _user_turn(self, parts: list[str | Medium], continued: bool) -> list[str | Medium]:
        if not parts and not (continued and self.template.wordless):
            raise ValueError("the question is empty")
        if self.preprocess is None and any(isinstance(part, Picture) for part in parts):
            raise ValueError("this model has no vision tower, it cannot read pictures")
        if any(isinstance(part, Clip) for part in parts):
            self._hearing()
        template = self.template
        if template.images_first:
            media = [part for part in parts if isinstance(part, Medium)]
            words = "\n".join(part for part in parts if isinstance(part, str))
            if template.wordless and not words:
                return list(media)
            return [*media, template.user + words + template.turn_end]
        segments: list[str | Medium] = []
        image, _, after = template.image.partition("{image}")
        audio, _, _ = template.audio.partition("{audio}")  # what follows is the same for both
        text = after if continued else template.user
        for part in parts:
            if isinstance(part, str):
                text += part
                continue
            segments += [text + (image if isinstance(part, Picture) else audio), part]
            text = after
        return [*segments, text + template.turn_end]


def _has_words(content: Any) -> bool:
    return any(isinstance(part, str) for part in _parts(content, "the last message"))


def _parts(content: Any, where: str) -> Iterator[str | Medium]:
    """A message's media and texts in order; neighbouring texts become one, blank ones none."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ValueError(f"{where} has content {content!r:.80}, expected a text or a list of parts")
    lines: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image", "audio") or kind not in part:
            raise ValueError(
                f"{where} has the part {part!r:.80}, expected a text, an image or an audio under its type's name"
            )
        if kind != "text":
            if lines:
                yield "\n".join(lines)
                lines = []
            yield Picture(part["image"]) if kind == "image" else Clip(part["audio"])
        elif not isinstance(part["text"], str):
            raise ValueError(f"{where} has the text {part['text']!r:.80}, expected a string")
        else:
            # A blank line would read as the end of the turn.
            lines += [line for line in part["text"].strip().splitlines() if line.strip()]
    if lines:
        yield "\n".join(lines)
