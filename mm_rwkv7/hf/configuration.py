"""The transformers config: a native MMConfig under one name, so that no field is told twice."""

import dataclasses
from typing import Any

from transformers import PreTrainedConfig

from mm_rwkv7.config import MMConfig
from mm_rwkv7.hf.remote import Remote, reference
from mm_rwkv7.typed import build


class MMRWKV7Config(Remote, PreTrainedConfig):
    """`native` holds the fields of an `MMConfig`; `core` is that config. Make one with `from_core`."""

    model_type = "mm_rwkv7"
    native: dict[str, Any] | None = None

    @classmethod
    def from_core(cls, core: MMConfig) -> "MMRWKV7Config":
        return cls(native=dataclasses.asdict(core))

    @property
    def core(self) -> MMConfig:
        """A ValueError says what is wrong with the fields of `native`."""
        return build(MMConfig, self.native, "native")

    @property
    def vocab_size(self) -> int:
        return self.core.lm.vocab_size

    @property
    def hidden_size(self) -> int:
        return self.core.lm.width

    @property
    def num_hidden_layers(self) -> int:
        return self.core.lm.layers

    def to_dict(self) -> dict[str, Any]:
        model = reference("MMRWKV7ForConditionalGeneration")
        auto_map = {
            "AutoConfig": reference("MMRWKV7Config"),
            "AutoModelForCausalLM": model,
            "AutoModelForImageTextToText": model,
        }
        return {**super().to_dict(), "auto_map": auto_map}


def check_tokenizer(core: MMConfig) -> None:
    """A ValueError where the tokenizer is another than World."""
    if core.tokenizer != "world":
        raise ValueError(
            f"the tokenizer is {core.tokenizer!r}, the transformers adapter has World's only: use mm_rwkv7.Pipeline"
        )
