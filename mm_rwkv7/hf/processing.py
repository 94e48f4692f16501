"""Messages, texts and pictures to model inputs, the transformers way.

Letters: B rows, T tokens, I pictures, S side of a prepared picture in pixels.
"""

from typing import Any

from transformers import BatchFeature, ProcessorMixin

from mm_rwkv7.hf.chat_template import chat_template as jinja
from mm_rwkv7.hf.configuration import check_tokenizer
from mm_rwkv7.hf.image_processing import MMRWKV7ImageProcessor, flat
from mm_rwkv7.hf.remote import Remote, reference
from mm_rwkv7.hf.tokenization import IMAGE, MMRWKV7Tokenizer
from mm_rwkv7.model import MMRWKV7


class MMRWKV7Processor(Remote, ProcessorMixin):
    """A tokenizer and an image processor. `apply_chat_template` gives the ids that our own Processor gives."""

    def __init__(
        self, image_processor: MMRWKV7ImageProcessor, tokenizer: MMRWKV7Tokenizer, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.image_token, self.image_token_id = IMAGE, tokenizer.native.image_id
        self.auto_map = {"AutoProcessor": reference("MMRWKV7Processor")}

    @classmethod
    def from_core(cls, core: MMRWKV7) -> "MMRWKV7Processor":
        """The processor of a model. A ValueError says where no jinja can stand for its prompt template."""
        check_tokenizer(core.config)
        tokenizer = MMRWKV7Tokenizer(core.config.vocabulary)
        tokenizer.chat_template = jinja(core.config.template, tokenizer)
        return cls(MMRWKV7ImageProcessor.from_core(core), tokenizer, tokenizer.chat_template)

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """`text` with one IMAGE for each of `images`, in order -> input_ids (B, T), attention_mask (B, T),
        pixel_values (I, 3, S, S) uint8. `kwargs` go to the tokenizer.

        A ValueError says when pictures and placeholders differ in number, in a row where `images` has a list for each.
        """
        if videos is not None or audio is not None:
            raise ValueError("this model reads texts and pictures, it takes no video and no sound")
        if text is None:
            raise ValueError("there is no text")
        rows = [text] if isinstance(text, str) else text
        strange = [type(row).__name__ for row in rows if not isinstance(row, str)]
        if strange:
            raise ValueError(f"a text is a {strange[0]}, expected a string")
        pictures = list(flat(images))
        _check_counts([row.count(IMAGE) for row in rows], images, len(pictures))
        pixels = self.image_processor(pictures) if pictures else {}
        options = {**kwargs.pop("text_kwargs", {}), **kwargs}
        run = IMAGE * self.image_processor.image_tokens
        return BatchFeature({**self.tokenizer([row.replace(IMAGE, run) for row in rows], **options), **pixels})

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names]


def _check_counts(placeholders: list[int], images: Any, pictures: int) -> None:
    """As many pictures as placeholders, row by row where `images` holds a list for each row."""
    if sum(placeholders) != pictures:
        raise ValueError(f"the text has {sum(placeholders)} {IMAGE}, but {pictures} pictures came")
    if isinstance(images, list | tuple) and images and all(isinstance(row, list | tuple) for row in images):
        given = [len(list(flat(row))) for row in images]
        if given != placeholders:
            raise ValueError(f"the texts have {placeholders} {IMAGE}, but {given} pictures came")
