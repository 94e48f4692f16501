"""What the model says to pictures that it was not trained on, to read beside the loss."""

import json
from collections.abc import Iterable
from pathlib import Path

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from training.sources import Source

PICTURES = 4  # of each source


def write_samples(model: MMRWKV7, sources: Iterable[tuple[str, Source]], folder: Path, step: int) -> None:
    """`samples/step-N.jsonl`: picture, question, expected and given answer; the pictures lie beside it."""
    pipeline = Pipeline(model)
    folder = folder / "samples"
    folder.mkdir(exist_ok=True)
    lines = []
    for name, source in sources:
        for i, sample in enumerate(source.held_out(PICTURES)):
            picture = f"{name}-{i}.png"
            sample.image.save(folder / picture)
            for question, expected in sample.qa:
                said = pipeline.ask(question, [sample.image]).text
                lines.append({"picture": picture, "question": question, "expected": expected, "said": said})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"step-{step}.jsonl").write_text(text, encoding="utf-8")
