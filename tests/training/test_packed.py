"""The stages that read packs: what each changes, what it leaves, and that nothing disturbs it."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mm_rwkv7 import checkpoint
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.state import State
from tests.training.packed_run import TRAINS, load, losses, make_start, write_recipe
from training import loop
from training.__main__ import main
from training.checkpoints import kept_steps
from training.config import RunConfig
from training.data.mixture import Mixture
from training.data.packs import open_stream
from training.loop import BadLossError
from training.packed import PackedStage
from training.run import train
from training.settings import SourceConfig, StageConfig

CPU = torch.device("cpu")
VECTORS = ("ln", ".x_", ".w0", ".a0", ".v0", ".k_k", ".k_a", ".r_k")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "model")


@pytest.fixture(scope="module")
def runs(start: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of a run of each kind."""
    folder = tmp_path_factory.mktemp("runs")
    done = {}
    for kind in TRAINS:
        run = load(write_recipe(folder / kind, start, kind))
        train(run, CPU)
        done[kind] = Path(run.run)
    return done


def learns(kind: str, name: str) -> bool:
    """Whether a stage of this kind changes the parameter of this name."""
    if name.startswith("projector."):
        return kind in ("align", "finetune", "lora")
    if not name.startswith("lm.") or kind not in ("finetune", "lora"):
        return False
    maps = ("receptance", "key", "value", "output")
    return kind == "finetune" or name.split(".")[-2] in maps or any(part in name for part in VECTORS)


@pytest.mark.parametrize("kind", ["align", "finetune", "lora"])
def test_a_stage_changes_what_it_trains_and_nothing_else(start: Path, runs: dict[str, Path], kind: str) -> None:
    before = load_file(start / "model.safetensors")
    after = load_file(runs[kind] / "model/model.safetensors")
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]) != learns(kind, name), name


def test_state_tuning_leaves_a_state_from_which_the_same_model_starts(start: Path, runs: dict[str, Path]) -> None:
    assert not (runs["state"] / "model").exists()
    pipeline = Pipeline.from_pretrained(start, device="cpu")
    state = State.load(runs["state"] / "state.safetensors", pipeline.fingerprint)
    assert all(layer.wkv.abs().max() > 0 for layer in state.layers)
    assert all(layer.att_shift.abs().max() == layer.ffn_shift.abs().max() == 0 for layer in state.layers)
    own = pipeline.prefill([{"role": "user", "content": "Sure?"}])
    tuned = pipeline.prefill([{"role": "user", "content": "Sure?"}], state=state)
    assert not torch.equal(own.layers[0].wkv, tuned.layers[0].wkv)


def test_the_state_of_a_run_fits_the_model_that_the_run_leaves(start: Path, tmp_path: Path) -> None:
    run = load(write_recipe(tmp_path, start, "align", "state", steps=1))
    model = train(run, CPU)
    State.load(Path(run.run) / "state.safetensors", Pipeline.from_pretrained(model, device="cpu").fingerprint)


