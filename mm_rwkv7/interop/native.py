"""Our own folder: `config.json`, `model.safetensors` (or shards with an index) and `README.md`."""

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint


def recognises(stored: Stored) -> bool:
    return stored.is_native


def open_stored(stored: Stored) -> Checkpoint:
    folder = stored.path if stored.path.is_dir() else stored.path.parent
    config = MMConfig.load(folder / "config.json")
    held = {name.split(".")[2] for name in stored.tensors if name.startswith("lm.blocks.")}
    if config.lm.layers > len(held):  # before so many are built
        raise ValueError(f"{stored.path} does not fit: it holds {len(held)} blocks, its config {config.lm.layers}")
    return Checkpoint("mm-rwkv7", config, stored.tensors, stored.path)
