"""What a config may ask of timm: one of the models that it defines, by a plain name, and arguments of its architecture.

A config travels with a checkpoint, so it must not make timm fetch or read other files.
"""

from collections.abc import Mapping
from typing import Any

REFUSED = ("cache_dir", "checkpoint_path", "features_only", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


def check_name(name: str) -> None:
    """Raise ValueError unless timm itself defines the model: `hf-hub:...` and `local-dir:...` name files."""
    import timm

    if ":" in name or not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; `timm.list_models()` names those it has")


def check_options(options: Mapping[str, Any]) -> None:
    """Raise ValueError for arguments of `timm.create_model` that tell where weights come from or wrap the model."""
    if refused := sorted(set(options) & set(REFUSED)):
        raise ValueError(f"the tower's options set {', '.join(refused)}, expected arguments of the architecture only")
