"""Any of our models as a folder that transformers loads."""

import os
from pathlib import Path

from mm_rwkv7.hf.modeling import MMRWKV7ForConditionalGeneration
from mm_rwkv7.hf.processing import MMRWKV7Processor
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.replaceable import check_exported
from mm_rwkv7.whole import replacing


def export(model: MMRWKV7, folder: str | os.PathLike[str], card: str) -> None:
    """Write `model` with its processor and model card, replacing `folder` only when all of it is written. A
    ValueError says when `folder` holds anything but such an export, and when the model needs `Pipeline`."""
    check_exported(Path(folder))
    processor = MMRWKV7Processor.from_core(model)  # refuses some models: before gigabytes are written
    with replacing(Path(folder)) as draft:
        MMRWKV7ForConditionalGeneration.from_core(model).save_pretrained(draft)
        processor.save_pretrained(draft)
        (draft / "README.md").write_text(card, encoding="utf-8")
