"""RWKV-7 as a multimodal model: pictures and sounds in, text out.

The names below load their modules on first use, so that `import mm_rwkv7` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_rwkv7.model import MMRWKV7
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
    from mm_rwkv7.sampling import Sampling
    from mm_rwkv7.state import State
    from mm_rwkv7.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "MMRWKV7",
    "RWKV7",
    "Pipeline",
    "RWKV7Config",
    "Sampling",
    "State",
    "Tokenizer",
    "__version__",
]

_HOME = {
    "MMRWKV7": "model",
    "Pipeline": "pipeline",
    "RWKV7": "rwkv7",
    "RWKV7Config": "rwkv7",
    "Sampling": "sampling",
    "State": "state",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
