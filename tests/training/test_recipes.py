"""The recipes of the published models: one small step of each stage, on a small start, and what they promise."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.rwkv7 import RWKV7Config
from training.config import RECIPES, RunConfig, load_any, load_recipe
from training.data.indexed import write_indexed
from training.dry_run import dry_run
from training.models import WORLD
from training.run import train

CPU = torch.device("cpu")
SMALL = ["precision=fp32", "workers=0", "published_tower=false", "tower={name: test_vit, image_size: 32}"]
TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small language model that reads text only, in `start`, and data for every recipe that reads packs."""
    folder = tmp_path_factory.mktemp("recipes")
    ranks = {"decay_rank": 8, "iclr_rank": 8, "value_rank": 8, "gate_rank": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MMRWKV7(MMConfig(RWKV7Config(WORLD, width=64, layers=2, **ranks)))
        initialise(model.lm)
    checkpoint.save(model, folder / "start", "# start\n")
    talks = [{"image": f"{number}.png", "conversations": TURNS} for number in range(4)]
    for name in ("LLaVA-Pretrain/blip_laion_cc_sbu_558k", "LLaVA-Pretrain/chat", "LLaVA-Instruct/llava_v1_5_mix665k"):
        file = folder / "data" / f"{name}.json"
        (file.parent / "images").mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(talks))
        for number in range(4):
            Image.new("RGB", (40, 30), (60 * number, 0, 0)).save(file.parent / "images" / f"{number}.png")
    write_indexed(["one two three", "four five"], folder / "data" / "minipile")
    return folder


def small(recipe: str, folder: Path, *changes: str) -> RunConfig:
    stages = [stage.name for stage in load_recipe(recipe).stages]
    each = [f"stages.{name}.{what}" for name in stages for what in ("steps=1", "batch=1", "context=64")]
    return load_recipe(recipe, [f"data={folder / 'data'}", *each, *changes])


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["visualrwkv", "worldrwkv"])
def test_a_published_recipe_trains_every_stage(recipe: str, folder: Path, tmp_path: Path) -> None:
    run = small(recipe, folder, f"start={folder / 'start'}", f"run={tmp_path / 'run'}", *SMALL)
    assert not dry_run(run, CPU, 1).wrong
    model = checkpoint.load(train(run, CPU))
    start = checkpoint.load(folder / "start")
    assert model.tower is not None
    assert model.config.projector is not None
    head = torch.equal(model.lm.head.weight, start.lm.head.weight)
    embedding = torch.equal(model.lm.emb.weight, start.lm.emb.weight)
    assert (head, embedding) == (False, recipe == "visualrwkv")
    assert model.config.template == (run.template or start.config.template)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in log] == [stage.name for stage in run.stages]


def test_the_text_recipe_trains(folder: Path, tmp_path: Path) -> None:
    run = small("text", folder, f"run={tmp_path / 'run'}", "precision=fp32", "workers=0", "lm={width: 64, layers: 1}")
    assert "minipile: 2 documents, the first pack can be read" in dry_run(run, CPU, 1).text
    assert (train(run, CPU) / "model.safetensors").is_file()
    both = ("sources.more.path=minipile", "stages.text.data={minipile: 1, more: 1}", "lm={width: 64, layers: 1}")
    assert any("expected one source" in what for what in dry_run(small("text", folder, *both), CPU, 1).wrong)


@pytest.mark.parametrize(
    ("recipe", "stage", "length", "count", "records", "passes"),
    [
        ("worldrwkv", "pretrain", 578 + 62, 256, 595_375, 1.0),
        ("visualrwkv", "align", 1024 + 64, 256, 558_128, 0.917),
        ("visualrwkv", "finetune", 1632, 128, 665_298, 2.886),
    ],
)
def test_a_published_recipe_goes_through_its_data_as_often_as_published(
    recipe: str, stage: str, length: int, count: int, records: int, passes: float
) -> None:
    """With samples of the `length` that its comments tell, of which a step has `count`."""
    (config,) = (one for one in load_recipe(recipe).stages if one.name == stage)
    assert config.batch % 8 == 0
    assert abs(config.batch * config.context / length - count) <= 1
    assert config.steps * count / records == pytest.approx(passes, abs=0.001)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_without_its_data_says_which(path: Path, folder: Path, tmp_path: Path) -> None:
    """Which tables or files are missing, all at once."""
    run = load_any(path.stem)
    if not isinstance(run, RunConfig) or path.stem in ("contrastive", "smoke", "tagging"):
        return  # they generate theirs
    start = [f"start={folder / 'start'}"] if path.stem in ("visualrwkv", "worldrwkv") else []
    plan = dry_run(load_recipe(path.stem, [f"data={tmp_path}", *start]), CPU, 1)
    generated = {"scenes", "scenes_of_2", "scenes_of_4", "soundscapes"}
    wanted = {name for stage in run.stages for name in stage.data} - generated
    assert {what.partition(":")[0] for what in plan.wrong} == wanted, plan.wrong
    assert all(f"# stage {stage.name} ({stage.kind}): {stage.steps} steps" in plan.text for stage in run.stages)