def test_the_adapter_on_the_start_is_the_merged_model(start: Path, runs: dict[str, Path]) -> None:
    from peft import PeftModel

    merged = checkpoint.load(runs["lora"] / "model").lm
    lm = checkpoint.load(start).lm
    adapted: Any = PeftModel.from_pretrained(lm, str(runs["lora"] / "adapter"))
    vectors = load_file(runs["lora"] / "adapter/vectors.safetensors")
    named = {name.replace("base_layer.", ""): p for name, p in lm.named_parameters()}
    with torch.no_grad():
        for name, tensor in vectors.items():
            named[name].copy_(tensor)
    ids = torch.arange(1, 20)[None]
    expected, _ = merged(ids)
    found, _ = adapted.model(ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(expected, checkpoint.load(start).lm(ids)[0], atol=1e-3)


def test_a_run_logs_what_it_read_and_shows_what_the_model_says(runs: dict[str, Path]) -> None:
    records = [json.loads(line) for line in (runs["align"] / "log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    seen = itertools.accumulate(record["tokens"] for record in records)
    assert [record["tokens_seen"] for record in records] == list(seen)
    assert all(record["grad_norm"] > 0 and record["memory_mb"] > 0 for record in records)
    lines = [json.loads(line) for line in (runs["align"] / "samples/step-4.jsonl").read_text().splitlines()]
    assert {"id", "files", "question", "expected", "said"} == lines[0].keys()
    assert all((runs["align"] / "samples" / file).exists() for line in lines for file in line["files"])


def packs(run: RunConfig, start: Path, count: int) -> list[dict[str, Any]]:
    processor = Pipeline.from_pretrained(start, device="cpu").processor
    return list(itertools.islice(open_stream(run.stages[0], run, processor).batches(), count))


@pytest.mark.parametrize("average", ["token", "sample"])
def test_the_loss_is_the_mean_over_tokens_or_over_samples(start: Path, tmp_path: Path, average: str) -> None:
    run = load(write_recipe(tmp_path, start, "finetune", average=average))
    model = checkpoint.load(start)
    torch.nn.init.normal_(model.lm.head.weight)
    stage = PackedStage(model, run.stages[0])
    for batch in packs(run, start, 2):
        loss, _ = stage.loss(batch)
        ends, targets = batch["cu_seqlens"].tolist(), batch["targets"]
        pixels, per_sample = batch["pixels"], []
        for begin, end in itertools.pairwise(ends):
            ids, wanted = batch["ids"][:, begin:end], targets[0, begin:end]
            if (wanted == -100).all():
                continue
            count = int((ids == model.config.image_id).sum()) // model.image_tokens
            shown, pixels = (None, pixels) if count == 0 else (pixels[:count], pixels[count:])
            logits, _ = model(ids, pixels=shown)
            per_sample.append(torch.nn.functional.cross_entropy(logits[0], wanted, reduction="none")[wanted != -100])
        assert len(pixels) == 0
        mean = (
            torch.cat(per_sample).mean() if average == "token" else torch.stack([x.mean() for x in per_sample]).mean()
        )
        assert float(loss) == pytest.approx(float(mean), rel=1e-5)
        assert stage.weight(batch) == (len(torch.cat(per_sample)) if average == "token" else len(per_sample))


def test_a_feature_cache_changes_nothing_and_a_frozen_embedding_stays(start: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, start, "finetune", steps=3, freeze_embedding=True)
    plain = load(path)
    cached = load(path, f"run={tmp_path / 'cached'}", f"feature_cache={tmp_path / 'features'}")
    for run in (plain, cached):
        after = load_file(train(run, CPU) / "model.safetensors")
        assert torch.equal(after["lm.emb.weight"], load_file(start / "model.safetensors")["lm.emb.weight"])
    # Pictures that are encoded in other company differ by a rounding.
    assert losses(Path(cached.run)) == pytest.approx(losses(Path(plain.run)), rel=1e-5)
    assert 1 <= len(list((tmp_path / "features").rglob("*.safetensors"))) <= 3  # pictures


def test_a_run_that_finds_no_data_leaves_its_folder_to_the_next(start: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, start, "align", steps=1)
    with pytest.raises(ValueError, match=r"gone\.json"):
        train(load(path, "sources.talk.path=gone.json"), CPU)
    train(load(path), CPU)


class Stops(Mixture):
    """A mixture that is killed when it is asked for more than `budget` packs."""

    budget = 10**9

    def batches(self, *arguments: Any, **named: Any) -> Any:
        for batch in super().batches(*arguments, **named):
            if Stops.budget == 0:
                raise KeyboardInterrupt
            Stops.budget -= 1
            yield batch


def test_a_stage_that_stopped_goes_on_as_if_nothing_had_been(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the running average, adapters with dropout, and checkpoints written aside."""
    settings: dict[str, Any] = {"steps": 5, "ema": 0.9, "engine": {"asynchronous": True, "recompute": True}}
    kinds = ["finetune", "lora"]
    change = "stages.lora.lora.dropout=0.2"
    straight = load(write_recipe(tmp_path / "straight", start, *kinds, **settings), change)
    train(straight, CPU)
    monkeypatch.setattr("training.data.packs.Mixture", Stops)
    monkeypatch.setattr(Stops, "budget", 2 * 7 + 1)  # in the second stage, while its checkpoint is being written
    killed = load(write_recipe(tmp_path / "killed", start, *kinds, **settings), change)
    with pytest.raises(KeyboardInterrupt):
        train(killed, CPU)
    monkeypatch.setattr(Stops, "budget", 10**9)
    train(killed, CPU)
    assert losses(Path(killed.run)) == losses(Path(straight.run))
    expected = load_file(Path(straight.run) / "model/model.safetensors")
    found = load_file(Path(killed.run) / "model/model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def poisoned(monkeypatch: pytest.MonkeyPatch, value: float, step: int, batch: int = 2) -> None:
    """The loss of the first pack of a step becomes `value` times itself."""
    calls = itertools.count()
    real = PackedStage.loss

    def loss(self: PackedStage, pack: Any) -> Any:
        found, report = real(self, pack)
        return found * (value if next(calls) == batch * step else 1.0), report

    monkeypatch.setattr(PackedStage, "loss", loss)


@pytest.mark.parametrize(
    ("value", "message"), [(float("nan"), "the loss is nan"), (50.0, "more than 4 times the usual")]
)
def test_a_bad_loss_names_its_samples_or_is_skipped(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, message: str
) -> None:
    path = write_recipe(tmp_path, start, "align", engine={"spike": 4.0})
    run = load(path)
    culprits = packs(run, start, 5)[4]["samples"]
    poisoned(monkeypatch, value, step=2)
    with pytest.raises(RuntimeError, match=message) as caught:
        train(run, CPU)
    assert "stage align, step 3: " in str(caught.value)
    assert str(caught.value).endswith("; the samples were " + ", ".join(culprits))

    poisoned(monkeypatch, value, step=2)
    skipping = load(path, f"run={tmp_path / 'skipping'}", "engine.on_bad_loss=skip")
    train(skipping, CPU)
    records = [json.loads(line) for line in (tmp_path / "skipping/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "skipped" in record] == [3]
    assert records[2]["samples"] == culprits
    assert message in records[2]["skipped"]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_bad_loss_ends_the_command_with_one_line_and_keeps_what_was_good(
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    asynchronous: bool,
) -> None:
    """And the same folder goes on with another way to meet such a loss."""
    recipe = write_recipe(tmp_path, start, "align", engine={"asynchronous": asynchronous})
    arguments = [str(recipe), "--device", "cpu"]
    poisoned(monkeypatch, float("nan"), step=2)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: stage align, step 3: the loss is nan; the samples were ")
    assert f"{tmp_path / 'run'} keeps step 2. " in line
    assert "--set engine.on_bad_loss=skip" in line
    assert kept_steps(tmp_path / "run") == [2]

    place = tmp_path / "run/checkpoints"
    strange = {"step-best", "step-2 (copy)", "step-", "step-09", ".step-mine", "notes"}
    for name in strange:
        (place / name).mkdir()
    (place / "step-99").write_text("no folder")
    (place / ".step-1").mkdir()  # left by a kill
    assert kept_steps(tmp_path / "run") == [2]
    poisoned(monkeypatch, float("nan"), step=0)  # the first step of what goes on
    assert main([*arguments, "--set", "engine.on_bad_loss=skip"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [(record["step"], "skipped" in record) for record in records] == [
        (1, False),
        (2, False),
        (3, True),
        (4, False),
    ]
    assert {path.name for path in place.iterdir()} == {"step-2", "step-4", "step-99", *strange}


def test_the_message_of_a_bad_loss_names_a_few_of_many_samples(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "NAMED", 1)
    run = load(write_recipe(tmp_path, start, "align"))
    culprits = packs(run, start, 1)[0]["samples"]
    poisoned(monkeypatch, float("nan"), step=0)
    with pytest.raises(BadLossError) as caught:
        train(run, CPU)
    assert str(caught.value).endswith(f" were {culprits[0]} and {len(culprits) - 1} more")


def test_the_usual_loss_is_a_mean_over_many_steps(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three times it is borne and does not make six times it usual."""
    factors, calls, real = {1: 3.0, 2: 6.0}, itertools.count(), PackedStage.loss

    def loss(self: PackedStage, pack: Any) -> Any:
        found, report = real(self, pack)
        return found * factors.get(next(calls) // 2, 1.0), report  # two packs a step

    monkeypatch.setattr(PackedStage, "loss", loss)
    train(load(write_recipe(tmp_path, start, "align", engine={"spike": 4.0, "on_bad_loss": "skip"})), CPU)
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "skipped" in record] == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stages.align.train=[lm]", r"kind 'align' and trains \['lm'\]"),
        ("stages.align.data={walk: 1}", r"draws from \['walk'\].*\['talk'\]"),
        ("stages.align.lora={rank: 2}", "has lora"),
        ("stages.align.schedule=steep", "schedule 'steep'"),
        ("engine.parallel=tensor", "engine.parallel is 'tensor'"),
        ("engine.log=[paper]", r"engine.log names \['paper'\]"),
        ("tower={name: test_vit, image_size: 32}", "a tower needs a projector"),
        ("start=null", "but the recipe has no tower"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(start: Path, tmp_path: Path, change: str, message: str) -> None:
    path = write_recipe(tmp_path, start, "align")
    with pytest.raises(ValueError, match=message):
        load(path, change)


def test_a_language_model_alone_is_given_sight(start: Path, tmp_path: Path) -> None:
    import dataclasses

    from mm_rwkv7.model import MMRWKV7

    seeing = checkpoint.load(start)
    blind = MMRWKV7(dataclasses.replace(seeing.config, tower=None, projector=None))
    blind.lm = seeing.lm
    checkpoint.save(blind, tmp_path / "blind", "# blind\n")
    parts = ["tower={name: test_vit, image_size: 32}", "projector={hidden_width: 16}", "published_tower=false"]
    run = load(write_recipe(tmp_path, start, "align", steps=1), f"start={tmp_path / 'blind'}", *parts)
    config = checkpoint.load(train(run, CPU)).config
    assert config.projector is not None
    assert config.projector.input_width == 64


def test_the_stage_of_a_state_comes_last() -> None:
    state = StageConfig("s", "state", ("state",), {"a": 1.0}, 1, 1, 1.0)
    align = StageConfig("p", "align", ("projector",), {"a": 1.0}, 1, 1, 1.0)
    with pytest.raises(ValueError, match="a state belongs to the weights that it was tuned with"):
        RunConfig(run="r", stages=(state, align), start="nano", sources={"a": SourceConfig("a.json")})
