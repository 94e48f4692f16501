"""A few real samples can be learned by heart: every part of the way from a file to a weight works."""

import json
from pathlib import Path

import pytest
import torch

from mm_rwkv7.pipeline import Pipeline
from tests.training.packed_run import losses
from training.config import load_recipe
from training.run import train


@pytest.mark.slow
def test_a_few_real_samples_are_learned_by_heart(data_dir: Path, tmp_path: Path) -> None:
    layout = data_dir / "llava_format"
    records = json.loads((layout / "dummy.json").read_text())
    shortest = sorted(records, key=lambda record: len(json.dumps(record)))
    by_picture = {record["image"]: record for record in reversed(shortest)}
    few = sorted(by_picture.values(), key=lambda record: len(json.dumps(record)))[:3]
    (tmp_path / "few.json").write_text(json.dumps(few))
    changes = [f"run={tmp_path / 'run'}", f"data={tmp_path}", "precision=fp32", "checkpoint_every=1000", "workers=0"]
    changes += [f"sources={{talk: {{path: few.json, folder: {layout / 'images'}}}}}"]
    stage = {"steps": 50, "batch": 1, "context": 640, "learning_rate": 2e-3, "warmup": 5}
    changes += [f"stages.finetune.{name}={value}" for name, value in stage.items()]
    pipeline = Pipeline.from_pretrained(train(load_recipe("finetune", changes), torch.device("cpu")), device="cpu")
    found = losses(tmp_path / "run")
    assert found[-1] < 0.05 < 1 < found[0]
    for record in few:
        question, answer = (turn["value"] for turn in record["conversations"])
        picture = str(layout / "images" / record["image"])
        said = pipeline.ask(question.replace("<image>", "").strip(), images=[picture]).text
        assert said == answer.strip()
