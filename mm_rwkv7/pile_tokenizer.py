"""The 20B tokenizer of models trained on the Pile: byte-level BPE, read from the file that GPT-NeoX published."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mm_rwkv7.hub import fetch
from mm_rwkv7.interop.naming import PILE_TOKENIZERS
from mm_rwkv7.tokenizer import Tokenizer

PUBLISHED = "hf:EleutherAI/gpt-neox-20b/tokenizer.json"
END = "<|endoftext|>"
# What only this tokenizer has in these places: the letters of 243 bytes follow two special tokens, "Ċ" is a line break.
PLACES = {END: 0, "<|padding|>": 1, "!": 2, "Ċ": 187}


def tokenizer_file(checkpoint: Path | None) -> Path:
    """The tokenizer's file beside a checkpoint's file or in its folder; from the hub where there is none."""
    if checkpoint is not None:
        folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
        for name in PILE_TOKENIZERS:
            if (folder / name).is_file():
                return folder / name
    return fetch(PUBLISHED)


class PileTokenizer(Tokenizer):
    """Text <-> ids of a model with `rows` embedding rows, of which the last ones may be unused. There are no
    placeholders: the models read text only. A ValueError says what is wrong with the file."""

    def __init__(self, file: Path, rows: int) -> None:
        self._bpe = _read(file)
        for token, place in PLACES.items():
            if (found := self._bpe.token_to_id(token)) != place:
                raise ValueError(f"{file} is not the 20B tokenizer: {token!r} has id {found}, expected {place}")
        added = self._bpe.get_added_tokens_decoder()
        self._bytes = [b""] * rows
        letters = _letters()
        for token, token_id in self._bpe.get_vocab(with_added_tokens=True).items():
            if token_id >= rows:
                raise ValueError(f"{file} has id {token_id}, the model only {rows} rows: it belongs to another")
            if token_id not in added:
                self._bytes[token_id] = _bytes_of(token, letters, file)
            elif not added[token_id].special:
                self._bytes[token_id] = token.encode()
        self.size = rows
        self.end_id = PLACES[END]
        self.image_id = self.audio_id = -1
        self.unwritable = [i for i, piece in enumerate(self._bytes) if not piece and i != self.end_id]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; what looks like a special token is spelled as text. A lone surrogate is a ValueError."""
        try:
            ids: list[int] = self._bpe.encode(text, add_special_tokens=False).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError("the text has half a surrogate pair, expected Unicode") from error
        return ids

    def token_bytes(self, token: int) -> bytes:
        """The bytes of an id; b"" for special tokens and unused rows."""
        if not 0 <= token < self.size:
            raise ValueError(f"{token} is not an id of this vocabulary, expected 0 to {self.size - 1}")
        return self._bytes[token]


def _read(file: Path) -> Any:
    from tokenizers import Tokenizer as Bpe

    try:
        bpe = Bpe.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is not a tokenizer's file: {error}") from error
    bpe.encode_special_tokens = True
    return bpe


def _letters() -> dict[str, int]:
    """Byte-level BPE writes a byte as a letter: itself where it prints, the next letter from 256 on elsewhere."""
    printing = (*range(33, 127), *range(161, 173), *range(174, 256))
    others = [byte for byte in range(256) if byte not in printing]
    return {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _bytes_of(token: str, letters: Mapping[str, int], file: Path) -> bytes:
    try:
        return bytes(letters[letter] for letter in token)
    except KeyError as error:
        raise ValueError(f"{file} is not of the 20B tokenizer: {token!r} is no byte-level token") from error
