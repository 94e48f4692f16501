"""Many files, one question: each answer is the one that the file would get alone."""

import asyncio
import csv
import json
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app.engine import Engine, EngineConfig
from app.models import only
from app.requests import Request
from app.web.answering_all import UNREAD, Answered, answer_all
from app.web.gallery import add_gallery
from app.web.tables import write_csv, write_jsonl
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.app.servers import until


@pytest.fixture(scope="module")
def pipeline(listening_model: Any) -> Pipeline:
    return Pipeline(listening_model, "listening")


def answers(engine: Engine, files: list[str], question: str) -> list[tuple[int, Answered]]:
    async def collect() -> list[tuple[int, Answered]]:
        return [found async for found in answer_all(engine, files, question, Sampling(max_new_tokens=8))]

    return asyncio.run(collect())


def test_each_file_is_answered_as_if_alone_and_a_broken_one_says_why(
    pipeline: Pipeline, pictures: dict[str, Path], wave: Path, tmp_path: Path
) -> None:
    broken, gone = tmp_path / "broken.png", tmp_path / "gone.png"
    broken.write_bytes(b"\x89PNG no picture")
    files = [str(path) for path in (pictures["red"], broken, wave, gone, pictures["blue"], pictures["red"])]
    for question in ("What is it?", " "):
        with Engine(pipeline, EngineConfig(slots=2, max_waiting=0)) as engine:
            found = answers(engine, files, question)
        assert sorted(number for number, _ in found) == list(range(len(files)))
        by_number = dict(found)
        for number, kind in ((0, "images"), (2, "audio"), (4, "images"), (5, "images")):
            usual = "Describe the sound." if kind == "audio" else "Describe the picture."
            alone = pipeline.ask(question.strip() or usual, **{kind: [files[number]]})
            assert by_number[number] == Answered(Path(files[number]).name, alone.text)
        for number in (1, 3):
            assert by_number[number].error
            assert by_number[number].answer == ""
            assert str(tmp_path) not in by_number[number].error


def test_a_busy_engine_is_waited_for(pipeline: Pipeline, pictures: dict[str, Path]) -> None:
    """Somebody else has the only slot, and nobody may wait."""
    with Engine(pipeline, EngineConfig(slots=1, max_waiting=0)) as engine:
        other = engine.submit(Request(text="a red square", sampling=Sampling(max_new_tokens=400)))
        found = answers(engine, [str(pictures["red"])], "What?")
        other.cancel()
    assert found == [(0, Answered("red.png", pipeline.ask("What?", [pictures["red"]]).text))]


def test_leaving_early_frees_the_engine(endless_model: Any, pictures: dict[str, Path]) -> None:
    async def leave() -> None:
        found = answer_all(engine, files, "What?", Sampling(max_new_tokens=100_000))
        waiting = asyncio.ensure_future(anext(found))
        while not engine.scheduler.writing:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await found.aclose()
        going_on = asyncio.all_tasks() - {asyncio.current_task()}  # a page's loop does not end with a visitor
        await asyncio.gather(*going_on, return_exceptions=True)

    files = [str(pictures["red"])] * 5
    with Engine(Pipeline(endless_model), EngineConfig(slots=2)) as engine:
        asyncio.run(leave())
        until(lambda: engine.scheduler.free == 2 and not engine.scheduler.rows, "the slots are given back")
        assert engine.counts.answered == 0


def test_a_picture_that_the_model_cannot_hold_is_one_row(
    pipeline: Pipeline, pictures: dict[str, Path], wave: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(pipeline, EngineConfig(slots=2)) as engine:

        def see(taken: Any) -> None:
            raise RuntimeError("no 12 GB of memory at 0x1234")

        monkeypatch.setattr(engine.media, "_see", see)
        (_, seen), (_, heard) = sorted(answers(engine, [str(pictures["red"]), str(wave)], "What?"))
    assert seen == Answered("red.png", error=UNREAD)
    assert heard.answer


def test_an_engine_that_has_ended_is_no_fault_of_the_pictures(pipeline: Pipeline, pictures: dict[str, Path]) -> None:
    with Engine(pipeline, EngineConfig(slots=2)) as engine:
        pass
    with pytest.raises(RuntimeError, match="the engine is closed"):
        list(answers(engine, [str(pictures["red"])], "What?"))


def test_a_spreadsheet_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    evil = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1"]
    plain = ["a = b", 'say "hi", both', "two\nlines", "", "Ärger", "1-2"]
    write_csv(path, ["cell"], [[cell] for cell in (*evil, *plain)])
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = [row[0] for row in csv.reader(file)]
    assert rows == ["cell", *(f"'{cell}" for cell in evil), *plain]


def test_files_are_whole_or_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    rows = [{"file": "=a.png", "answer": "ä\n\u2028b"}, {"file": "b.png", "error": "\udcff"}]
    write_jsonl(path, rows)
    assert json.loads(path.read_text("utf-8").split("\n")[0]) == rows[0]
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_jsonl(path, [{"file": object()}])
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_page_fills_a_table_and_stops_when_it_is_told(
    endless_model: Any, pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(endless_model)
    with Engine(pipeline, EngineConfig(slots=2)) as engine, gr.Blocks(analytics_enabled=False) as page:
        add_gallery(only(engine), gr.State(""))
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, run_history=False, ssr_mode=False)
        visitor = Client(url, verbose=False)
        files = [handle_file(pictures[name]) for name in ("red", "blue")]
        *_, (told, table, as_csv, as_jsonl) = visitor.submit(files, "What?", 5, api_name="/gallery")
        expected = [pipeline.ask("What?", [pictures[name]], sampling=Sampling(5)).text for name in ("red", "blue")]
        assert "2 of 2 done<" in told
        assert table["data"] == [["red.png", expected[0], ""], ["blue.png", expected[1], ""]]
        lines = Path(as_jsonl["value"]).read_text("utf-8").splitlines()
        assert [json.loads(line)["answer"] for line in lines] == expected
        assert Path(as_csv["value"]).read_text("utf-8-sig").startswith("file,answer,error")
        with pytest.raises(AppError, match="no pictures or sounds yet"):
            visitor.predict(None, "What?", 5, api_name="/gallery")

        written, choose = engine.counts.tokens_written, engine._choose

        def until_it_is_told(rows: Any) -> Any:
            if engine.counts.tokens_written > written:
                until(lambda: all(row.ticket.cancelled for row in engine.scheduler.rows), "it is told to stop")
            return choose(rows)

        monkeypatch.setattr(engine, "_choose", until_it_is_told)
        job = visitor.submit(files * 4, "What?", 256, api_name="/gallery")
        until(lambda: engine.counts.tokens_written > written, "something is written")
        job.cancel()
        until(lambda: engine.scheduler.free == 2 and not engine.scheduler.rows, "the slots are given back")
        assert engine.counts.answered == 2
        page.close()
