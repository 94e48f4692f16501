"""The page's tab for many pictures and sounds: one question about each of them, the answers as a table and as files."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import gradio as gr

from app.engine import Engine
from app.models import Engines
from app.web.answering_all import Answered, answer_all
from app.web.media_panel import AT_ONCE
from app.web.progress_bar import progress_bar, progress_place
from app.web.refusals import refusals_as_messages
from app.web.stop_button import stop_button, stoppable, stoppable_until
from app.web.tables import write_csv, write_jsonl
from mm_rwkv7.sampling import Sampling

HEADERS = ["file", "answer", "error"]
LONGEST = 256  # tokens of an answer
MOST = 1000  # files: the table is drawn anew as each is done
Outputs = tuple[Any, ...]
Rows = list[Answered | str]  # what was answered about each file, its name alone before that


def add_gallery(engines: Engines, model: gr.components.Component) -> None:
    """The tab's components, inside the running `gr.Blocks`. `model` holds the name of the model that is asked."""

    async def answer(name: str, files: list[str] | None, question: str, most: int) -> AsyncIterator[Outputs]:
        """Ask one question about each of many pictures and sounds. Gives a table of files, answers and errors, and both
        as files in the end."""
        with refusals_as_messages(), ExitStack() as using:
            if not files:
                raise ValueError("there are no pictures or sounds yet")
            if len(files) > MOST:
                raise ValueError(f"there are {len(files):,} files, expected at most {MOST:,} at once")
            engine = await _entered(using, engines(name))
            rows: Rows = [Path(file).name for file in files]
            yield *_shown(rows), *_nothing(), rows
            answers = answer_all(engine, files, question, Sampling(max_new_tokens=int(most)))
            try:
                async for number, answered in answers:
                    rows[number] = answered
                    yield *_shown(rows), gr.skip(), gr.skip(), rows
            finally:
                await answers.aclose()
            with _files(rows) as offered:
                yield *_shown(rows), *offered, rows

    def offer(rows: Rows) -> Iterator[Outputs]:
        """What is done by now, when it was stopped or something went wrong."""
        with _files(rows) as offered:
            yield *_shown(rows, ended=True), *offered

    files = gr.File(
        label="Pictures and sounds",
        file_count="multiple",
        file_types=["image", "audio"],
        height=240,
        elem_id="gallery-files",
    )
    with gr.Row():
        question = gr.Textbox(
            label="Question about each",
            placeholder="Empty: a description of each",
            scale=4,
            min_width=240,
            elem_id="gallery-question",
        )
        most = gr.Slider(1, LONGEST, 64, step=1, label="Most tokens", info="Of one answer.", scale=2, min_width=200)
    with gr.Row():
        run = gr.Button("Answer all", variant="primary", min_width=110, elem_id="gallery-run")
        stop = stop_button("gallery-stop")
        as_csv = gr.DownloadButton("CSV", interactive=False, min_width=110, elem_id="gallery-csv")
        as_jsonl = gr.DownloadButton("JSON lines", interactive=False, min_width=110, elem_id="gallery-jsonl")
    progress = progress_place("gallery-progress")
    kept: gr.State = gr.State([])
    table = gr.Dataframe(
        headers=HEADERS,
        type="array",
        label="Answers",
        interactive=False,
        wrap=True,
        column_widths=["24%", "48%", "28%"],
        elem_id="gallery-table",
    )
    stoppable(stop, "answer", [run.click])
    answering = run.click(
        answer,
        [model, files, question, most],
        [progress, table, as_csv, as_jsonl, kept],
        api_name="gallery",
        show_progress="hidden",
    )
    offered = [progress, table, as_csv, as_jsonl]
    stop.click(offer, kept, offered, cancels=answering, **AT_ONCE)
    answering.failure(offer, kept, offered, **AT_ONCE)
    stoppable_until(stop, "answer", answering)


async def _entered(using: ExitStack, place: AbstractContextManager[Engine]) -> Engine:
    """Opening a model takes a while, in another thread; it goes on when the visitor leaves, and is given back then."""
    opened = ExitStack()
    opening = asyncio.ensure_future(asyncio.to_thread(opened.enter_context, place))
    try:
        engine = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda _: opened.close())
        raise
    using.push(opened.pop_all())
    return engine


def _shown(rows: Rows, ended: bool = False) -> Outputs:
    """(progress bar, table)"""
    if not rows:
        return "", None
    done = _done(rows)
    failed = sum(bool(row.error) for row in done)
    told = f"{len(done):,} of {len(rows):,} done" + f", {failed} failed" * bool(failed)
    told += ", stopped" * (ended and len(done) < len(rows))
    table = [[row, "", ""] if isinstance(row, str) else [row.file, row.answer, row.error] for row in rows]
    return progress_bar(len(done), len(rows), told), table


@contextmanager
def _files(rows: Rows) -> Iterator[Outputs]:
    """(CSV, JSON lines) of what is done, there until the page has copied them."""
    if not (done := _done(rows)):
        yield _nothing()
        return
    with tempfile.TemporaryDirectory() as folder:
        table, lines = Path(folder, "answers.csv"), Path(folder, "answers.jsonl")
        write_csv(table, HEADERS, [(row.file, row.answer, row.error) for row in done])
        write_jsonl(lines, [row.fields for row in done])
        yield tuple(gr.DownloadButton(value=str(path), interactive=True) for path in (table, lines))


def _nothing() -> Outputs:
    return (gr.DownloadButton(value=None, interactive=False),) * 2


def _done(rows: Rows) -> list[Answered]:
    return [row for row in rows if isinstance(row, Answered)]
