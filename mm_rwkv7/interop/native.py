"""Our own folder: `config.json`, `model.safetensors` (or shards with an index) and `README.md`."""

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.language import language_model


def recognises(stored: Stored) -> bool:
    return stored.is_native


def open_stored(stored: Stored) -> Checkpoint:
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    config = MMConfig.load(folder / "config.json")
    language_model(stored)  # whether its blocks are there
    return Checkpoint("mm-rwkv7", config, stored.tensors, stored.path)
