"""The report as one HTML file that needs nothing else."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from eval.markdown import compared_words, headline

if TYPE_CHECKING:
    from eval.gallery import Exhibit
    from eval.report import Section

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1f23, #e6e8eb); --soft: light-dark(#5b6470, #9aa4b1);
  --paper: light-dark(#fcfcfb, #16181b); --card: light-dark(#fff, #1e2125); --line: light-dark(#e3e5e8, #30343a);
  --bar: light-dark(#cfe0f5, #27405e); --good: light-dark(#1a7f46, #5fcf93); --bad: light-dark(#b3372f, #f08a80); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 5rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 1.5rem; } h2 { font-size: 1.35rem; margin: 3.5rem 0 .25rem; }
h3 { font-size: 1rem; margin: 2rem 0 .5rem; } p { margin: .25rem 0; } .soft { color: var(--soft); }
.score { font-size: 2.6rem; font-weight: 650; line-height: 1.2; margin: .75rem 0 0;
  font-variant-numeric: tabular-nums; }
.score small { font-size: 1.1rem; font-weight: 400; color: var(--soft); }
.partial { color: var(--bad); font-weight: 600; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th { text-align: left; font-weight: 600; color: var(--soft); }
th, td { padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.b { width: 40%; } .bar { background: var(--bar); height: .8rem; margin-top: .35rem; border-radius: 2px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .75rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px; }
figure img { display: block; max-width: 100%; height: 10rem; object-fit: contain; margin: 0 auto .5rem; }
figure audio { width: 100%; margin-bottom: .5rem; } figcaption { font-size: .9rem; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } a { color: inherit; }
"""


def page(sections: "Sequence[Section]", other: Path | None) -> str:
    """One page of all tasks."""
    summary = [
        (
            f'<a href="#{escape(s.scores["task"])}">{escape(s.scores["task"])}</a>',
            _plain_headline(s),
            f"{s.scores['n']:,}",
        )
        for s in sections
    ]
    body = "".join(_section(section, other) for section in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>Evaluation</h1>"
        f"{_table(('task', 'score', 'questions'), summary)}{body}</body></html>\n"
    )


def _plain_headline(section: "Section") -> str:
    partial = ' <span class="partial">partial</span>' if section.scores["partial"] else ""
    return escape(headline(section)) + partial


def _section(section: "Section", other: Path | None) -> str:
    scores = section.scores
    parts = [f'<section id="{escape(scores["task"])}"><h2>{escape(scores["task"])}</h2>']
    model = scores["model"]
    asked = "" if model is None else f"; {escape(model['name'])} ({escape(model['fingerprint'][:12])})"
    parts.append(f'<p class="soft">{escape(scores["variant"])}; {scores["n"]:,} questions{asked}</p>')
    if scores["main"] is not None:
        error = section.error
        kind = "" if error is None else f"; standard error, {escape(error[0])}"
        parts.append(f'<p class="score">{escape(headline(section))} <small>{escape(scores["main"])}{kind}</small></p>')
    if scores["partial"]:
        text = "Partial: not all questions were asked, so this is not the benchmark’s number."
        parts.append(f'<p class="partial">{text}</p>')
    parts += [f'<p class="soft">{escape(note)}</p>' for note in scores["notes"]]
    if section.compared is not None:
        parts.append(f"<h3>Beside {escape(str(other))}</h3><p>{escape(compared_words(section))}</p>")
    numbers = [(escape(name), f"{value:.2f}") for name, value in scores["metrics"].items()]
    numbers += [(f"standard error, {escape(name)}", f"{value:.2f}") for name, value in scores["stderr"].items()]
    if numbers:
        parts += ["<h3>Figures</h3>", _table(("metric", "value"), numbers)]
    for title, rows in scores["breakdown"].items():
        bars = ((escape(name), f"{value:.2f}", _bar(value, rows.values())) for name, value in rows.items())
        parts += [f"<h3>By {escape(title)}</h3>", _table((title, scores["main"] or "value", ""), bars)]
    if section.published:
        published = (
            (escape(f.model), f"{f.value:g}", f"{escape(f.source)}<br>comparable: {escape(f.comparable)}")
            for f in section.published
        )
        parts += ["<h3>What others report</h3>", _table(("model", "score", "source"), published)]
    for title, exhibits, colour in (("Right answers", section.right, "good"), ("Wrong answers", section.wrong, "bad")):
        if exhibits:
            title, colour = (title, colour) if scores["main"] is not None else ("Some answers", "")
            parts.append(f'<h3>{title}</h3><div class="gallery">{"".join(_figure(e, colour) for e in exhibits)}</div>')
    return "".join([*parts, "</section>"])


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already; the second column holds numbers, one of questions too, and one without a name bars."""
    kinds = ["", "n", *({"": "b", "questions": "n"}.get(name, "") for name in names[2:])]

    def line(cells: Sequence[str], tag: str) -> str:
        return "".join(f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    head = line([escape(name) for name in names], "th")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _bar(value: float, values: Iterable[float]) -> str:
    """A bar on a scale to 100, or to the largest value where that is more."""
    share = 100 * max(value, 0) / max(100.0, *values)
    return f'<div class="bar" style="width:{share:.1f}%"></div>'


def _figure(exhibit: "Exhibit", colour: str) -> str:
    sample = exhibit.sample
    media = "".join(f'<img src="{address}" alt="">' for address in exhibit.pictures)
    media += "".join(f'<audio controls src="{address}"></audio>' for address in exhibit.sounds)
    media += "".join(f'<p class="soft">{escape(text)}</p>' for text in exhibit.missing)
    expected = f'<br><span class="soft">expected:</span> {escape(sample.expected)}' if sample.expected else ""
    answer = (
        f'<br><span class="soft">answered:</span> <b class="{colour}">{escape(exhibit.prediction) or "nothing"}</b>'
    )
    question = escape(sample.question).replace("\n", "<br>")
    return f"<figure>{media}<figcaption>{question}{expected}{answer}</figcaption></figure>"
