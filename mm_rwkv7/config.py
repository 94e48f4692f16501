"""MMConfig: everything that decides what a checkpoint computes, as typed values that travel in `config.json`."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from encoders.build import TowerConfig
from encoders.tiling import Tiling
from mm_rwkv7.compressor import CompressorConfig
from mm_rwkv7.hearing import SoundConfig
from mm_rwkv7.projector import AnyProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import AUDIO_TOKEN, IMAGE_TOKEN, TOKENIZERS
from mm_rwkv7.typed import build

FORMAT = "mm-rwkv7/1"


@dataclass(frozen=True)
class PromptTemplate:
    """How messages become one text. `{image}` in `image` stands for the run of image placeholders, with the World ids
    `image_start` and `image_end` around it; `{audio}` in `audio` for that of a sound's. What follows must be the same
    for both in a model that hears: a turn may be left open after either. `images_first` puts the pictures and sounds of
    a user's turn before all of it, `user` included, as WorldRWKV's first generation does. With `wordless`
    too, pictures and sounds without words are a whole turn, which is answered as it is. `answer` comes between
    `assistant` and the answer.

    The defaults are those of RWKV-7 World and VisualRWKV-7: `User: <image>\\nQUESTION\\n\\nAssistant:`, then
    ` ANSWER\\n\\n`.
    """

    system: str = "System: "
    user: str = "User: "
    assistant: str = "Assistant:"
    turn_end: str = "\n\n"
    image: str = "{image}\n"
    audio: str = "{audio}\n"
    stop: tuple[str, ...] = ("\n\n",)
    caption: str = "Describe the picture."
    sound_caption: str = "Describe the sound."
    answer: str = " "
    images_first: bool = False
    wordless: bool = False
    image_start: int | None = None
    image_end: int | None = None

    def __post_init__(self) -> None:
        if not all(self.stop):
            raise ValueError("an empty stop text would end every answer before it begins")
        for name in ("image", "audio"):
            if getattr(self, name).count(f"{{{name}}}") != 1:
                raise ValueError(f"the template's {name} is {getattr(self, name)!r}, expected {{{name}}} in it once")
        if self.wordless and not self.images_first:
            raise ValueError("a template that answers pictures and sounds without words puts them first")


@dataclass(frozen=True)
class MMConfig:
    """The composition: a language model, at most one tower with its projector and one way to hear, the vocabulary and
    the prompt.

    `tokenizer` is "world", "pile" (the 20B tokenizer of models trained on the Pile) or None for a model whose rows
    belong to neither: it reads ids only. `vocabulary` lists the World ids that a trimmed model keeps, in the order of
    its embedding rows; None is the whole vocabulary. `max_new_tokens` bounds an answer unless the caller says
    otherwise. `pool` is the grid (rows, columns) to which the tower's is averaged before the projector; `tiling` cuts
    large pictures, and each tile then takes as many tokens as a picture. `compressor` makes fewer tokens of them after
    the projector.
    """

    lm: RWKV7Config
    tower: TowerConfig | None = None
    projector: AnyProjectorConfig | None = None
    vocabulary: tuple[int, ...] | None = None
    template: PromptTemplate = field(default_factory=PromptTemplate)
    max_new_tokens: int = 256
    pool: tuple[int, int] | None = None
    tiling: Tiling | None = None
    tokenizer: str | None = "world"
    compressor: CompressorConfig | None = None
    sound: SoundConfig | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if (self.tower is None) != (self.projector is None):
            raise ValueError("a tower needs a projector and a projector needs a tower")
        if self.tower is None and (self.pool or self.tiling or self.compressor):
            raise ValueError("without a tower there is nothing to pool, to cut into tiles or to compress")
        image, audio = self.template.image.partition("{image}"), self.template.audio.partition("{audio}")
        if self.sound is not None and image[2] != audio[2]:
            raise ValueError(f"other words follow a picture than a sound: {image[2]!r} and {audio[2]!r}")
        marks = (self.template.image_start, self.template.image_end)
        if self.vocabulary is not None and marks != (None, None):
            raise ValueError(f"a picture's marks {marks} are World ids, which a trimmed vocabulary does not have")
        if self.pool is not None and (len(self.pool) != 2 or min(self.pool) < 1):
            raise ValueError(f"pool is {self.pool}, expected rows and columns")
        if self.tokenizer not in (None, *TOKENIZERS):
            raise ValueError(f"tokenizer is {self.tokenizer!r}, expected one of {sorted(TOKENIZERS)} or none")
        if self.tokenizer != "world" and any((self.tower, self.sound, self.vocabulary)):
            raise ValueError(
                f"towers, sound encoders and a list of World ids need the World tokenizer, not {self.tokenizer!r}"
            )
        if self.vocabulary is not None and len(self.vocabulary) != self.lm.vocab_size:
            raise ValueError(
                f"the vocabulary lists {len(self.vocabulary)} ids, the language model has {self.lm.vocab_size} rows"
            )
        if self.vocabulary is None and self.tokenizer and self.lm.vocab_size not in TOKENIZERS[self.tokenizer]:
            raise ValueError(
                f"the {self.tokenizer} tokenizer needs {TOKENIZERS[self.tokenizer]} rows "
                f"without a vocabulary, the language model has {self.lm.vocab_size}"
            )

    @cached_property
    def image_id(self) -> int:
        """The model's id of the image placeholder, -1 for a model without one."""
        return self._placeholder(IMAGE_TOKEN)

    @cached_property
    def audio_id(self) -> int:
        """The model's id of the audio placeholder, -1 for a model without one."""
        return self._placeholder(AUDIO_TOKEN)

    def _placeholder(self, world_id: int) -> int:
        if self.tokenizer != "world":
            return -1
        return world_id if self.vocabulary is None else self.vocabulary.index(world_id)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "MMConfig":
        """Read a `config.json`; a ValueError names the file and the field that is wrong."""
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a config of format {FORMAT!r}")
        try:
            return build(cls, fields)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
