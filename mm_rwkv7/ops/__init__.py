"""The WKV-7 recurrence: `wkv7` picks the fastest path for its inputs, `wkv7_reference` is the definition."""

from .dispatch import wkv7, wkv_path, wkv_reason
from .reference import wkv7_reference

__all__ = ["wkv7", "wkv7_reference", "wkv_path", "wkv_reason"]
