import json
import re
from pathlib import Path

import pytest
import torch
import yaml

from mm_rwkv7 import checkpoint
from tests.training.packed_run import TRAINS, load, make_start, write_data, write_recipe
from training.__main__ import main
from training.config import RECIPES, load_any, load_recipe
from training.dry_run import dry_run
from training.study import StudyConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "model")


def numbers(text: str, part: str) -> tuple[int, int]:
    found = re.search(rf"#   {part}: ([\d,]+) trained, ([\d,]+) frozen", text)
    assert found is not None, text
    trained, frozen = (int(number.replace(",", "")) for number in found.groups())
    return trained, frozen


def test_every_stage_is_counted(start: Path, tmp_path: Path) -> None:
    model = checkpoint.load(start)
    lm, projector = (sum(p.numel() for p in part.parameters()) for part in (model.lm, model.projector))
    wkv = sum(layer.wkv.numel() for layer in model.lm.initial_state().layers)
    told = {}
    for kind in TRAINS:
        plan = dry_run(load(write_recipe(tmp_path / kind, start, kind)), CPU, 1)
        assert not plan.wrong
        text = told[kind] = plan.text
        assert yaml.safe_load(text)["stages"][0]["kind"] == kind
        assert f"# stage {kind} ({kind}): 4 steps of 2 packs of 96 tokens: 768 tokens at most" in text
    assert numbers(told["align"], "projector") == (projector, 0)
    assert numbers(told["align"], "lm") == (0, lm)
    assert numbers(told["finetune"], "lm") == (lm, 0)
    assert numbers(told["state"], "wkv") == (wkv, 0)
    assert numbers(told["state"], "lm") == (0, lm)
    trained, frozen = numbers(told["lora"], "lm")
    vectors = sum(p.numel() for n, p in model.lm.named_parameters() if p.ndim == 1 or n.endswith("r_k"))
    maps = [
        p for n, p in model.lm.blocks.named_parameters() if n.split(".")[-2] in ("receptance", "key", "value", "output")
    ]
    assert trained == vectors + sum(4 * sum(p.shape) for p in maps)
    assert trained + frozen == lm + sum(4 * sum(p.shape) for p in maps)
    w0 = sum(p.numel() for n, p in model.lm.named_parameters() if n.endswith("w0"))
    assert f"double {w0:,}" in told["finetune"]
    assert "double" not in told["align"]


def test_the_memory_of_a_small_model_is_told_in_digits(start: Path, tmp_path: Path) -> None:
    parameters = sum(p.numel() for p in checkpoint.load(start).parameters())
    for kind, several in (("finetune", ("weights", "gradients", "optimizer", "activations")), ("tower", ("weights",))):
        run = load_recipe("smoke") if kind == "tower" else load(write_recipe(tmp_path, start, kind))
        sizes = re.search(r"memory of each process, towers' work on top: (.*)", dry_run(run, CPU, 1).text)
        assert sizes is not None
        told = dict(re.findall(r"(\w+) (\d+\.\d [kM]B)", sizes[1]))
        assert set(told) >= set(several), sizes[0]
        assert not re.search(r" 0(\.0)? ", sizes[1]), sizes[0]
        if kind == "finetune":
            assert told["weights"] == f"{4 * parameters / 1e6:.1f} MB"


def test_a_run_that_cannot_begin_says_why(start: Path, tmp_path: Path) -> None:
    plan = dry_run(load(write_recipe(tmp_path, start, "align"), "lm={width: 128, layers: 2}"), CPU, 1)
    assert [line for line in plan.text.splitlines() if "would not begin" in line] == [
        f"# this run would not begin: {what}" for what in plan.wrong
    ]
    assert len(plan.wrong) == 1
    assert "the recipe wants RWKV7Config" in plan.wrong[0]
    assert "# stage align (align): 4 steps of 2 packs" in plan.text


def test_a_little_of_every_source_is_read(start: Path, tmp_path: Path) -> None:
    """What is told of the data is what the data is, and every medium of the first pack is opened."""
    write_data(tmp_path / "data", seed=1)
    recipe = write_recipe(tmp_path, start, "align")
    changes = f"data={tmp_path / 'data'}", f"sources.gone.path={tmp_path / 'gone.json'}"
    plan = dry_run(load(recipe, *changes), CPU, 1)
    assert not plan.wrong
    found = re.search(r"talk.json: 24 records; the first pack: (\d+) samples?, (\d+) pictures?, 0 sounds, ", plan.text)
    assert found is not None, plan.text
    assert int(found[1]) >= int(found[2]) > 0
    mixed = dry_run(load(recipe, *changes, "stages.align.data={talk: 1, gone: 1}"), CPU, 1)
    assert mixed.wrong == (f"gone: {tmp_path / 'gone.json'}: there is no such file or folder",)
    assert "reads talk: " in mixed.text
    assert "memory of each process" in mixed.text
    (tmp_path / "data" / "red.png").write_bytes(b"no picture")
    assert "left out" in dry_run(load(recipe, *changes), CPU, 1).text
    for name in ("green", "blue"):
        (tmp_path / "data" / f"{name}.png").write_bytes(b"no picture")
    talks = [talk for talk in json.loads((tmp_path / "data" / "talk.json").read_text()) if "image" in talk]
    (tmp_path / "data" / "talk.json").write_text(json.dumps(talks))
    (wrong,) = dry_run(load(recipe, *changes), CPU, 1).wrong
    assert "nothing in the first pack can be read: " in wrong
    assert ".png" in wrong


def test_tables_of_single_pictures_are_looked_at_one_by_one(tmp_path: Path) -> None:
    stage = "stages.tower.data={scenes_of_2: 1, flowers: 1, emoji: 1}"
    plan = dry_run(load_recipe("smoke", ["stages.align.data={scenes_of_2: 1}", stage, f"data={tmp_path}"]), CPU, 1)
    assert "reads scenes_of_2: generated; one: a picture of 64 x 64" in plan.text
    assert [what.partition(":")[0] for what in plan.wrong] == ["flowers", "emoji"]
    assert all("is missing" in what for what in plan.wrong)


def test_bad_data_is_one_line_and_exit_code_2(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = str(write_recipe(tmp_path, start, "align"))
    assert main([recipe, "--dry-run"]) == 0
    assert capsys.readouterr().err == ""
    assert main([recipe, "--dry-run", "--set", "sources.talk.path=gone.json"]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "gone.json: there is no such file" in told.err
    assert "memory of each process" in told.out


def test_processes_that_cannot_share_a_stage_are_told_once(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any of them joins the others."""
    monkeypatch.setattr("training.__main__.PATIENCE", 0.0)
    monkeypatch.setenv("WORLD_SIZE", "3")
    packs = str(write_recipe(tmp_path, start, "align"))
    for recipe, reason in (("smoke", "trains on one process, there are 3"), (packs, "cannot be shared evenly by 3")):
        arguments = [recipe, "--set", f"run={tmp_path / 'run'}"]
        monkeypatch.setenv("RANK", "0")
        assert main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert reason in line
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert main([*arguments, "--dry-run"]) == 0
        assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main([packs, "--dry-run"]) == 2
    assert "cannot be shared evenly by 3" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_here_can_be_read(path: Path) -> None:
    run = load_any(path.stem)
    assert isinstance(run, StudyConfig) or run.stages
