"""Our own folder: `config.json`, `model.safetensors` (or shards with an index) and `README.md`."""

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint


def recognises(stored: Stored) -> bool:
    return stored.is_native


def open_stored(stored: Stored) -> Checkpoint:
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    return Checkpoint("mm-rwkv7", MMConfig.load(folder / "config.json"), stored.tensors, stored.path)
