"""Training data in tables: parquet files on disk, and data sets of Hugging Face's `datasets` as streams."""

import copy
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.data.conversations import Conversation, Drawn, Fault, Indexed, Media, Position, Reader, media_in
from training.data.records import KEYS, LAYOUTS, SAYS, messages_of

if TYPE_CHECKING:
    from datasets import IterableDataset

MEDIA = tuple(name for names in KEYS.values() for name in names)
KEPT = 2  # row groups that are kept, however large they are: packs are filled across the end of one
ROOM = 1 << 29  # bytes of pictures and sounds that are kept where row groups are small
STEP = 16  # rows that are decoded at a time
BUFFER = 1 << 20  # bytes of a file that are read at a time


@dataclass(frozen=True)
class Cell:
    """A picture or a sound in a table."""

    table: "Parquet"
    block: int
    item: int
    column: str
    number: int  # in a list

    def read(self) -> bytes:
        value = self.table.column(self.block, self.column)[self.item][self.column]
        source = media_in(self.table.folder(self.block), value[self.number] if isinstance(value, list) else value)
        if isinstance(source, bytes):
            return source
        try:
            return Path(source).read_bytes()
        except OSError as error:
            raise ValueError(f"{source} cannot be read: {error.strerror}") from error


class Parquet(Indexed):
    """Parquet files, one block for each of their row groups. A row is a record (`records` has the layouts);
    pictures and sounds are `{bytes, path}`, bytes, or paths from the file's folder on, one or a list.

    To follow the stream costs the words alone. Of a column with pictures or sounds a row group is read whole when one
    of it is wanted, and kept for the others: pyarrow cannot skip rows, and it writes a thousand of them into one page.
    A ValueError names a file that is missing or no parquet.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], name: str) -> None:
        self.name = name
        self.paths = [Path(path) for path in paths]
        groups = [(path, group, rows) for path in self.paths for group, rows in enumerate(_groups(path))]
        self._groups = [(path, group) for path, group, _ in groups]
        self._sizes = [rows for *_, rows in groups]
        self._words = lru_cache(KEPT)(self._read)
        self._media: OrderedDict[tuple[int, str], tuple[list[dict[str, Any]], int]] = OrderedDict()

    @property
    def blocks(self) -> Sequence[int]:
        return self._sizes

    def folder(self, block: int) -> Path:
        return self._groups[block][0].parent

    def label(self, block: int, item: int) -> str:
        path, group = self._groups[block]
        first = block - group
        return f"{path.name}, row {sum(self._sizes[first:block]) + item}"

    def rows(self, block: int) -> list[dict[str, Any]]:
        """The rows of a block, all but the bytes of pictures and sounds."""
        return self._words(block)

    def column(self, block: int, name: str) -> list[dict[str, Any]]:
        """The rows of a block, of one column with pictures or sounds."""
        key = block, name
        if key not in self._media:
            rows = self._read(block, name)
            self._media[key] = rows, sum(map(_weight, rows))
            while len(self._media) > KEPT and sum(weight for _, weight in self._media.values()) > ROOM:
                self._media.popitem(last=False)
        self._media.move_to_end(key)
        return self._media[key][0]

    def _read(self, block: int, column: str | None = None) -> list[dict[str, Any]]:
        from pyarrow import default_memory_pool

        path, group = self._groups[block]
        file = _open(path)
        columns = [column] if column is not None else _light(file)
        try:
            # A few rows at a time: pyarrow cannot give two gigabytes of nested bytes at once.
            parts = file.iter_batches(STEP, row_groups=[group], columns=columns, use_threads=False)
            rows = [row for part in parts for row in part.to_pylist()]
        except (ValueError, OSError) as error:
            raise ValueError(f"{path}, row group {group} cannot be read: {error}") from error
        if column is not None:
            default_memory_pool().release_unused()  # pages, which it would keep for later, are several times the rows
        return rows

    def get(self, block: int, item: int) -> Conversation:
        row = dict(self.rows(block)[item])
        for column in MEDIA:
            value = row.get(column)
            if value is not None:
                count = len(value) if isinstance(value, list) else 1
                row[column] = [Cell(self, block, item, column, number) for number in range(count)]
        return Conversation(self.label(block, item), messages_of(row, lambda cell: cell), self.name)


def _open(path: Path) -> Any:
    import pyarrow.parquet as parquet

    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        return parquet.ParquetFile(path, buffer_size=BUFFER)
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise ValueError(f"{path} is no parquet table: {error}") from error


def _weight(value: Any) -> int:
    """Bytes of the files in a cell."""
    if isinstance(value, bytes):
        return len(value)
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_weight, inside))


def _groups(path: Path) -> list[int]:
    """How many rows each row group of a table has, whose columns must say what is said."""
    file = _open(path)
    if not set(SAYS) & set(file.schema_arrow.names):
        raise ValueError(f"{path} has the columns {file.schema_arrow.names}, expected {LAYOUTS}")
    return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _light(file: Any) -> list[str]:
    """The leaves of the columns without the bytes of pictures and sounds; of a column that has nothing but bytes, all
    of it."""
    leaves = [file.schema.column(i) for i in range(len(file.schema))]
    wanted: dict[str, list[str]] = {}
    heavy: dict[str, list[str]] = {}
    for leaf in leaves:
        column = leaf.path.partition(".")[0]
        is_bytes = leaf.physical_type == "BYTE_ARRAY" and str(leaf.logical_type.type) == "NONE"
        (heavy if column in MEDIA and is_bytes else wanted).setdefault(column, []).append(leaf.path)
    alone = {column: paths for column, paths in heavy.items() if column not in wanted}
    return [path for paths in (*wanted.values(), *alone.values()) for path in paths]


class Streamed(Reader):
    """A data set of Hugging Face's `datasets` that is read as a stream (`load_dataset(..., streaming=True)`), and taken
    up again from its `state_dict`. The order is the data set's own, and every rank reads all of it. One that shuffles
    with a buffer forgets what is in it when it is taken up again. Rows are those of `Parquet`."""

    def __init__(self, dataset: "IterableDataset", name: str, folder: str | os.PathLike[str] = ".") -> None:
        # Pictures and sounds stay bytes, to be decoded where they are wanted, as they are in columns of unknown kinds.
        self.dataset = dataset.decode(False) if dataset.features else dataset
        self.name = name
        self.folder = Path(folder)

    def stream(self, seed: int | str, position: Position = None) -> Iterator[tuple[Drawn, Position]]:
        epoch, number, state = (0, 0, None) if position is None else position
        while True:
            dataset = copy.deepcopy(self.dataset)
            dataset.set_epoch(epoch)
            if state is not None:
                dataset.load_state_dict(state)
            for row in dataset.iter(batch_size=1):  # iter(dataset) would share the rows among a loader's workers
                number += 1
                drawn = self._drawn({name: value[0] for name, value in row.items()}, epoch, number - 1)
                yield drawn, [epoch, number, dataset.state_dict()]
            if not number:
                raise ValueError(f"{self.name} has no records")
            epoch, number, state = epoch + 1, 0, None

    def _drawn(self, row: dict[str, Any], epoch: int, number: int) -> Drawn:
        id = f"epoch {epoch}, row {number}"
        try:
            return Conversation(id, messages_of(row, self._media), self.name)
        except ValueError as error:
            return Fault(id, self.name, str(error))

    def _media(self, entry: Any) -> Media:
        return media_in(self.folder, entry) if isinstance(entry, str | dict) else entry
