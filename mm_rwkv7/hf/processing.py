"""Messages, texts and pictures to model inputs, the transformers way; pictures are prepared by our Processor.

Letters: B rows, T tokens, I pictures, S side of a prepared picture in pixels.
"""

import dataclasses
import os
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin
from transformers.image_utils import load_image

from encoders.protocol import Preprocess
from mm_rwkv7.config import MMConfig
from mm_rwkv7.hf.chat_template import chat_template as jinja
from mm_rwkv7.hf.remote import Remote, add_code, reference
from mm_rwkv7.hf.tokenization import IMAGE, MMRWKV7Tokenizer
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.processor import Processor
from mm_rwkv7.typed import build

ADDRESS = ("http://", "https://", "data:")


class MMRWKV7Processor(Remote, ProcessorMixin):
    """Make one with `from_core`. `native` holds the fields of the model's MMConfig, `preprocess` those of its tower's
    Preprocess (None for a model that cannot see); `image_tokens` placeholders stand for one picture."""

    def __init__(
        self,
        tokenizer: MMRWKV7Tokenizer,
        native: dict[str, Any],
        preprocess: dict[str, Any] | None = None,
        image_tokens: int = 0,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template)
        self.native, self.preprocess, self.image_tokens = native, preprocess, image_tokens
        self.image_token, self.image_token_id = IMAGE, tokenizer.native.image_id
        self.auto_map = {"AutoProcessor": reference("MMRWKV7Processor")}
        config = build(MMConfig, native, "native")
        self._core = Processor(
            config, tokenizer.native, build(Preprocess | None, preprocess, "preprocess"), image_tokens
        )

    @classmethod
    def from_core(cls, core: MMRWKV7) -> "MMRWKV7Processor":
        """The processor of a model."""
        tokenizer = MMRWKV7Tokenizer(core.config.vocabulary)
        tokenizer.chat_template = jinja(core.config.template, tokenizer)
        preprocess = None if core.tower is None else dataclasses.asdict(core.tower.preprocess)
        native = dataclasses.asdict(core.config)
        return cls(tokenizer, native, preprocess, core.image_tokens, chat_template=tokenizer.chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """`text` with one IMAGE for each of `images` (paths, addresses, bytes or PIL, nested as you like), in order ->
        input_ids (B, T), attention_mask (B, T), pixel_values (I, 3, S, S) uint8. `kwargs` go to the tokenizer.

        A ValueError says when pictures and placeholders differ in number.
        """
        if videos is not None or audio is not None:
            raise ValueError("this model reads texts and pictures, it takes no video and no sound")
        if text is None:
            raise ValueError("there is no text")
        pictures = list(_flat(images))
        rows = [text] if isinstance(text, str) else text
        placeholders = sum(row.count(IMAGE) for row in rows)
        if placeholders != len(pictures):
            raise ValueError(f"the text has {placeholders} {IMAGE}, but {len(pictures)} pictures came")
        pixels = [self._core.pixels(_fetched(picture)) for picture in pictures]
        options = {**kwargs.pop("text_kwargs", {}), **kwargs}
        inputs = self.tokenizer([row.replace(IMAGE, IMAGE * self.image_tokens) for row in rows], **options)
        return BatchFeature({**inputs, **({"pixel_values": torch.stack(pixels)} if pixels else {})})

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, "pixel_values"]

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        files = super().save_pretrained(save_directory, *args, **kwargs)
        add_code(save_directory)
        return files


def _flat(images: Any) -> Any:
    if isinstance(images, list | tuple):
        for image in images:
            yield from _flat(image)
    elif images is not None:
        yield images


def _fetched(image: Any) -> Any:
    return load_image(image) if isinstance(image, str) and image.startswith(ADDRESS) else image
