"""Travels with every saved folder: transformers finds the model's classes here when it trusts remote code.

The classes themselves live in the package mm-rwkv7.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    try:
        from mm_rwkv7 import hf
    except ImportError as error:
        raise ImportError(
            "this model needs the package mm-rwkv7: get its source and run `pip install .` in it, then load again"
        ) from error
    return getattr(hf, name)
