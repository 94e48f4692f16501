"""`python -m training prepare IN OUT`: pictures, sounds and conversations of any layout as tar shards.

Every shard holds the same records however often the command was interrupted: shard k those from k * size on, in an
order that the seed chooses.
"""

import io
import json
import os
import sys
import tarfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mm_rwkv7.command import Parser, run_command
from mm_rwkv7.pictures import load_picture
from mm_rwkv7.sounds import check_sound
from mm_rwkv7.whole import write_text
from training.data.conversations import Conversation, Fault, Indexed, Media
from training.data.media import at_hand, content
from training.data.order import walk
from training.data.shards import INDEX, PICTURES, SOUNDS

SHARD_SIZE = 1000
SIGNATURES = {
    b"\xff\xd8": "jpg",
    b"\x89PNG": "png",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"II*\0": "tif",
    b"MM\0*": "tif",
    b"fLaC": "flac",
    b"OggS": "ogg",
    b"ID3": "mp3",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m training prepare", description="Turn training data into tar shards.")
    parser.add_argument("source", metavar="IN", help="a LLaVA file, parquet files, or a folder of pictures")
    parser.add_argument("out", metavar="OUT", help="the folder of the shards")
    parser.add_argument("--folder", help="where the paths in a LLaVA file begin")
    parser.add_argument("--shard-size", type=int, default=SHARD_SIZE, help="samples in a shard (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the samples")
    parser.add_argument("--text", action="store_true", help="IN is a table of texts: write OUT.bin and OUT.idx")
    parser.add_argument("--column", default="text", help="the texts' column, with --text (%(default)s)")
    return run_command(parser, arguments, _prepare)


def _prepare(options: Namespace) -> None:
    from training.data.readers import open_indexed

    if options.text:
        from training.data.text import prepare_text

        print(f"{options.out}: {prepare_text(options.source, options.out, options.column)} ids")
        return
    reader = open_indexed(options.source, options.folder)
    samples, skipped = prepare(reader, options.out, options.shard_size, options.seed)
    print(f"{options.out}: {samples} samples, {skipped} skipped")


def prepare(reader: Indexed, out: str | os.PathLike[str], size: int = SHARD_SIZE, seed: int = 0) -> tuple[int, int]:
    """Write the shards that are not there yet, and `index.json`, which lists them and every record that was skipped
    because it cannot be read. Returns how many samples were written and how many skipped, in all. ValueError where
    `out` was begun with other settings, or none of the first shard's records can be read."""
    if size < 1:
        raise ValueError(f"the shard size is {size}, expected at least 1")
    if not len(reader):
        raise ValueError(f"{reader.name} has no records")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"source": reader.name, "records": len(reader), "shard_size": size, "seed": seed}
    index = _begun(folder / INDEX, settings)
    order = islice(walk(reader.blocks, str(seed)), len(reader))
    with tqdm(total=len(reader), unit="sample", desc=folder.name) as bar:
        for number in range(-(-len(reader) // size)):
            name = f"shard-{number:06}.tar"
            places = [(block, item) for block, item, _ in islice(order, size)]
            if name not in index["shards"] or not (folder / name).is_file():
                samples, faults = _write(folder / name, reader, places, number * size, bar)
                if not samples and not index["shards"]:
                    (folder / name).unlink()
                    raise ValueError(f"none of the first {len(places)} records can be read; the last one: {faults[-1]}")
                size_there = (folder / name).stat().st_size
                index["shards"][name] = {"samples": samples, "bytes": size_there, "skipped": [str(f) for f in faults]}
                write_text(folder / INDEX, json.dumps(index, indent=1, ensure_ascii=False))
            else:
                bar.update(len(places))
    shards = index["shards"].values()
    return sum(shard["samples"] for shard in shards), sum(len(shard["skipped"]) for shard in shards)


def _begun(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    if not path.exists():
        return {"settings": settings, "shards": {}}
    try:
        index: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = index["settings"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no index of shards") from error
    if found != settings:
        raise ValueError(f"{path} is of shards from {found}, not {settings}; give these another folder")
    return index


def _write(
    path: Path, reader: Indexed, places: Sequence[tuple[int, int]], first: int, bar: "tqdm[Any]"
) -> tuple[int, list[Fault]]:
    """One shard. A record that cannot be read is named and left out."""
    draft = path.with_name(f".{path.name}.tmp")  # the next try writes over it
    faults: list[Fault] = []
    try:
        with tarfile.open(draft, "w", format=tarfile.GNU_FORMAT) as tar:
            for key, (block, item) in enumerate(places, start=first):
                drawn = reader.draw(block, item)
                try:
                    if isinstance(drawn, Fault):
                        raise ValueError(drawn.reason)
                    members = list(_members(drawn))
                except ValueError as error:
                    faults.append(Fault(reader.label(block, item), reader.name, str(error)))
                    tqdm.write(f"skipped {faults[-1]}", file=sys.stderr)
                else:
                    for suffix, data in members:
                        header = tarfile.TarInfo(f"{key:09}.{suffix}")
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))
                bar.update()
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return len(places) - len(faults), faults


def _members(conversation: Conversation) -> Iterator[tuple[str, bytes]]:
    """The files of a sample, each picture and sound read through."""
    media: list[tuple[str, Any]] = []

    def told(part: dict[str, Any]) -> dict[str, Any]:
        if part["type"] == "text":
            return part
        media.append((part["type"], part[part["type"]]))
        return {"type": part["type"]}

    messages = [
        {**message, "content": content if isinstance(content, str) else [told(part) for part in content]}
        for message, content in ((message, message["content"]) for message in conversation.messages)
    ]
    record = {"id": conversation.id, "messages": messages}
    yield "json", json.dumps(record, ensure_ascii=False).encode()
    for number, (kind, source) in enumerate(media):
        data = _checked(kind, source)
        yield f"{number}.{_ending(kind, data)}", data


def _checked(kind: str, source: Media) -> bytes:
    source = at_hand(source)
    data = content(source)
    if not isinstance(data, bytes):
        raise ValueError(f"a {kind} is given as {type(source).__name__}, expected a file or bytes")
    if kind == "image":
        load_picture(source)
    else:
        check_sound(source)
    return data


def _ending(kind: str, data: bytes) -> str:
    if data[:4] == b"RIFF":
        return "webp" if kind == "image" else "wav"
    found = next((ending for signature, ending in SIGNATURES.items() if data.startswith(signature)), None)
    kinds = PICTURES if kind == "image" else SOUNDS
    if found in kinds:
        return found
    return "jpg" if kind == "image" else "mp3"  # readers go by the content
