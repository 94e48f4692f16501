"""A small run on packs, for the tests that train one: a model, pictures, conversations, a recipe."""

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import Tokenizer
from training.config import RunConfig, load_recipe

TEXTS = ("User: What colour is it? Sure? Say it again.", "Assistant: red green blue Yes.", "It is red, all of it.")
TRAINS: dict[str, list[str]] = {
    "align": ["projector"],
    "finetune": ["projector", "lm"],
    "lora": ["projector", "lm"],
    "state": ["state"],
}


def write_data(folder: Path, seed: int, records: int = 24) -> None:
    """`talk.json`: conversations of one to three turns, two of three of them about a picture of one colour."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    colours = {"red": (200, 0, 0), "green": (0, 180, 0), "blue": (0, 0, 220)}
    for name, colour in colours.items():
        Image.new("RGB", (40, 30), colour).save(folder / f"{name}.png")
    talks: list[dict[str, Any]] = []
    for number in range(records):
        name = rng.choice(list(colours))
        turns = [("What colour is it?", name), ("Sure?", "Yes."), ("Say it again.", f"It is {name}, all of it.")]
        turns = turns[: rng.randint(1, 3)]
        talk: dict[str, Any] = {"id": f"talk-{number}"}
        if number % 3:
            talk["image"] = f"{name}.png"
            turns[0] = ("<image>\n" + turns[0][0], name)
        talk["conversations"] = [
            {"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        talks.append(talk)
    (folder / "talk.json").write_text(json.dumps(talks))


def make_start(folder: Path) -> Path:
    """A small model in `folder`: every parameter a little off from where training begins, so that each has a
    gradient. What it is trained on lies beside it."""
    write_data(folder.parent / "data", seed=1)
    vocabulary = Tokenizer.trim(TEXTS)
    ranks = {"decay_rank": 8, "iclr_rank": 8, "value_rank": 8, "gate_rank": 8}
    config = MMConfig(
        RWKV7Config(len(vocabulary), width=64, layers=2, **ranks),
        TimmTowerConfig("test_vit", 32),
        ProjectorConfig(64, 32),
        vocabulary,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MMRWKV7(config).eval()
        initialise(model.lm)
        with torch.no_grad():
            for parameter in model.lm.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    checkpoint.save(model, folder, "# start\n")
    return folder


def write_recipe(folder: Path, start: Path, *kinds: str, **settings: Any) -> Path:
    """A recipe with a stage of each of `kinds`; `settings` are the stages', but for those
    in `engine`."""
    engine = settings.pop("engine", {})
    recipe = {
        "run": str(folder / "run"),
        "start": str(start),
        "data": str(start.parent / "data"),
        "sources": {"talk": {"path": "talk.json", "folder": "."}},
        "stages": [_stage(kind, settings) for kind in kinds],
        "checkpoint_every": 2,
        "workers": 0,
        "precision": "fp32",
        "engine": engine,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def _stage(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    stage: dict[str, Any] = {"name": kind, "kind": kind, "train": TRAINS[kind], "data": {"talk": 1.0}}
    stage |= {"steps": 4, "batch": 2, "context": 96, "learning_rate": 1e-2, "warmup": 2, **settings}
    return stage | ({"lora": {"rank": 4}} if kind == "lora" else {})


def command(recipe: Path, step: int) -> list[str]:
    """A run that waits after `step`, if it comes to it, until its input ends."""
    return [sys.executable, str(Path(__file__).with_name("held_run.py")), str(step), str(recipe), "--device", "cpu"]


def environment(threads: int) -> dict[str, str]:
    """For another process that computes on `threads` threads: sums are equal bit for bit on equally many."""
    root = Path(__file__).resolve().parents[2]
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}


def losses(folder: Path) -> list[float]:
    """Of every step in a run's log."""
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def load(path: Path, *changes: str) -> RunConfig:
    return load_recipe(str(path), changes)
