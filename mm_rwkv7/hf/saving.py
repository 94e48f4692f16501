"""How a folder for transformers is written: aside first, so that a save that fails leaves what was there."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from mm_rwkv7.interop.naming import INDEX, SHARD

WHOLE = "model.safetensors"


@contextmanager
def merging(folder: Path) -> Iterator[Path]:
    """A new folder to write to, whose files take their places in `folder`, beside what else is there, when the block
    ends well. Weights of an earlier save go. A file that is memory-mapped keeps its content for who maps it, because it
    is replaced and not overwritten."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, expected a folder to save to")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        draft = Path(name)
        yield draft
        written = {file.name for file in draft.iterdir()}
        for new in written:
            (draft / new).replace(folder / new)
        if any(map(_holds_weights, written)):
            for file in folder.iterdir():
                if _holds_weights(file.name) and file.name not in written:
                    file.unlink()


def _holds_weights(name: str) -> bool:
    return name in (WHOLE, INDEX) or (name.startswith("model-") and SHARD.fullmatch(name) is not None)
