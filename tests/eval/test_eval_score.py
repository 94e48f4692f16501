import json
import random
from pathlib import Path

import pytest

from eval.__main__ import main
from eval.catalogue import TASKS, open_task
from eval.published import figures
from eval.report import report
from eval.score import score
from eval.task import Mode

TASK = open_task("scenes")


def predict(out: Path, right: float, seed: int, count: int | None = None) -> dict[str, bool]:
    """Write predictions of which a share is right; whether each is."""
    rng = random.Random(seed)
    outcome = {sample.id: rng.random() < right for sample in TASK.samples(Path())[:count]}
    (out / "scenes").mkdir(parents=True, exist_ok=True)
    lines = [
        {"id": sample.id, "prediction": sample.expected if outcome[sample.id] else "<b>no</b> | idea"}
        for sample in TASK.samples(Path())[:count]
    ]
    rng.shuffle(lines)
    path = out / "scenes" / "predictions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return outcome


def test_scores_need_predictions_alone(tmp_path: Path, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = predict(tmp_path, 0.6, seed)
    assert main(["score", "--tasks", "scenes", "--out", str(tmp_path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    saved = json.loads((tmp_path / "scenes" / "scores.json").read_text())
    assert printed == saved
    assert saved["metrics"]["exact"] == pytest.approx(100 * sum(outcome.values()) / len(outcome)), f"seed {seed}"
    assert (saved["n"], saved["partial"], saved["model"]) == (len(outcome), False, None)
    assert 0.5 < saved["stderr"]["plain"] < 2
    judged = [json.loads(line) for line in (tmp_path / "scenes" / "judged.jsonl").read_text().splitlines()]
    assert {line["id"]: line["score"] == 100 for line in judged} == outcome


def test_questions_about_one_picture_count_as_dependent(tmp_path: Path, seed: int) -> None:
    """Where each picture's questions are all right or all wrong, their mean knows no more than the pictures tell."""
    rng = random.Random(seed)
    right = {str(picture): rng.random() < 0.5 for picture in range(1, 600, 2)}
    (tmp_path / "scenes").mkdir()
    lines = [
        {"id": sample.id, "prediction": sample.expected if right[sample.id.partition("-")[0]] else "no idea"}
        for sample in TASK.samples(Path())
    ]
    (tmp_path / "scenes/predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score(TASK, Path(), tmp_path)["stderr"]
    each = len(lines) / len(right)  # about eight
    assert found["clustered"] == pytest.approx(found["plain"] * each**0.5, rel=2e-3), f"seed {seed}"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": "1-0", "prediction": "a"}'], "predictions are missing: '1-1', '1-2'"),
        (['{"id": "0-0", "prediction": "a"}'], "1 ids are not of this task: '0-0'"),
        (['{"id": "1-0", "prediction": "a"}'] * 2, "line 2: '1-0' was there before, at .*line 1"),
        (['{"id": "1-0", "prediction": 3}'], r"line 1\.prediction: expected a text, got 3"),
        (['{"id": "1-0"}'], "line 1: there is no 'prediction'"),
        (["[]"], "line 1: expected an object with 'id'"),
        (["<html>"], "is a web page"),
        ([], "there are no predictions"),
    ],
)
def test_bad_predictions_are_refused_by_line(tmp_path: Path, lines: list[str], message: str) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=message) as caught:
        score(TASK, Path(), tmp_path)
    assert "predictions.jsonl" in str(caught.value)


def test_some_predictions_are_scored_only_if_asked_for(tmp_path: Path, seed: int) -> None:
    outcome = predict(tmp_path, 0.6, seed, 40)
    with pytest.raises(ValueError, match="are missing"):
        score(TASK, Path(), tmp_path)
    found = score(TASK, Path(), tmp_path, partial=True)
    assert found["partial"]
    assert found["n"] == 40
    assert found["metrics"]["exact"] == pytest.approx(100 * sum(outcome.values()) / 40), f"seed {seed}"
    report([TASK], Path(), tmp_path)
    assert "Partial" in (tmp_path / "report.html").read_text()
    assert "**Partial**" in (tmp_path / "report.md").read_text()


def test_a_report_tells_and_shows(tmp_path: Path, seed: int) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "b"
    for out, right in ((ours, 0.8), (theirs, 0.5)):
        predict(out, right, seed)
        score(TASK, Path(), out)
    page = report([TASK], Path(), ours, theirs).read_text()
    assert "http" not in page  # it needs nothing else
    assert page.count("<figure>") == 16
    assert page.count("data:image/jpeg;base64,") == 16
    assert "&lt;b&gt;no&lt;/b&gt;" in page
    assert "<b>no</b>" not in page
    (described,) = json.loads((ours / "report.json").read_text())
    assert described["compared"]["difference"] == pytest.approx(
        described["metrics"]["exact"] - json.loads((theirs / "scenes" / "scores.json").read_text())["metrics"]["exact"]
    )
    assert described["compared"]["p"] < 1e-6
    assert len(described["gallery"]["right"]) == len(described["gallery"]["wrong"]) == 8
    assert "\\| idea" in (ours / "report.md").read_text()


def test_runs_of_other_questions_are_not_compared(tmp_path: Path, seed: int) -> None:
    predict(tmp_path / "a", 0.8, seed)
    predict(tmp_path / "b", 0.8, seed, 100)
    score(TASK, Path(), tmp_path / "a")
    score(TASK, Path(), tmp_path / "b", partial=True)
    with pytest.raises(ValueError, match="cannot be compared"):
        report([TASK], Path(), tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_is(name: str) -> None:
    task = open_task(name)
    assert task.name == name
    assert task.variant
    assert isinstance(task.mode, Mode)
    assert task.max_new_tokens >= 1


def test_published_figures_belong_to_tasks_and_have_sources() -> None:
    known = {name: figures(name) for name in TASKS}
    assert any(known.values())
    for found in known.values():
        for figure in found:
            assert figure.source
            assert figure.comparable
            assert 0 < figure.value < 100
            assert figure.comparable.split(":")[0] in ("yes", "no", "unclear") or figure.comparable.startswith("if ")
