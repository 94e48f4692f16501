"""From a path to the reader of what lies there."""

import glob
import os
from pathlib import Path

from training.data.conversations import Indexed, Reader
from training.data.folders import PictureFolder
from training.data.llava import Llava
from training.data.shards import Shards
from training.data.tables import Parquet, Streamed

STREAM = "hf:"
ENDINGS = (".tar", ".parquet", ".json", ".jsonl")


def open_reader(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Reader:
    """A reader of a LLaVA file (`.json`, `.jsonl`), of shards (`.tar`) or of tables (`.parquet`): one file, a pattern
    such as `data/*.tar`, or a folder of them; of a folder of pictures with captions; or of a data set on the Hugging
    Face hub that is read as a stream (`hf:owner/name`, `hf:owner/name/split`). `folder` is where a LLaVA file's paths
    begin. A ValueError says what cannot be read."""
    name = os.fspath(path)
    if name.startswith(STREAM):
        return _streamed(name)
    return open_indexed(name, folder)


def open_indexed(path: str | os.PathLike[str], folder: str | os.PathLike[str] | None = None) -> Indexed:
    """Like `open_reader`, but of files that are here."""
    name = os.fspath(path)
    paths = [Path(found) for found in sorted(glob.glob(name))] if glob.has_magic(name) else [Path(name)]
    if not paths or not all(found.exists() for found in paths):
        raise ValueError(f"{name}: there is no such file or folder")
    if paths[0].is_dir():
        beneath = {ending: sorted(paths[0].glob(f"*{ending}")) for ending in (".tar", ".parquet")}
        inside = next((found for found in beneath.values() if found), None)
        if inside is None:
            return PictureFolder(paths[0])
        paths = inside
    endings = {found.suffix.lower() for found in paths}
    if len(endings) > 1 or not endings <= set(ENDINGS):
        raise ValueError(f"{name} is of {sorted(endings)}, expected one of {', '.join(ENDINGS)}")
    (ending,) = endings
    if ending == ".tar":
        return Shards(paths, name)
    if ending == ".parquet":
        return Parquet(paths, name)
    if len(paths) > 1:
        raise ValueError(f"{name} is {len(paths)} files, expected one of {ending}: give each a name of its own")
    return Llava(paths[0], folder)


def _streamed(name: str) -> Streamed:
    from datasets import load_dataset

    owner, _, rest = name.removeprefix(STREAM).partition("/")
    repo, _, split = rest.partition("/")
    try:
        dataset = load_dataset(f"{owner}/{repo}", split=split or "train", streaming=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be opened: {' '.join(str(error).split())}") from error
    return Streamed(dataset, name)
