"""A long text read in portions: the same state as read at once, asked from the page, a terminal and a file."""

import io
import re
import time
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app import document
from app.cli import main
from app.document import load_document, portions, read_in, read_with_bar
from app.engine import Engine, EngineConfig
from app.models import only
from app.requests import Request
from app.web.document_tab import add_document
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State

TEXT = "What is in the picture?\n\n\na red square\n" * 40


@pytest.fixture(scope="module")
def pipeline(tiny_model: Any) -> Pipeline:
    return Pipeline(tiny_model, "tiny")


@pytest.fixture(autouse=True)
def _short_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "PORTION", 100)


def assert_same(found: State, expected: State) -> None:
    assert found.tokens_seen == expected.tokens_seen
    assert not found.open_turn
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_portions_join_to_the_message(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    expected = pipeline.prefill([{"role": "user", "content": TEXT}])
    pieces = portions(pipeline, TEXT)
    assert len(pieces) > 5
    assert max(map(len, pieces)) == 100
    assert_same(read_with_bar(pipeline, TEXT), expected)
    assert re.search(r"100%.*token", capsys.readouterr().err)
    with Engine(pipeline, EngineConfig(slots=1, max_waiting=0)) as engine:
        busy = engine.submit(Request(text="a red square", sampling=Sampling(max_new_tokens=50)))
        states = list(read_in(engine, pieces))
        busy.cancel()
        answer = engine.submit(Request([{"role": "user", "content": "What?"}], state=states[-1])).result()
    assert [state.tokens_seen for state in states[:2]] == [100, 200]
    assert_same(states[-1], expected)
    assert answer.text == pipeline.ask("What?", state=expected).text


def test_leaving_ends_the_reading(pipeline: Pipeline) -> None:
    with Engine(pipeline) as engine:
        reading = read_in(engine, portions(pipeline, TEXT))
        next(reading)
        reading.close()
        time.sleep(0.1)
        assert engine.counts.tokens_read == 100


def test_files_that_are_no_texts_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes("\ufeffwörds".encode())
    assert load_document(path) == "wörds"
    for data, told in ((b"\xff\xfe", "no text in UTF-8"), (b" \n", "holds no text")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=told):
            load_document(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_document(tmp_path / "none.txt")


def test_a_document_is_asked_from_a_terminal(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.md"
    path.write_text(TEXT)
    opened = Pipeline.from_pretrained(tiny_checkpoint)
    state = opened.prefill([{"role": "user", "content": TEXT}])
    first = opened.ask("What is in the picture?", state=state)
    second, alone = (opened.ask("Describe", state=before) for before in (first.state, state))
    given = ["--document", str(path), "--model", str(tiny_checkpoint)]
    assert main(["ask", *given, "What is in the picture?"]) == 0
    assert capsys.readouterr().out == f"{first.text}\n"
    for options, answer in (([], alone), (["--remember"], second)):
        monkeypatch.setattr("sys.stdin", io.StringIO("What is in the picture?\nDescribe\n\n"))
        assert main(["chat", *given, *options]) == 0
        assert capsys.readouterr().out == f"{first.text}\n{answer.text}\n"
    assert main(["ask", "--document", str(tmp_path / "none"), "What?"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_page_reads_once_and_answers_from_there(pipeline: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    state = pipeline.prefill([{"role": "user", "content": TEXT}])
    with Engine(pipeline) as engine, gr.Blocks(analytics_enabled=False) as page:
        add_document(only(engine), gr.State("tiny"))
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, run_history=False, ssr_mode=False)
        visitor = Client(url, verbose=False)
        with pytest.raises(AppError, match="no document has been read"):
            visitor.predict("What?", api_name="/ask_document")
        *_, (told, chat, saved) = visitor.submit(handle_file(path), "", api_name="/read_document")
        assert f"{state.tokens_seen:,} tokens read in" in told
        assert chat == []
        before = engine.counts.tokens_read
        for asked, question in enumerate(("What?", "Describe"), start=1):
            turns, _, figures = visitor.predict(question, api_name="/ask_document")
            assert len(turns) == 2 * asked
            assert turns[-1]["content"][0]["text"] == pipeline.ask(question, state=state).text
            assert figures.startswith("first token after")
        assert engine.counts.tokens_read - before < 30
        assert_same(State.load(saved["value"], pipeline.fingerprint), state)
        page.close()
