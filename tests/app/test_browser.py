"""The page in a real browser: upload, ask, see the answer stream in, stop it, ask again."""

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mm_rwkv7.pipeline import Pipeline

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
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
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


@contextmanager
def _opened(browser_path: str, url: str, expected: Sequence[str] = ()) -> Iterator["Page"]:
    """The page in a new tab; the test fails if it logs other errors than these or asks any other host for anything."""
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
        tab.goto(url)
        yield tab
        browser.close()
    assert set(errors) <= set(expected)
    assert {host for host in hosts if host} <= {url.removeprefix("http://")}


@pytest.fixture
def tab(browser_path: str, slow_page: Any) -> Iterator["Page"]:
    with _opened(browser_path, slow_page.url) as tab:
        yield tab


@pytest.fixture
def sound_tab(browser_path: str, listening_page: str) -> Iterator["Page"]:
    """The page of a model that hears, where sounds are given."""
    with _opened(browser_path, listening_page) as tab:
        tab.click("role=tab[name='Sound']")
        yield tab


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


def _says(tab: "Page", text: str) -> bool:
    return any(message.split() == text.split() for message in _messages(tab))


def _shown(tab: "Page") -> list[str]:
    """The labels of the sound that is shown, once its spectrogram is there."""
    tab.wait_for_selector("#spectrogram img")
    _wait_until(tab, "document.querySelector('#spectrogram img')?.naturalWidth > 100")
    return tab.locator("#tags dt").all_inner_texts()


def test_a_sound_is_shown_and_asked_about(
    sound_tab: "Page", listening_model: Any, pictures: dict[str, Path], wave: Path
) -> None:
    tab, listener = sound_tab, Pipeline(listening_model)
    tab.set_input_files("#sound input[type=file]", wave)
    assert _shown(tab) == [label for label, _ in listener.tag(wave)]
    for question, read in (("What do you hear?", True), ("And where is it?", False)):
        tab.fill("#question textarea", question)
        tab.press("#question textarea", "Enter")
        figures = "document.querySelector('#figures').innerText"
        _wait_until(
            tab, f"{figures}.includes(' tokens') && {figures}.includes('read in') == {'true' if read else 'false'}"
        )
        assert tab.inner_text("#figures").startswith("sound read in" if read else "8 tokens")
        assert _says(tab, question)
        assert _says(tab, listener.ask(question, audio=[wave]).text)

    tab.click("role=tab[name='Picture']")  # which keeps the sound, as a mark says
    tab.wait_for_selector("role=tab[name='Sound ●']")
    _upload(tab, pictures["red"])
    tab.wait_for_selector("role=tab[name='Picture ●']")
    tab.fill("#question textarea", "What is it?")
    tab.click("#ask")
    _wait_until(tab, "document.querySelector('#figures').innerText.includes('picture and sound read in')")
    assert _says(tab, listener.ask("What is it?", [pictures["red"]], [wave]).text)
    assert not _says(tab, "What do you hear?")

    tab.click("#clear")
    tab.wait_for_selector("role=tab[name='Sound']")
    _wait_until(tab, "!document.querySelector('#picture img')")
    tab.click("role=tab[name='Sound']")
    tab.wait_for_selector("#spectrogram", state="hidden")


def test_a_sound_is_recorded(sound_tab: "Page") -> None:
    tab = sound_tab
    tab.click("#sound [aria-label='Record audio']")
    tab.click("#sound .record-button")
    tab.wait_for_timeout(1500)
    tab.click("#sound .stop-button")
    assert len(_shown(tab)) == 3
    tab.fill("#question textarea", "What do you hear?")
    tab.click("#ask")
    _wait_until(tab, "document.querySelector('#figures').innerText.includes('sound read in')")


def test_an_example_sound_takes_the_picture_away(sound_tab: "Page", pictures: dict[str, Path]) -> None:
    tab = sound_tab
    tab.click("role=tab[name='Picture']")
    _upload(tab, pictures["red"])
    tab.click("role=tab[name='Sound']")
    tab.click("#sound-examples button >> nth=0")
    assert _shown(tab)
    _wait_until(tab, "document.querySelector('#question textarea').value.endsWith('?')")
    assert tab.get_attribute("#question textarea", "placeholder") == "Ask about the picture or the sound"
    tab.wait_for_selector("role=tab[name='Picture']")


def test_a_file_that_is_no_sound_is_refused_with_a_message(
    browser_path: str, listening_page: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    with _opened(browser_path, listening_page, ["Waveform load error: MediaError"]) as tab:
        tab.click("role=tab[name='Sound']")
        tab.set_input_files("#sound input[type=file]", text)
        tab.wait_for_selector("text=text.wav is not a sound")
        assert not tab.is_visible("#spectrogram")
