"""The tabs besides the chat, and the choice among models, in a real browser."""

import csv
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app.engine import Engine
from app.models import Models
from app.web import answering_all
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State
from tests.app.servers import page_of
from tests.app.test_server_models import known, opener  # noqa: F401 - a fixture
from tests.app.web.test_browser import _nameless, _opened, _told, browser, browser_path  # noqa: F401 - fixtures

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.slow

TEXT = "What is in the picture? a red square\n" * 400


@pytest.fixture
def tab(browser: "Browser", known: dict[str, Pipeline]) -> Iterator["Page"]:  # noqa: F811
    """A page with two models, of which one is in memory."""
    models = Models(["/models/endless", "listening", "/models/broken"], opener(known))
    with models.served() as served, page_of(served) as url, _opened(browser, url) as tab:
        yield tab


def _limit(tab: "Page", tokens: int) -> None:
    tab.click("text=How it answers")
    tab.fill("[aria-label='number input for Most tokens'] >> nth=0", str(tokens))


def _pick(tab: "Page", name: str) -> None:
    tab.click("#model input")
    tab.click(f"[role=option]:has-text('{name}')")


def _downloaded(tab: "Page", button: str) -> Path:
    with tab.expect_download() as download:
        tab.click(button)
    return Path(download.value.path())


def _text(place: "Locator") -> str:
    return " ".join(place.inner_text().split())


def test_models_are_picked_and_each_keeps_its_chat(tab: "Page", known: dict[str, Pipeline]) -> None:  # noqa: F811
    answers = {name: pipeline.ask("Describe", sampling=Sampling(6)).text for name, pipeline in known.items()}
    for name, other in (("endless", "listening"), ("listening", "endless")):
        _limit(tab, 6)
        tab.fill("#question textarea", "Describe")
        tab.press("#question textarea", "Enter")
        tab.wait_for_selector("#figures:has-text('cut at the limit')")
        assert answers[name] in _text(tab.locator("#chat"))
        _pick(tab, other)
        tab.wait_for_function(f"!document.querySelector('#chat').innerText.includes({answers[name]!r})", polling=50)
        tab.wait_for_selector("#question textarea:enabled")
        tab.wait_for_selector("#question textarea[aria-label='Message']")
        assert _nameless(tab) == []
    tab.wait_for_selector(f"#chat:has-text('{answers['endless']}')")


def test_on_a_phone_the_title_is_whole_beside_the_list_of_models(tab: "Page") -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    title, place, question = (tab.locator(name).bounding_box() for name in ("#head h1", "#introduction", "#question"))
    assert title
    assert place
    assert question
    assert title["x"] + title["width"] <= place["x"] + place["width"]
    assert question["y"] + question["height"] <= 844
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_model_that_cannot_be_opened_has_no_chat(tab: "Page", known: dict[str, Pipeline]) -> None:  # noqa: F811
    _pick(tab, "broken")
    tab.wait_for_selector("#no-chat:has-text('broken cannot be opened')")
    assert "/models/" not in tab.inner_text("body")
    assert tab.locator("#chat").count() == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(known, "broken", known["listening"])
        tab.click("text=Try again")
        tab.wait_for_selector("#question textarea:enabled")
    _pick(tab, "endless")
    tab.wait_for_selector("#question textarea:enabled")


