"""The RWKV World tokenizer: greedy longest match over 65,529 byte strings, and placeholders for other media.

A World id names a byte string, which need not be whole characters. A model id is a row of an embedding: the
same number for a full-sized model, an index into a list of World ids for one with a trimmed vocabulary.
"""

import ast
import codecs
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from typing import Any

END_OF_TEXT = 0
IMAGE_TOKEN = 65535
AUDIO_TOKEN = 65534
WORLD_SIZE = 65536

# How many embedding rows the models of a tokenizer have.
TOKENIZERS = {"world": (WORLD_SIZE,), "pile": (50277, 50304)}

# World id b + 1 is the single byte b.
BYTE_TOKENS = range(1, 257)
REQUIRED = frozenset({END_OF_TEXT, AUDIO_TOKEN, IMAGE_TOKEN, *BYTE_TOKENS})


def tokenizer_for(rows: int) -> str | None:
    """The tokenizer of a published model with this many embedding rows."""
    return next((name for name, sizes in TOKENIZERS.items() if rows in sizes), None)


def _vocabulary_file() -> Traversable:
    return files("pyrwkv_tokenizer") / "rwkv_vocab_v20230424.txt"


@cache
def _world_bytes() -> tuple[bytes, ...]:
    """The bytes of every World id; b"" for the end of text, the placeholders and the unused ids."""
    lines = _vocabulary_file().read_text(encoding="utf-8").rstrip("\n").split("\n")
    table = [b""] * WORLD_SIZE
    literals: dict[int, str] = {}
    for line in lines:
        world_id, _, rest = line.partition(" ")
        entry = rest.rpartition(" ")[0]
        if entry.startswith("b") or "\\" in entry:
            literals[int(world_id)] = entry
        else:  # nearly all: what stands between the quotes; evaluating them as well takes six times as long
            table[int(world_id)] = entry[1:-1].encode()
    for index, value in zip(literals, ast.literal_eval(f"[{','.join(literals.values())}]"), strict=True):
        table[index] = value.encode() if isinstance(value, str) else value
    return tuple(table)


@cache
def _encoder() -> Any:
    from pyrwkv_tokenizer import RWKVTokenizer

    with as_file(_vocabulary_file()) as path:
        return RWKVTokenizer(vocab_filepath=str(path))


def _encode_world(text: str) -> list[int]:
    try:
        ids: list[int] = _encoder().encode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has half a surrogate pair at character {error.start}, expected Unicode") from error
    return ids


class Tokenizer:
    """Text <-> model ids. `vocabulary` lists a trimmed model's World ids in the order of its embedding rows.

    A trimmed vocabulary must hold the end of text, the 256 single bytes and both placeholders: an id outside
    it is spelled in bytes, so any text can be written. A ValueError says what is wrong with it.
    """

    def __init__(self, vocabulary: Sequence[int] | None = None) -> None:
        self._world_ids: Sequence[int] = range(WORLD_SIZE) if vocabulary is None else tuple(vocabulary)
        self._index: dict[int, int] | None = None
        if vocabulary is not None:
            self._index = {world_id: index for index, world_id in enumerate(vocabulary)}
            self._check(self._index)
        self.size = len(self._world_ids)
        self.end_id = self._world_ids.index(END_OF_TEXT)
        self.image_id = self._world_ids.index(IMAGE_TOKEN)
        self.audio_id = self._world_ids.index(AUDIO_TOKEN)
        self.unwritable: Sequence[int] = (self.image_id, self.audio_id)  # ids that no answer may hold

    def _check(self, index: dict[int, int]) -> None:
        if missing := sorted(REQUIRED - index.keys()):
            shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise ValueError(
                f"the vocabulary lacks {len(missing)} World ids that every model needs "
                f"(the end, the bytes, the placeholders): {shown}"
            )
        if len(index) != len(self._world_ids):
            raise ValueError(f"the vocabulary lists {len(self._world_ids) - len(index)} World ids more than once")
        if unknown := [world_id for world_id in index if not 0 <= world_id < WORLD_SIZE]:
            raise ValueError(f"the vocabulary lists id {unknown[0]}, expected World ids from 0 to {WORLD_SIZE - 1}")

    @staticmethod
    def trim(texts: Iterable[str]) -> tuple[int, ...]:
        """The World ids that occur in `texts` and those that every vocabulary needs, sorted.

        A text's ids depend on where it is cut: pass the pieces that will be encoded, not their concatenation.
        """
        return tuple(sorted(REQUIRED.union(*map(_encode_world, texts))))

    def encode(self, text: str) -> list[int]:
        """The model ids of `text`; never a placeholder. A lone surrogate is a ValueError."""
        world = _encode_world(text)
        if self._index is None:
            return world
        ids: list[int] = []
        for world_id in world:
            if world_id in self._index:
                ids.append(self._index[world_id])
            else:
                ids.extend(self._index[BYTE_TOKENS[byte]] for byte in _world_bytes()[world_id])
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a model id; b"" for the end of text and the placeholders."""
        if not 0 <= token < self.size:
            raise ValueError(f"{token} is not an id of this vocabulary, expected 0 to {self.size - 1}")
        return _world_bytes()[self._world_ids[token]]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def stream(self) -> "StreamDecoder":
        return StreamDecoder(self)


class StreamDecoder:
    """Decodes one id at a time and holds back an unfinished character.

    The pieces from `push` and the last one from `flush` join to `tokenizer.decode` of all the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.token_bytes(token))

    def flush(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""
        return self._decoder.decode(b"", final=True)
