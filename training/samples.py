"""What the model says to pictures and sounds that it was not trained on, to read beside the loss."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from training.data import AnySample, AnySource, open_turn
from training.hearing import RATE
from training.sources import Sample

EACH = 4  # of each source


def write_samples(model: MMRWKV7, sources: Iterable[tuple[str, AnySource]], folder: Path, step: int) -> None:
    """`samples/step-N.jsonl`: picture or sound, question, expected and given answer; the files lie beside it."""
    pipeline = Pipeline(model)
    folder = folder / "samples"
    folder.mkdir(exist_ok=True)
    lines = []
    for name, source in sources:
        samples: Sequence[AnySample] = source.held_out(EACH)
        for i, sample in enumerate(samples):
            if isinstance(sample, Sample):
                file = f"{name}-{i}.png"
                sample.image.save(folder / file)
            else:
                file = f"{name}-{i}.flac"
                soundfile.write(folder / file, sample.waveform, RATE)
            state = pipeline.prefill(open_turn(sample))
            for question, expected in sample.qa:
                said = pipeline.ask(question, state=state).text
                lines.append({"file": file, "question": question, "expected": expected, "said": said})
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"step-{step}.jsonl").write_text(text, encoding="utf-8")
