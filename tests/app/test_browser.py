"""The page in a real browser: upload, ask, see the answer stream in, stop it, ask again."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 60_000  # milliseconds
ANSWER_TOKENS = 600


@pytest.fixture(scope="module")
def browser_path() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: " + ", ".join(names))
    return path


@pytest.fixture
def tab(browser_path: str, slow_page: Any) -> Iterator["Page"]:
    """The page in a new tab; the test fails if it logs an error or asks any other host for anything."""
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    hosts: set[str] = set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(PATIENCE)
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("request", lambda request: hosts.add(request.url.partition("://")[2].partition("/")[0]))
        tab.goto(slow_page.url)
        yield tab
        browser.close()
    assert errors == []
    assert {host for host in hosts if host} <= {slow_page.url.removeprefix("http://")}


def _upload(tab: "Page", picture: Path) -> None:
    tab.set_input_files("#picture input[type=file]", picture)
    tab.wait_for_selector("#picture img")


def _wait_until(tab: "Page", condition: str) -> None:
    # By the clock: headless Chromium draws too few frames for the usual polling while an answer streams in.
    tab.wait_for_function(condition, polling=50)


def _messages(tab: "Page") -> list[str]:
    return [text.strip() for text in tab.locator("#chat .message").all_inner_texts()]


def _written(tab: "Page") -> int:
    """Tokens of the last answer, as the page says."""
    _wait_until(tab, "document.querySelector('#stop').disabled")
    found = re.search(r"(\d+) tokens", tab.inner_text("#figures"))
    assert found, tab.inner_text("#figures")
    return int(found[1])


def test_an_answer_streams_in_and_is_stopped(tab: "Page", pictures: dict[str, Path]) -> None:
    _upload(tab, pictures["red"])
    tab.fill("#question textarea", "What is in the picture?")
    tab.click("#ask")
    _wait_until(tab, "!document.querySelector('#stop').disabled")
    length = "document.querySelector('#chat').innerText.length"
    before = tab.evaluate(length)
    _wait_until(tab, f"{length} > {before}")
    _wait_until(tab, f"{length} > {before} + 20")

    tab.click("#stop")
    assert 0 < _written(tab) < ANSWER_TOKENS
    assert "stopped" in tab.inner_text("#figures")
    assert "picture read in" in tab.inner_text("#figures")
    stopped = _messages(tab)
    assert stopped[0] == "What is in the picture?"

    tab.fill("#question textarea", "And where is it?")
    tab.press("#question textarea", "Enter")
    _wait_until(tab, "!document.querySelector('#stop').disabled")
    tab.click("#stop")
    assert _written(tab) < ANSWER_TOKENS
    assert "picture read in" not in tab.inner_text("#figures")
    messages = _messages(tab)
    assert messages[: len(stopped)] == stopped
    assert "And where is it?" in messages


def test_clear_ends_an_answer_and_empties_the_page(tab: "Page", pictures: dict[str, Path]) -> None:
    _upload(tab, pictures["blue"])
    tab.click("#describe")
    _wait_until(tab, "!document.querySelector('#stop').disabled")
    tab.click("#clear")
    _wait_until(tab, "document.querySelector('#stop').disabled")
    _wait_until(tab, "!document.querySelector('#picture img')")
    tab.wait_for_timeout(1000)
    assert _messages(tab) == []


def test_a_file_that_is_no_picture_is_refused_with_a_message(tab: "Page", tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    tab.set_input_files("#picture input[type=file]", text)
    tab.wait_for_selector("#picture img", state="attached")
    tab.fill("#question textarea", "What is this?")
    tab.click("#ask")
    tab.wait_for_selector("text=text.png is not a picture")
    tab.wait_for_selector("#ask:enabled")


def test_an_example_fills_picture_and_question(tab: "Page") -> None:
    tab.click("#examples img >> nth=0")
    tab.wait_for_selector("#picture img")
    _wait_until(tab, "document.querySelector('#question textarea').value.endsWith('?')")
