"""How `generate` feeds this model: the cache is made by its forward, and a row may have any number of pictures.

Letters: B batch, T time, I pictures.
"""

from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from mm_rwkv7.config import MMConfig
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.tokenizer import Tokenizer


class PictureGenerationMixin(GenerationMixin):
    """`pixel_values` (I, 3, S, S) are the pictures of all rows, in the order of their placeholders; transformers takes
    any tensor to have a row for each text."""

    model: MMRWKV7
    _is_stateful = True  # transformers then refuses assisted decoding, which would have to take tokens back

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # forward makes the cache

    def prepare_inputs_for_generation(
        self, input_ids: Any, next_sequence_length: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As transformers does it, without the pictures that the cache has read already."""
        pixels = kwargs.get("pixel_values")
        if pixels is not None and next_sequence_length is not None:
            places = input_ids == self.model.config.image_id  # (B, T)
            self._pictures(input_ids, pixels)
            pictures = (places.flatten().cumsum(0) - 1).view_as(places) // self.model.image_tokens
            unread = pictures[:, -next_sequence_length:][places[:, -next_sequence_length:]].unique()
            kwargs["pixel_values"] = pixels[unread] if len(unread) else None
        return cast(Any, super()).prepare_inputs_for_generation(input_ids, next_sequence_length, *args, **kwargs)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> Any:
        pixels = kwargs.pop("pixel_values", None)
        if pixels is not None and input_ids is not None:
            # Each row's pictures stay together: (a, b) becomes (a, b, a, b), not (a, a, b, b).
            rows = pixels.split(self._pictures(input_ids, pixels))
            pixels = torch.cat([row.repeat(expand_size, 1, 1, 1) for row in rows])
        expand = cast(Any, super())._expand_inputs_for_generation
        ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return ids, kwargs if pixels is None else {**kwargs, "pixel_values": pixels}

    def _pictures(self, input_ids: Tensor, pixels: Tensor) -> list[int]:
        """How many of `pixels` each row of input_ids (B, T) holds. A ValueError says when they are not as many."""
        places = (input_ids == self.model.config.image_id).sum(1)  # (B,)
        size = self.model.image_tokens
        if int(places.sum()) != len(pixels) * size or (size and (places % size).any()):
            raise ValueError(
                f"the rows have {places.tolist()} image placeholders, {size} for a picture, "
                f"but {len(pixels)} pictures came"
            )
        return (places // max(size, 1)).tolist()


def generation_config(core: MMConfig) -> GenerationConfig:
    """Answers as our own: without placeholders, until the end of text or a token whose bytes hold a stop text."""
    tokenizer = Tokenizer(core.vocabulary)
    stops = [text.encode() for text in core.template.stop]
    ends = [i for i in range(tokenizer.size) if any(stop in tokenizer.token_bytes(i) for stop in stops)]
    return GenerationConfig(
        eos_token_id=[tokenizer.end_id, *ends],
        pad_token_id=tokenizer.end_id,
        suppress_tokens=[tokenizer.image_id, tokenizer.audio_id],
        max_new_tokens=core.max_new_tokens,
    )
