"""`mm-rwkv7 ask --batch`: a question a line in, an answer a line out."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.sampling import Sampling
    from mm_rwkv7.state import State


def answer_file(pipeline: "Pipeline", source: Path, target: Path, sampling: "Sampling") -> int:
    """Answer the lines of `source` into `target`, in order, and return how many have an "error".

    A line is `{"question", "image" or "images"}` with paths relative to the file's folder; its own fields are
    kept. Lines are written as they come to `<target>.partial`, which becomes `target` at the end; after an
    interruption it holds what was answered until then.
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
        raise ValueError(f"{source}: there is no such file")
    if not target.parent.is_dir():
        raise ValueError(f"{target.parent}: there is no such folder to write to")
    if target.is_dir():
        raise ValueError(f"{target} is a folder, expected a file to write")
    return source, target


class Answerer:
    """Answers one line at a time; pictures that come again on the next line are not read again."""

    def __init__(self, pipeline: "Pipeline", folder: Path, sampling: "Sampling") -> None:
        self.pipeline, self.folder, self.sampling = pipeline, folder, sampling
        self._seen: tuple[list[str], State | None] = ([], None)

    def __call__(self, line: bytes, number: int) -> dict[str, Any]:
        """The line's fields with its "answer" or its "error"."""
        fields: dict[str, Any] = {}
        try:
            fields = _fields(line, number)
            question, images = _question(fields), _images(fields)
            answer = self.pipeline.ask(question, sampling=self.sampling, state=self._after(images))
        except (ValueError, FloatingPointError) as error:
            return {**fields, "error": str(error)}
        return {**fields, "answer": answer.text}

    def _after(self, images: Sequence[str]) -> "State | None":
        if not images:
            return None
        if self._seen[0] != images:
            parts = [{"type": "image", "image": self.folder / image} for image in images]
            self._seen = list(images), self.pipeline.prefill([{"role": "user", "content": parts}])
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


def _images(fields: dict[str, Any]) -> list[str]:
    if fields.get("audio"):
        raise ValueError("this model has no sound encoder, it cannot hear")
    image, images = fields.get("image"), fields.get("images")
    if image is not None and images is not None:
        raise ValueError("a line has image or images, not both")
    if image is not None:
        images = [image]
    if images is None:
        return []
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise ValueError(f"the images are {images!r:.80}, expected paths")
    return images
