"""A folder that `mm_rwkv7.hf` wrote for transformers: our config under `native`, our tensors behind `model.`."""

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.language import EXPORTED, language_model
from mm_rwkv7.typed import build


def recognises(stored: Stored) -> bool:
    return stored.is_exported


def open_stored(stored: Stored) -> Checkpoint:
    try:
        config = build(MMConfig, stored.config.get("native"), "native")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{stored.path}: {error}") from error
    language_model(stored)  # whether its blocks are there
    tensors = {name.removeprefix(EXPORTED): tensor for name, tensor in stored.tensors.items()}
    return Checkpoint("mm-rwkv7 (transformers)", config, tensors, stored.path, EXPORTED.__add__)
