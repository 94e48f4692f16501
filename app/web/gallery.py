"""The page's tab for many pictures and sounds: one question about each of them, the answers as a table and as files."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import gradio as gr

from app.engine import Engine
from app.models import Engines
from app.web.answering_all import Answered, answer_all
from app.web.progress_bar import progress_bar, progress_place
from app.web.refusals import refusals_as_messages
from app.web.tables import write_csv, write_jsonl
from mm_rwkv7.sampling import Sampling

HEADERS = ["file", "answer", "error"]
LONGEST = 256  # tokens of an answer
MOST = 1000  # files: the table is drawn anew as each is done
Outputs = tuple[Any, ...]


def add_gallery(engines: Engines, model: gr.components.Component) -> None:
    """The tab's components, inside the running `gr.Blocks`. `model` holds the name of the model that is asked."""

    async def answer(name: str, files: list[str] | None, question: str, most: int) -> AsyncIterator[Outputs]:
        """Ask one question about each of many pictures and sounds. Gives a table of files, answers and errors."""
        with refusals_as_messages(), ExitStack() as using:
            if not files:
                raise ValueError("there are no pictures or sounds yet")
            if len(files) > MOST:
                raise ValueError(f"there are {len(files):,} files, expected at most {MOST:,} at once")
            engine = await _entered(using, engines(name))
            rows: list[Answered | None] = [None] * len(files)
            yield *_shown(files, rows), None, None
            answers = answer_all(engine, files, question, Sampling(max_new_tokens=int(most)))
            try:
                async for number, answered in answers:
                    rows[number] = answered
                    yield *_shown(files, rows), None, None
            finally:
                await answers.aclose()
            with tempfile.TemporaryDirectory() as folder:  # the page copies what it offers
                found = [row for row in rows if row is not None]
                table, lines = Path(folder, "answers.csv"), Path(folder, "answers.jsonl")
                write_csv(table, HEADERS, [(row.file, row.answer, row.error) for row in found])
                write_jsonl(lines, [row.fields for row in found])
                yield *_shown(files, rows), _download(table), _download(lines)

    files = gr.File(
        label="Pictures and sounds",
        file_count="multiple",
        file_types=["image", "audio"],
        height=180,
        elem_id="gallery-files",
    )
    with gr.Row():
        question = gr.Textbox(
            label="Question about each",
            placeholder="Empty: a description of each",
            scale=4,
            elem_id="gallery-question",
        )
        most = gr.Slider(1, LONGEST, 64, step=1, label="Most tokens", info="Of one answer.", scale=2)
    with gr.Row():
        run = gr.Button("Answer all", variant="primary", min_width=110, elem_id="gallery-run")
        stop = gr.Button("Stop", variant="stop", min_width=110, elem_id="gallery-stop")
        as_csv = gr.DownloadButton("CSV", interactive=False, min_width=110, elem_id="gallery-csv")
        as_jsonl = gr.DownloadButton("JSON lines", interactive=False, min_width=110, elem_id="gallery-jsonl")
    progress = progress_place("gallery-progress")
    table = gr.Dataframe(
        headers=HEADERS,
        type="array",
        label="Answers",
        interactive=False,
        wrap=True,
        column_widths=["24%", "48%", "28%"],
        elem_id="gallery-table",
    )
    answering = run.click(
        answer,
        [model, files, question, most],
        [progress, table, as_csv, as_jsonl],
        api_name="gallery",
        show_progress="hidden",
    )
    stop.click(None, None, None, cancels=answering, queue=False, api_visibility="private")


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


def _shown(files: Sequence[str], rows: Sequence[Answered | None]) -> Outputs:
    """(progress bar, table)"""
    done = sum(row is not None for row in rows)
    failed = sum(bool(row.error) for row in rows if row is not None)
    told = f"{done} of {len(files)} done" + f", {failed} failed" * bool(failed)
    table = [["", "", ""] if row is None else [row.file, row.answer, row.error] for row in rows]
    for line, path in zip(table, files, strict=True):
        line[0] = Path(path).name
    return progress_bar(done, len(files), told), table


def _download(path: Path) -> Any:
    return gr.DownloadButton(value=str(path), interactive=True)
