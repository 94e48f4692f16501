"""The World tokenizer as transformers' slow tokenizer.

Transformers speaks of tokens as strings: a token's bytes are written as Latin-1, one character a byte.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from transformers import PythonBackend

from mm_rwkv7.hf.remote import Remote, reference
from mm_rwkv7.tokenizer import Tokenizer

END = "<|endoftext|>"
IMAGE = "<image>"
AUDIO = "<audio>"


class MMRWKV7Tokenizer(Remote, PythonBackend):
    """Text <-> model ids; `vocabulary` lists a trimmed model's World ids, None is the whole World vocabulary.

    The strings of END, IMAGE and AUDIO stand for their ids wherever they occur in a text. Rows are padded on the
    left, for `generate`.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012 - transformers' own form
    vocab_files_names: dict[str, str] = {}  # noqa: RUF012
    padding_side = "left"

    def __init__(self, vocabulary: Sequence[int] | None = None, **kwargs: Any) -> None:
        self.native = Tokenizer(vocabulary)
        ours = {"eos_token": END, "pad_token": END, "extra_special_tokens": [IMAGE, AUDIO]}
        super().__init__(**{"vocabulary": vocabulary, "clean_up_tokenization_spaces": False, **ours, **kwargs})
        self.init_kwargs["auto_map"] = {"AutoTokenizer": [reference("MMRWKV7Tokenizer"), None]}

    @property
    def vocab_size(self) -> int:
        return self.native.size

    @cached_property
    def _strings(self) -> list[str]:
        native = self.native
        names = {native.end_id: END, native.image_id: IMAGE, native.audio_id: AUDIO}
        strings = [native.token_bytes(token).decode("latin-1") for token in range(native.size)]
        return [string or names.get(token, f"<|unused_{token}|>") for token, string in enumerate(strings)]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {string: token for token, string in enumerate(self._strings)}

    def get_vocab(self) -> dict[str, int]:
        return {**self._ids, **self.added_tokens_encoder}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return [self._strings[token] for token in self.native.encode(text)]

    def _convert_token_to_id(self, token: str) -> int:
        if token not in self._ids:
            raise ValueError(f"{token!r} is no token of this vocabulary")
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        self.native.token_bytes(index)  # refuses an id that there is not
        return self._strings[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return b"".join(token.encode("latin-1") for token in tokens).decode("utf-8", errors="replace")

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """No file: `vocabulary` travels in `tokenizer_config.json`, the World vocabulary in pyrwkv-tokenizer."""
        return ()
