"""The Hugging Face way in: mm-rwkv7 as a transformers config, model, tokenizer and processor.

`register()` makes the Auto classes know them. A folder that `export` or `save_pretrained` wrote needs no `register`
where `trust_remote_code=True` is given. The names load transformers on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_rwkv7.hf.cache import RecurrentCache
    from mm_rwkv7.hf.configuration import MMRWKV7Config
    from mm_rwkv7.hf.folder import export
    from mm_rwkv7.hf.image_processing import MMRWKV7ImageProcessor
    from mm_rwkv7.hf.modeling import MMRWKV7ForConditionalGeneration
    from mm_rwkv7.hf.processing import MMRWKV7Processor
    from mm_rwkv7.hf.tokenization import MMRWKV7Tokenizer

__all__ = [
    "MMRWKV7Config",
    "MMRWKV7ForConditionalGeneration",
    "MMRWKV7ImageProcessor",
    "MMRWKV7Processor",
    "MMRWKV7Tokenizer",
    "RecurrentCache",
    "export",
    "register",
]

_HOME = {
    "MMRWKV7Config": "configuration",
    "MMRWKV7ForConditionalGeneration": "modeling",
    "MMRWKV7ImageProcessor": "image_processing",
    "MMRWKV7Processor": "processing",
    "MMRWKV7Tokenizer": "tokenization",
    "RecurrentCache": "cache",
    "export": "folder",
}


def register() -> None:
    """Teach transformers' Auto classes for configs, causal language models, image-text-to-text models, tokenizers,
    image processors and processors ours. Calling it again changes nothing."""
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )

    from mm_rwkv7.hf.configuration import MMRWKV7Config
    from mm_rwkv7.hf.image_processing import MMRWKV7ImageProcessor
    from mm_rwkv7.hf.modeling import MMRWKV7ForConditionalGeneration
    from mm_rwkv7.hf.processing import MMRWKV7Processor
    from mm_rwkv7.hf.tokenization import MMRWKV7Tokenizer

    AutoConfig.register(MMRWKV7Config.model_type, MMRWKV7Config, exist_ok=True)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        auto.register(MMRWKV7Config, MMRWKV7ForConditionalGeneration, exist_ok=True)
    AutoTokenizer.register(MMRWKV7Config, tokenizer_class=MMRWKV7Tokenizer, exist_ok=True)
    AutoImageProcessor.register(MMRWKV7Config, image_processor_classes={"pil": MMRWKV7ImageProcessor}, exist_ok=True)
    AutoProcessor.register(MMRWKV7Config, MMRWKV7Processor, exist_ok=True)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
