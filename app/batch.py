"""`mm-rwkv7 ask --batch`: a question a line in, an answer a line out."""

import json
import os
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.media import Part
from mm_rwkv7.command import check_writable

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampling
    from mm_rwkv7.state import State


def answer_file(pipeline: "Pipeline", source: Path, target: Path, sampling: "Sampling") -> int:
    """Answer the lines of `source` into `target`, in order, and return how many have an "error".

    A line is `{"question", "image" or "images", "audio"}`, where audio is a path or a list of paths. Paths are relative
    to the file's folder, pictures come before sounds, and the line's own fields are kept. One of these that is nearly
    named as what the line lacks, or that names a file where the line has none, is an error: nobody wants an answer
    without the picture. Lines are written as they come to `<target>.partial`, which becomes `target` at the end; after
    an interruption it holds what was answered until then.
    """
    from tqdm import tqdm

    lines = source.read_bytes().splitlines()
    answerer = Answerer(pipeline, source.parent, sampling)
    draft = target.with_name(target.name + ".partial")
    failed = 0
    # Half a surrogate pair, which JSON may hold and UTF-8 may not, is written as the escape that it came as.
    with draft.open("w", encoding="utf-8", errors="backslashreplace") as out:
        for number, line in enumerate(tqdm(lines, unit="line", file=sys.stderr), start=1):
            if not line.strip():
                continue
            result = answerer(line, number)
            failed += "error" in result
            out.write(json.dumps(result, ensure_ascii=False) + "\n")
            out.flush()
    draft.replace(target)
    return failed


def check_batch(source: Path | None, target: Path | None) -> tuple[Path, Path]:
    """Both paths, or a ValueError, before a model is loaded for nothing."""
    if source is None or target is None:
        raise ValueError("--batch IN.jsonl and --out OUT.jsonl go together")
    if not source.is_file():
        raise ValueError(f"{source} is a folder" if source.is_dir() else f"{source}: there is no such file")
    if target.resolve() == source.resolve():
        raise ValueError(f"{target} is the file of questions, expected another one for the answers")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent}: there is no such folder to write to")
    if target.is_dir():
        raise ValueError(f"{target} is a folder, expected a file to write")
    check_writable(target.parent)
    return source, target


_KNOWN = ("question", "image", "images", "audio")
_ABOUT = tuple(f"{name}_" for name in _KNOWN)  # image_id and its like
_ALIKE = 0.7  # of 1: "imgae" and "img" are image, "id" and "label" are nothing
_EXPECTED = {"image": "a path", "images": "a list of paths", "audio": "a path or a list of paths"}


class Answerer:
    """Answers one line at a time; media that come again on the next line are not read again."""

    def __init__(self, pipeline: "Pipeline", folder: Path, sampling: "Sampling") -> None:
        self.pipeline, self.folder, self.sampling = pipeline, folder, sampling
        self._seen: tuple[list[Part], State | None] = ([], None)

    def __call__(self, line: bytes, number: int) -> dict[str, Any]:
        """The line's fields with its "answer" or its "error"."""
        fields: dict[str, Any] = {}
        try:
            fields = _fields(line, number)
            self._check_names(fields)
            question, media = _question(fields), self._media(fields)
            answer = self.pipeline.ask(question, sampling=self.sampling, state=self._after(media))
        except (ValueError, FloatingPointError) as error:
            return {**fields, "error": str(error)}
        return {**fields, "answer": answer.text}

    def _check_names(self, fields: dict[str, Any]) -> None:
        given = {name for name in _KNOWN if fields.get(name) is not None}
        for name, value in fields.items():
            if name in _KNOWN or name.lower().startswith(_ABOUT):
                continue
            meant = get_close_matches(name.lower(), _KNOWN, n=1, cutoff=_ALIKE)
            is_file = isinstance(value, str) and os.path.isfile(self.folder / value)
            if set(meant) - given or (is_file and given == {"question"}):
                guess = f", did you mean {meant[0]!r}?" if meant else ""
                raise ValueError(f"{name!r} is not read{guess} (known: {', '.join(_KNOWN)})")

    def _media(self, fields: dict[str, Any]) -> list[Part]:
        if fields.get("image") is not None and fields.get("images") is not None:
            raise ValueError("a line has image or images, not both")
        images = [path for name in ("image", "images") for path in _paths(fields, name)]
        return [
            *({"type": "image", "image": self.folder / path} for path in images),
            *({"type": "audio", "audio": self.folder / path} for path in _paths(fields, "audio")),
        ]

    def _after(self, media: list[Part]) -> "State | None":
        if not media:
            return None
        if self._seen[0] != media:
            self._seen = media, self.pipeline.prefill([{"role": "user", "content": media}])
        return self._seen[1]


def _fields(line: bytes, number: int) -> dict[str, Any]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise ValueError(f"line {number} is not an object with a question")
    return {name: value for name, value in fields.items() if name not in ("answer", "error")}


def _question(fields: dict[str, Any]) -> str:
    question = fields.get("question")
    if not isinstance(question, str):
        raise ValueError(f"question is {question!r:.80}, expected a text")
    return question


def _paths(fields: dict[str, Any], name: str) -> list[str]:
    """The paths of a field: "images" is a list, "image" one path, "audio" either."""
    value = fields.get(name)
    if value is None:
        return []
    paths = value if name == "images" or (name == "audio" and isinstance(value, list)) else [value]
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"{name} is {value!r:.80}, expected {_EXPECTED[name]}")
    return paths
