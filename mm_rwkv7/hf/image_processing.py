"""Pictures as the model's tower wants them, prepared by our Processor.

Letters: I pictures, S side of a prepared picture in pixels.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from encoders.protocol import Preprocess, Views, join
from mm_rwkv7.config import MMConfig
from mm_rwkv7.hf.remote import Remote, reference
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.processor import Processor
from mm_rwkv7.tokenizer import Tokenizer
from mm_rwkv7.typed import build


class MMRWKV7ImageProcessor(Remote, BaseImageProcessor):
    """`native` holds the fields of the model's MMConfig, `tower` those of its tower's Preprocess (None for a model
    that cannot see); `image_tokens` placeholders stand for one picture. Make one with `from_core`."""

    model_input_names = ["pixel_values"]  # noqa: RUF012 - transformers' own form

    def __init__(
        self, native: dict[str, Any], tower: dict[str, Any] | None = None, image_tokens: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.native, self.tower, self.image_tokens = native, tower, image_tokens
        config = build(MMConfig, native, "native")
        self._core = Processor(
            config, Tokenizer(config.vocabulary), build(Preprocess | None, tower, "tower"), image_tokens
        )

    @classmethod
    def from_core(cls, core: MMRWKV7) -> "MMRWKV7ImageProcessor":
        """The processor of a model. A ValueError says where a picture is more than one tensor of pixels."""
        preprocess = None if core.tower is None else core.tower.preprocess
        if core.config.tiling is not None or isinstance(preprocess, Views):
            how = "cuts pictures into tiles" if core.config.tiling else "looks at each picture in several ways"
            raise ValueError(
                f"the model {how}, and the transformers adapter gives it one tensor for each: use mm_rwkv7.Pipeline"
            )
        tower = None if preprocess is None else dataclasses.asdict(preprocess)
        return cls(dataclasses.asdict(core.config), tower, core.image_tokens)

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """Pictures (paths, bytes, PIL or "data:" addresses, nested as you like) -> pixel_values (I, 3, S, S) uint8,
        which the tower normalises. Nothing is fetched from a network."""
        return BatchFeature({"pixel_values": join([self._core.pixels(_read(image)) for image in flat(images)])})

    def to_dict(self) -> dict[str, Any]:
        return {
            "image_processor_type": type(self).__name__,
            "auto_map": {"AutoImageProcessor": reference(type(self).__name__)},
            "native": self.native,
            "tower": self.tower,
            "image_tokens": self.image_tokens,
        }


def flat(images: Any) -> Iterator[Any]:
    """Every picture of nested lists, in order."""
    if isinstance(images, list | tuple):
        for image in images:
            yield from flat(image)
    elif images is not None:
        yield images


def _read(image: Any) -> Any:
    """The bytes in a "data:" address, for our own reader, which knows transparency and 16 bits; others as they are."""
    if not isinstance(image, str) or not image.startswith("data:"):
        return image
    try:
        with urlopen(image) as answer:
            return answer.read()
    except (OSError, ValueError) as error:
        raise ValueError(f"{image[:80]} holds no picture: {error}") from error