def test_a_gallery_that_is_stopped_hands_out_what_is_done(
    tab: "Page", pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    asking, opened = answering_all._asking, threading.Event()
    request.addfinalizer(opened.set)

    def waits(engine: Engine, path: str, question: str) -> Any:
        if Path(path).name == "blue.png":
            opened.wait()
        return asking(engine, path, question)

    monkeypatch.setattr(answering_all, "_asking", waits)
    tab.click("role=tab[name='Many files']")
    tab.click("#gallery-run")  # with no files
    tab.wait_for_selector("[data-testid='toast-body']")
    tab.wait_for_selector("#gallery-stop:disabled")
    tab.set_input_files("#gallery-files input[type=file]", [pictures["blue"], pictures["red"]])
    tab.wait_for_selector("#gallery-files:has-text('red')")
    assert tab.is_disabled("#gallery-stop")
    tab.click("#gallery-run")
    tab.wait_for_selector("#gallery-progress:has-text('1 of 2 done')")
    assert tab.is_disabled("#gallery-csv")
    tab.click("#gallery-stop")
    tab.wait_for_selector("#gallery-progress:has-text('1 of 2 done, stopped')")
    tab.wait_for_selector("#gallery-stop:disabled")
    opened.set()
    lines = [json.loads(line) for line in _downloaded(tab, "#gallery-jsonl").read_text("utf-8").splitlines()]
    assert [line["file"] for line in lines] == ["red.png"]
    assert lines[0]["answer"] in _text(tab.locator("#gallery-table"))
    assert "red.png" in _downloaded(tab, "#gallery-csv").read_text("utf-8-sig")


def test_many_files_a_long_text_and_the_state(
    tab: "Page",
    known: dict[str, Pipeline],  # noqa: F811
    pictures: dict[str, Path],
    tmp_path: Path,
) -> None:
    pipeline = known["endless"]
    tab.click("role=tab[name='Many files']")
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    tab.set_input_files("#gallery-files input[type=file]", [pictures["red"], broken, pictures["blue"]])
    tab.wait_for_selector("#gallery-files:has-text('blue')")
    tab.fill("#gallery-question textarea", "What is it?")
    tab.fill("[aria-label='number input for Most tokens']:visible", "5")
    tab.click("#gallery-run")
    tab.wait_for_selector("#gallery-progress:has-text('3 of 3 done, 1 failed')")
    tab.wait_for_selector("#gallery-stop:disabled")
    rows = list(csv.DictReader(io.StringIO(_downloaded(tab, "#gallery-csv").read_text("utf-8-sig"))))
    assert [row["file"] for row in rows] == ["red.png", "broken.png", "blue.png"]
    assert rows[0]["answer"] == pipeline.ask("What is it?", [pictures["red"]], sampling=Sampling(5)).text
    assert rows[1]["error"].startswith("broken.png is not a picture")
    assert rows[0]["answer"] in _text(tab.locator("#gallery-table"))
    tab.click("#gallery-files [aria-label='Clear']")
    tab.click("#gallery-run")
    _told(tab, "there are no pictures or sounds yet")

    tab.click("role=tab[name='Long text']")
    tab.wait_for_selector("#document-hint:has-text('This model knows no texts')")
    tab.fill("#document-text textarea", TEXT)
    tab.click("#document-read")
    tab.wait_for_selector("#document-progress:has-text('what is remembered takes')")
    file = _downloaded(tab, "#document-take")
    data, state = file.read_bytes(), State.load(file, pipeline.fingerprint)
    assert state.tokens_seen == pipeline.prefill([{"role": "user", "content": TEXT}]).tokens_seen
    for question in ("What?", "Where?"):
        tab.fill("#document-question textarea", question)
        tab.click("#document-ask")
        tab.wait_for_selector(f"#document-chat:has-text('{question}') >> nth=0")
        tab.wait_for_selector("#document-figures:has-text('tokens a second')")
        if question == "What?":
            tab.click("#document-chat button[aria-label='Clear']")
            tab.wait_for_selector("#document-chat [data-testid=user]", state="detached")
    assert tab.locator("#document-chat [data-testid=user]").all_inner_texts() == ["Where?"]
    with tab.expect_file_chooser() as chooser:
        tab.click("#document-bring")
    chooser.value.set_files({"name": "x.safetensors", "mimeType": "application/octet-stream", "buffer": b"no state"})
    _told(tab, "is not a state file")
    assert tab.input_value("#document-text textarea") == TEXT
    with tab.expect_file_chooser() as chooser:
        tab.click("#document-bring")
    chooser.value.set_files({"name": "x.safetensors", "mimeType": "application/octet-stream", "buffer": data})
    tab.wait_for_selector("#document-progress:has-text('tokens were read before')")
    assert tab.input_value("#document-text textarea") == ""

    tab.click("role=tab[name='What it remembers']")
    tab.fill("#remembered-text textarea", "a <b>red</b> square")
    tab.click("#look")
    columns = tab.locator("#maps .column")
    columns.first.wait_for(state="attached")
    told = [column.get_attribute("data-token") or "" for column in columns.all()]
    spelled = "".join(re.fullmatch(r"\d+: '(.*)'", one)[1] for one in told)  # type: ignore[index]
    assert spelled == "User: a <b>red</b> square\\n\\n"
    columns.nth(2).hover()
    shown = columns.nth(2).evaluate("element => getComputedStyle(element, '::after').content")
    assert shown.strip('"') == told[2]
