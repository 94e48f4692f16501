"""A language model alone, under BlinkDL's names (.pth, .safetensors, rwkv.cpp's ggmf) or flash-linear-attention's."""

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.language import is_language_model, language_model
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import tokenizer_for


def recognises(stored: Stored) -> bool:
    return is_language_model(stored)


def open_stored(stored: Stored) -> Checkpoint:
    lm = language_model(stored)
    config = RWKV7Config.of({name: tensor.shape for name, tensor in lm.tensors.items()}, stored.path, lm.spell)
    tensors = {f"lm.{name}": tensor for name, tensor in lm.tensors.items()}
    tensors |= {name: tensor for name, tensor in stored.tensors.items() if not lm.holds(name)}
    return Checkpoint(
        f"{lm.format} RWKV-7 ({stored.container})",
        MMConfig(config, tokenizer=tokenizer_for(config.vocab_size)),
        tensors,
        stored.path,
        lambda name: lm.spell(name.removeprefix("lm.")) if name.startswith("lm.") else name,
    )
