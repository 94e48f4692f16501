"""The report as Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eval.report import Section


def markdown(sections: "Sequence[Section]", other: Path | None) -> str:
    """One document of all tasks."""
    lines = [
        "# Evaluation",
        "",
        *_table(("task", "score", "questions", "variant"), (_summary(s) for s in sections)),
        "",
    ]
    for section in sections:
        lines += [*_section(section, other), ""]
    return "\n".join(lines)


def headline(section: "Section") -> str:
    """The main metric with its standard error, in words and figures."""
    scores = section.scores
    if scores["main"] is None:
        return "not scored here"
    error = section.error
    value = f"{scores['metrics'][scores['main']]:.2f}"
    return value if error is None else f"{value} ± {error[1]:.2f}"


def _summary(section: "Section") -> tuple[str, ...]:
    scores = section.scores
    partial = " (partial)" if scores["partial"] else ""
    return scores["task"], f"{headline(section)}{partial}", str(scores["n"]), scores["variant"]


def _section(section: "Section", other: Path | None) -> list[str]:
    scores = section.scores
    lines = [f"## {scores['task']}", "", f"{scores['variant']}; {scores['n']} questions."]
    if scores["partial"]:
        lines.append("**Partial**: not all questions were asked, so this is not the benchmark's number.")
    lines += [*(f"{note}" for note in scores["notes"]), ""]
    if scores["metrics"]:
        lines += [*_table(("metric", "value"), ((n, f"{v:.2f}") for n, v in scores["metrics"].items())), ""]
    if scores["stderr"]:
        lines += [*_table(("standard error", "value"), ((n, f"{v:.2f}") for n, v in scores["stderr"].items())), ""]
    if section.compared is not None:
        lines += [f"Beside {other}: {compared_words(section)}", ""]
    for title, rows in scores["breakdown"].items():
        lines += [*_table((title, scores["main"] or "value"), ((n, f"{v:.2f}") for n, v in rows.items())), ""]
    if section.published:
        rows = ((f.model, f"{f.value:g}", f.source, f.comparable) for f in section.published)
        lines += [*_table(("published", "score", "source", "comparable"), rows), ""]
    for title, exhibits in (("Right", section.right), ("Wrong", section.wrong)):
        if exhibits and scores["main"] is not None:
            shown = ((e.sample.id, e.sample.question, e.sample.expected, e.prediction) for e in exhibits)
            lines += [*_table((title, "question", "expected", "answered"), shown), ""]
    return lines


def compared_words(section: "Section") -> str:
    """The paired test in a sentence."""
    found = section.compared
    assert found is not None
    main, mean_of = section.scores["main"], ""
    if f"{main}_bootstrap" in section.scores["stderr"]:  # no mean over questions
        mean_of = f" in the mean score of a question, which is not {main}"
    return (
        f"{found.difference:+.2f} ± {found.stderr:.2f}{mean_of} (p = {found.p:.3g}, paired, clustered); "
        f"better on {found.better}, worse on {found.worse} of {found.n:,} questions"
    )


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    lines = [names, ["---"] * len(names), *rows]
    return ["| " + " | ".join(_cell(str(cell)) for cell in line) + " |" for line in lines]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
