from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mm_rwkv7.hf import MMRWKV7ForConditionalGeneration, MMRWKV7Processor
from mm_rwkv7.model import MMRWKV7

Conversations = list[list[dict[str, Any]]]


@pytest.fixture(scope="session")
def hf_model(tiny_model: MMRWKV7) -> MMRWKV7ForConditionalGeneration:
    """`tiny_model` for transformers. It is shared: leave it as it is."""
    return MMRWKV7ForConditionalGeneration.from_core(tiny_model)


@pytest.fixture(scope="session")
def hf_processor(tiny_model: MMRWKV7) -> MMRWKV7Processor:
    return MMRWKV7Processor.from_core(tiny_model)


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    noise = torch.randint(256, (4, 40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return [Image.fromarray(picture.numpy()) for picture in noise]


@pytest.fixture(scope="session")
def prompts(hf_processor: MMRWKV7Processor) -> Callable[[Conversations], dict[str, Tensor]]:
    """The model's inputs for conversations that want an answer, a row each."""

    def prepare(conversations: Conversations) -> dict[str, Tensor]:
        return hf_processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )

    return prepare


@pytest.fixture(scope="session")
def inputs(
    prompts: Callable[[Conversations], dict[str, Tensor]], pictures: list[Image.Image]
) -> Callable[..., dict[str, Tensor]]:
    """The model's inputs for questions, each a text or a text with the numbers of its pictures."""

    def prepare(*questions: str | tuple[str, list[int]]) -> dict[str, Tensor]:
        conversations = []
        for question in questions:
            text, numbers = (question, []) if isinstance(question, str) else question
            parts = [{"type": "image", "image": pictures[number]} for number in numbers]
            conversations.append([{"role": "user", "content": [*parts, {"type": "text", "text": text}]}])
        return prompts(conversations)

    return prepare
