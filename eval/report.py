"""`report`: what was scored, as a page for people (HTML and Markdown) and as JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eval import predictions
from eval.files import Record, read_json, read_jsonl
from eval.gallery import Exhibit, choose
from eval.published import Figure, figures
from eval.score import JUDGED, NAME, clusters_of
from eval.statistics import Paired, paired
from eval.task import Task
from mm_rwkv7.whole import write_text

SCORED = "`eval score`"


@dataclass(frozen=True)
class Section:
    """All that is told of one task: what scores.json holds, others' figures, a comparison, and examples."""

    scores: dict[str, Any]
    published: tuple[Figure, ...]
    compared: Paired | None
    right: list[Exhibit]
    wrong: list[Exhibit]

    @property
    def error(self) -> tuple[str, float] | None:
        """Which standard error stands beside the headline, and its size."""
        known = self.scores["stderr"]
        for kind in ("clustered", f"{self.scores['main']}_bootstrap"):
            if kind in known:
                return kind.removeprefix(f"{self.scores['main']}_"), known[kind]
        return None


def report(tasks: Sequence[Task], data: Path, out: Path, other: Path | None = None) -> Path:
    """Write report.html, report.md and report.json to `out` and return the first. With `other`, another OUT, each task
    is compared with the same task there, question by question."""
    from eval.markdown import markdown
    from eval.page import page

    sections = [_section(task, data, out, other) for task in tasks]
    described = [
        {
            **section.scores,
            "published": [asdict(figure) for figure in section.published],
            "compared": None if section.compared is None else {"with": str(other), **asdict(section.compared)},
            "gallery": {
                "right": [one.sample.id for one in section.right],
                "wrong": [one.sample.id for one in section.wrong],
            },
        }
        for section in sections
    ]
    write_text(out / "report.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "report.md", markdown(sections, other))
    write_text(out / "report.html", page(sections, other))
    return out / "report.html"


def _section(task: Task, data: Path, out: Path, other: Path | None) -> Section:
    folder = out / task.name
    scores = read_json(folder / NAME, SCORED).value
    judged = _judged(folder / JUDGED)
    predicted = predictions.read(folder / predictions.NAME, task.mode)
    samples = [sample for sample in task.samples(data / task.folder) if sample.id in predicted]
    compared = None
    if other is not None and judged:
        theirs = read_json(other / task.name / NAME, SCORED)
        for name in ("variant", "ids"):
            if theirs[name].value != scores[name]:
                raise theirs.error(f"{task.name} was scored on other questions there, so the runs cannot be compared")
        compared = paired(_judged(other / task.name / JUDGED), judged, clusters_of(samples))
    return Section(scores, figures(task.name), compared, *choose(samples, predicted, judged))


def _judged(path: Path) -> dict[str, float]:
    """The score of each sample that has one."""

    def value(record: Record) -> float | None:
        return None if record["score"].value is None else record["score"].number()

    found = {record["id"].text(): value(record) for record in read_jsonl(path, SCORED)}
    return {name: number for name, number in found.items() if number is not None}
