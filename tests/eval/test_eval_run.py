import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from eval import plan
from eval.__main__ import main
from eval.predictions import Log
from eval.run import Settings, prepare, run
from eval.score import score
from eval.task import Mode, Sample, Scores, Task
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline

ROOT = Path(__file__).resolve().parent.parent.parent
ASK = ("--tasks", "scenes", "--limit", "30", "--batch", "8", "--device", "cpu", "--max-new-tokens", "4")


def evaluate(command: str, out: Path, *more: object) -> int:
    return main([command, "--out", str(out), *map(str, more)])


def predictions(out: Path) -> bytes:
    return (out / "scenes" / "predictions.jsonl").read_bytes()


@pytest.fixture(scope="module")
def unbroken(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing ended."""
    out = tmp_path_factory.mktemp("unbroken")
    assert evaluate("run", out, *ASK, "--model", tiny_checkpoint) == 0
    return out


@pytest.fixture
def whole(unbroken: Path) -> bytes:
    """What such a run writes."""
    return predictions(unbroken)


def test_a_run_writes_a_line_for_each_question(whole: bytes) -> None:
    lines = [json.loads(line) for line in whole.splitlines()]
    assert len({line["id"] for line in lines}) == 30
    assert all(list(line) == ["id", "prediction", "finish_reason"] and line["prediction"] for line in lines)


@pytest.mark.parametrize("cut", [1, 700, -20])
def test_a_cut_file_is_made_whole(
    unbroken: Path, whole: bytes, tiny_checkpoint: Path, tmp_path: Path, cut: int
) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "scenes" / "predictions.jsonl"
    path.write_bytes(whole[:cut])
    assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint) == 0
    assert path.read_bytes() == whole


def test_two_ranks_and_a_merge_equal_one(
    whole: bytes, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint, "--shard", "0/2") == 0
    assert evaluate("merge", tmp_path, "--tasks", "scenes") == 2  # the other file is missing
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint) == 0
    assert evaluate("merge", tmp_path, "--tasks", "scenes") == 0
    assert predictions(tmp_path) == whole


def test_merge_refuses_missing_and_duplicate_ids(
    unbroken: Path, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scenes"
    shutil.copytree(unbroken / "scenes", folder)
    (folder / "predictions.jsonl").unlink()
    lines = whole.splitlines(keepends=True)
    for first, message in ((lines[:5], "10 of 30 predictions are missing"), (lines[:16], "was there before")):
        (folder / "predictions.0-of-2.jsonl").write_bytes(b"".join(first))
        (folder / "predictions.1-of-2.jsonl").write_bytes(b"".join(lines[15:]))
        assert evaluate("merge", tmp_path, "--tasks", "scenes") == 2
        assert message in capsys.readouterr().err
        assert not (folder / "predictions.jsonl").exists()


def test_a_run_of_another_kind_is_refused(
    unbroken: Path, whole: bytes, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    for change, message in (
        (("--limit", "31"), "limit 30, now 31"),
        (("--seed", "1"), "seed 0, now 1"),
        (("--max-new-tokens", "5"), "decoding.max_new_tokens 4, now 5"),
        (("--temperature", "0.5"), "decoding.temperature"),
        (("--model", "nano"), "model.fingerprint"),
    ):
        capsys.readouterr()
        assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint, *change) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert len(error) == 1
        assert message in error[0]
        assert predictions(tmp_path) == whole


def test_what_differs_from_another_run_is_told_by_its_cause(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(Pipeline, "from_pretrained", None)
    path = tmp_path / "scenes" / "manifest.json"
    known = json.loads(path.read_text())
    told = (
        f"error: {path} is of another run: {{}}; to go on with that one, ask as it did; "
        f"for a new one, take another --out or delete {tmp_path / 'scenes'}\n"
    )
    assert evaluate("run", tmp_path, *ASK, "--limit", "31") == 2
    assert capsys.readouterr().err == told.format("limit 30, now 31")
    path.write_text(json.dumps({**known, "limit": None, "partial": False}))
    assert evaluate("run", tmp_path, *ASK) == 2
    assert capsys.readouterr().err == told.format("limit none, now 30")
    asked = known["questions"]
    path.write_text(json.dumps({**known, "questions": 64 * "a"}))
    assert evaluate("run", tmp_path, *ASK) == 2
    assert capsys.readouterr().err == told.format(
        f"questions 'aaaaaaaaaaaa...', now '{asked[:12]}...' (the task's files have changed)"
    )


def test_foreign_lines_are_not_written_over(
    whole: bytes, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "scenes" / "predictions.jsonl"
    path.parent.mkdir()
    for text, message in ((b'{"id": "x", "prediction": "y"}\n', "line 1: this run would have"), (b"{\n", "not JSON")):
        path.write_bytes(text)
        assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint) == 2
        assert message in capsys.readouterr().err
        assert path.read_bytes() == text


class Full:
    """A disk with room for so many bytes more, as a file."""

    def __init__(self, file: BinaryIO, room: int) -> None:
        self._file, self._room, self._held = file, room, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> None:
        self._held += data

    def flush(self) -> None:
        fits, self._held = self._held[: self._room], self._held[self._room :]
        self._file.write(fits)
        self._file.flush()
        self._room -= len(fits)
        if self._held:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self._file.close()


def test_a_full_disk_is_one_line_and_no_loss(
    unbroken: Path, whole: bytes, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "scenes" / "predictions.jsonl"
    path.write_bytes(whole[:700])
    begin = Log.__enter__

    def enter(log: Log) -> Log:
        log._file = Full(log._file, 300)  # type: ignore[assignment]
        return begin(log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "__enter__", enter)
        assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint) == 1
    (error,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert error.endswith(f"No space left on device: '{path}'")
    assert 700 < len(path.read_bytes()) < len(whole)
    assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint) == 0
    assert path.read_bytes() == whole


def test_an_interrupted_run_says_what_is_kept_and_goes_on(
    whole: bytes, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write = Log.write

    def interrupt(log: Log, fields: dict[str, Any]) -> None:
        if log.written == 11:
            raise KeyboardInterrupt
        write(log, fields)

    path = tmp_path / "scenes/predictions.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "write", interrupt)
        assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint) == 130
    told = f"interrupted: 11 of 30 answers are kept in {path}; the same command goes on from there"
    assert capsys.readouterr().err.splitlines()[-1] == told
    assert path.read_bytes().count(b"\n") == 11
    assert evaluate("run", tmp_path, *ASK, "--model", tiny_checkpoint) == 0
    assert path.read_bytes() == whole


def test_a_last_line_torn_anywhere_is_cut_off(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    ids = [json.loads(line)["id"] for line in whole.splitlines()]
    first = whole.index(b"\n", 200) + 1
    before = whole[:first].count(b"\n")
    for end in range(first, whole.index(b"\n", first) + 1):
        path.write_bytes(whole[:end])
        with Log(path, ids) as log:
            assert log.written == before, end
        assert path.read_bytes() == whole[:first]


def test_another_runs_folder_is_refused_before_a_model_is_loaded(
    unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(unbroken, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(Pipeline, "from_pretrained", None)
    assert evaluate("run", tmp_path, *ASK, "--batch", "9") == 2
    assert "batch 8, now 9" in capsys.readouterr().err


def test_no_task_is_asked_before_all_folders_are_right(
    unbroken: Path, whole: bytes, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = json.loads((unbroken / "scenes" / "manifest.json").read_text())
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({**known, "dtype": "int8"}))
    both = ("--tasks", "needle,scenes", *ASK[2:], "--model", tiny_checkpoint)
    assert evaluate("run", tmp_path, *both) == 2
    assert "dtype 'int8', now 'float32'" in capsys.readouterr().err
    assert not (tmp_path / "needle" / "predictions.jsonl").exists()


def test_shards_of_different_runs_are_not_merged(
    whole: bytes, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when two machines wrote to folders of their own, which were then put together."""
    for i in (0, 1):
        more = ("--model", tiny_checkpoint, "--shard", f"{i}/2", "--seed", "0", "--temperature", i)
        assert evaluate("run", tmp_path / str(i), *ASK, *more) == 0
        shutil.copytree(tmp_path / str(i), tmp_path / "both", dirs_exist_ok=True)
    assert evaluate("merge", tmp_path / "both", "--tasks", "scenes") == 2
    assert "decoding.temperature 1.0, now 0.0" in capsys.readouterr().err
    assert not (tmp_path / "both" / "scenes" / "predictions.jsonl").exists()


class Shown(Task):
    """Asks about files."""

    name, variant = "shown", "two pictures"

    def samples(self, data: Path) -> list[Sample]:
        return [Sample(name, "what?", (data / f"{name}.png",)) for name in ("good", "bad", "worse")]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        raise NotImplementedError


def test_a_broken_picture_is_named_with_its_questions(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    for name in ("good", "bad", "worse"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "bad.png").write_text("<html>")
    settings = Settings(batch=2)
    with pytest.raises(ValueError, match=r"shown, questions 'good' to 'bad': .*bad\.png is not a picture"):
        run(prepare(Shown(), tmp_path, tmp_path, settings), Pipeline(tiny_model))


class Lengths(Task):
    """Asks for numbers, not for a text."""

    name, variant, mode = "lengths", "of questions", Mode.LIKELIHOOD

    def samples(self, data: Path) -> list[Sample]:
        return [Sample(str(i), "?" * i, choices=("a", "b")) for i in range(10)]

    def predict(self, pipeline: Pipeline, samples: Sequence[Sample]) -> list[list[float]]:
        return [[float(len(sample.question)), -0.5] for sample in samples]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        return Scores("mean", {"mean": sum(value for value, _ in predictions.values()) / len(predictions)})


def test_a_task_of_another_mode_predicts_by_itself(tiny_model: MMRWKV7, tmp_path: Path) -> None:
    settings = Settings(batch=3)
    path = run(prepare(Lengths(), Path(), tmp_path, settings), Pipeline(tiny_model))
    assert [json.loads(line)["prediction"] for line in path.read_text().splitlines()] == [[i, -0.5] for i in range(10)]
    assert score(Lengths(), Path(), tmp_path)["metrics"] == {"mean": 4.5}
    path.write_text(path.read_text().replace("-0.5", "1e999"))
    with pytest.raises(ValueError, match=r"line 1\.prediction: expected finite numbers"):
        score(Lengths(), Path(), tmp_path)


HELD = """
import sys
from eval.__main__ import main
from eval.predictions import Log

write = Log.write

def held(log, fields):
    write(log, fields)
    if log.written == int(sys.argv[1]):
        print("written", flush=True)
        sys.stdin.read()

Log.write = held
main(sys.argv[2:])
"""


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    ask = ["run", "--tasks", "scenes", "--limit", "80", "--batch", "4", "--device", "cpu"]
    ask += ["--model", str(tiny_checkpoint), "--out"]
    command = [sys.executable, "-m", "eval", *ask]
    subprocess.run([*command, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    out = tmp_path / "broken"
    path = out / "scenes" / "predictions.jsonl"
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    for goal in (10, 41):  # in the middle of a batch
        held = [sys.executable, "-c", HELD, str(goal), *ask, str(out)]
        with subprocess.Popen(held, cwd=ROOT, **pipes) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert path.read_bytes().count(b"\n") == goal
    assert path.read_bytes() != predictions(tmp_path / "whole")
    subprocess.run([*command, str(out)], cwd=ROOT, check=True, capture_output=True)
    assert path.read_bytes() == predictions(tmp_path / "whole")


def test_a_subset_is_seeded_and_in_order() -> None:
    samples = [Sample(str(i), "?") for i in range(100)]
    some = plan.subset(samples, 10, 1)
    assert [s.id for s in some] == sorted((s.id for s in some), key=int)
    assert len(some) == 10
    assert some == plan.subset(samples, 10, 1) != plan.subset(samples, 10, 2)
    assert plan.subset(samples, 200, 1) == plan.subset(samples, None, 1) == samples
    with pytest.raises(ValueError, match="--limit is 0"):
        plan.subset(samples, 0, 1)


def test_batches_keep_order_and_what_belongs_together() -> None:
    samples = [Sample(f"{p}-{i}", "?", (Path(str(p)),)) for p, n in enumerate((3, 3, 9, 1)) for i in range(n)]
    found = plan.batches(samples, 5)
    assert [s for batch in found for s in batch] == samples
    assert [len(batch) for batch in found] == [3, 3, 5, 5]
    dealt = [batch for i in range(3) for batch in plan.dealt(found, (i, 3))]
    assert sorted(map(str, dealt)) == sorted(map(str, found))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "scene"), "there is no task 'scene'"),
        (("--tasks", "scenes", "--shard", "2/2"), "expected I/N"),
        (("--tasks", "scenes", "--limit", "0"), "--limit is 0"),
        (("--tasks", "scenes", "--batch", "0"), "--batch is 0"),
        (("--tasks", "vqav2", "--data", "nowhere"), "is missing; it comes from https://visualqa.org"),
    ],
)
def test_bad_usage_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert evaluate("run", tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
