"""What a save may replace: nothing, an empty folder, or a folder that such a save wrote."""

import json
from pathlib import Path

from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import MODEL_TYPE
from mm_rwkv7.interop.naming import PILE_TOKENIZERS

# Each with model*.safetensors and its index.
NATIVE = ("config.json", "README.md", *PILE_TOKENIZERS)
EXPORTED = (
    "config.json",
    "README.md",
    "remote_code.py",
    "chat_template.jinja",
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)


def check_exported(folder: Path) -> None:
    """A ValueError unless `folder` may be replaced by one for transformers."""
    _check(folder, EXPORTED, _is_exported(folder / "config.json"), "an export of mm-rwkv7")


def check_native(folder: Path) -> None:
    """A ValueError unless `folder` may be replaced by a native checkpoint."""
    _check(folder, NATIVE, _is_native(folder / "config.json"), "a checkpoint of mm-rwkv7")


def _check(folder: Path, known: tuple[str, ...], ours: bool, what: str) -> None:
    if not folder.exists():
        return
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else [folder.name]
    only = all(name in known or (name.startswith("model") and ".safetensors" in name) for name in names)
    if names and not (ours and only):
        raise ValueError(f"{folder} exists and is not (only) {what}: name another place")


def _is_exported(config: Path) -> bool:
    try:
        fields = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(fields, dict) and fields.get("model_type") == MODEL_TYPE


def _is_native(config: Path) -> bool:
    try:
        MMConfig.load(config)
    except (OSError, ValueError):
        return False
    return True
