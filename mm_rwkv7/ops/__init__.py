"""The WKV-7 recurrence: `wkv7` picks the fastest path for its inputs, `wkv7_reference` is the definition. And what is
around it: `linear`, `squared_relu`."""

from .dispatch import count_sequences, wkv7, wkv_path, wkv_reason
from .linear import linear, squared_relu
from .reference import wkv7_reference

__all__ = ["count_sequences", "linear", "squared_relu", "wkv7", "wkv7_reference", "wkv_path", "wkv_reason"]
