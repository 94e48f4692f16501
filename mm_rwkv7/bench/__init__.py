"""Measurements: `python -m mm_rwkv7.bench <what>`. A time is told beside that of a named peer in the same run."""
