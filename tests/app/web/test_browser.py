"""The page in a real browser: send, see the answer stream in, stop it, take it back, go on elsewhere."""

import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from app.engine import Engine
from app.web import handlers
from app.web.visitors import MOST
from mm_rwkv7.pipeline import Pipeline
from tests.app.servers import until

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Response

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
QUESTION = "#question textarea"
THUMBNAILS = "#question .thumbnail-item"
# Toasts go after a while: what they said is kept, one after another.
TOASTS = """window.toasts = []; const seen = new WeakSet();
new MutationObserver(() => document.querySelectorAll('.toast-message-item').forEach(one => {
  if (!seen.has(one)) { seen.add(one); window.toasts.push(one.textContent); }
})).observe(document, {childList: true, subtree: true});"""
WRITING = "!!document.querySelector('#question .stop-button')"


@pytest.fixture(scope="module")
def browser_path() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on this machine: " + ", ".join(names))
    return path


@pytest.fixture(scope="module")
def browser(browser_path: str) -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def _opened(browser: "Browser", url: str) -> Iterator["Page"]:
    """The page in a new tab; the test fails if it logs an error or asks any other host for anything."""
    errors: list[str] = []
    hosts: set[str] = set()
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.set_default_timeout(PATIENCE)
    tab.add_init_script(TOASTS)
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: hosts.add(request.url.partition("://")[2].partition("/")[0]))
    tab.goto(url)
    tab.wait_for_selector(QUESTION)
    yield tab
    tab.close()
    assert not errors
    assert {host for host in hosts if host} <= {url.removeprefix("http://")}


@pytest.fixture
def tab(browser: "Browser", slow_page: Any) -> Iterator["Page"]:
    with _opened(browser, slow_page.url) as tab:
        yield tab


@pytest.fixture
def short_tab(browser: "Browser", listening_page: str) -> Iterator["Page"]:
    """The page of a model that hears, and whose answers are short. It remembers nothing unless told to: so are the
    models whose vocabulary is their own."""
    with _opened(browser, listening_page) as tab:
        yield tab


def _attach(tab: "Page", *files: Path) -> None:
    """Add files to the message, and wait until they are there."""
    there = tab.locator(THUMBNAILS).count()
    tab.set_input_files("#question input[type=file]", list(files))
    _wait_until(tab, f"document.querySelectorAll('{THUMBNAILS}').length == {there + len(files)}")


def _wait_until(tab: "Page", condition: str) -> None:
    # By the clock: headless Chromium draws too few frames for the usual polling while an answer streams in.
    tab.wait_for_function(condition, polling=50)


def _told(tab: "Page", text: str) -> None:
    """Wait for a toast with this text."""
    _wait_until(tab, f"window.toasts.some(said => said.includes({text!r}))")


def _direct(number: int) -> Callable[["Response"], bool]:
    """Whether so many answers have come outside the queue."""
    seen = count(1)
    return lambda response: "/run/predict" in response.url and next(seen) == number


def _said(tab: "Page", role: str) -> list[str]:
    """What was said by "user" or "bot", pictures left out."""
    texts = tab.locator(f"#chat [data-testid={role}]").all_inner_texts()
    return [text.strip() for text in texts if text.strip()]


def _send(tab: "Page", text: str) -> None:
    tab.fill(QUESTION, text)
    tab.press(QUESTION, "Enter")


def _ask(tab: "Page", text: str) -> str:
    """The whole answer."""
    answers = len(_said(tab, "bot"))
    _send(tab, text)
    _answered(tab, answers + 1)
    return _said(tab, "bot")[-1]


def _answered(tab: "Page", count: int) -> None:
    _wait_until(tab, f"document.querySelectorAll('#chat [data-testid=bot]').length == {count} && !({WRITING})")
    _wait_until(tab, "document.querySelector('#figures').innerText.includes('state ')")


def _shown(tab: "Page") -> list[str]:
    """The labels of the sound that is shown, once its spectrogram is there."""
    tab.wait_for_selector("#spectrogram img")
    _wait_until(tab, "document.querySelector('#spectrogram img')?.naturalWidth > 100")
    return tab.locator("#tags dt").all_inner_texts()


def _press(tab: "Page", name: str) -> None:
    tab.locator(f"#chat button[aria-label='{name}']").last.click()


def _nameless(tab: "Page") -> list[str]:
    """What can be pressed or filled in, and has no name for a screen reader."""
    return tab.evaluate("""[...document.querySelectorAll('button, input, textarea')].filter(e =>
        e.checkVisibility() && !(e.innerText || e.ariaLabel || e.title || e.labels?.[0]?.innerText
        || e.getAttribute('aria-labelledby') || e.type == 'file')).map(e => e.outerHTML.slice(0, 200))""")


def test_an_answer_streams_in_and_is_stopped(
    tab: "Page", slow_page: Any, pictures: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pace = slow_page.pace

    def until_stopped() -> None:
        pace()
        for row in slow_page.engine.scheduler.writing:
            until(lambda row=row: row.ticket.written < 100 or row.ticket.stopped, "it is stopped", PATIENCE / 1000)

    monkeypatch.setattr(slow_page, "pace", until_stopped)
    _attach(tab, pictures["red"], pictures["blue"])
    _send(tab, "What is in the picture?")
    length = "document.querySelector('#chat').innerText.length"
    _wait_until(tab, WRITING)
    before = tab.evaluate(length)
    _wait_until(tab, f"{length} > {before} + 20")
    assert tab.input_value(QUESTION) == ""
    assert re.search(r"first token after .* tokens written", tab.inner_text("#figures"))
    tab.click("#question .stop-button")
    _answered(tab, 1)
    figures = tab.inner_text("#figures")
    written = re.search(r"(\d+) tokens written", figures)
    assert written
    assert int(written[1]) < ANSWER_TOKENS
    for said in ("stopped", "encoded in", "a second", "memory"):
        assert said in figures
    assert tab.locator("#chat [data-testid=user] img").count() == 2
    stopped = _said(tab, "bot")

    _send(tab, "And where is it?")
    _wait_until(tab, WRITING)
    tab.click("#question .stop-button")
    _answered(tab, 2)
    assert "encoded in" not in tab.inner_text("#figures")
    assert _said(tab, "bot")[0] == stopped[0]
    assert _said(tab, "user") == ["What is in the picture?", "And where is it?"]


def test_undo_another_answer_and_edit(short_tab: "Page", pictures: dict[str, Path]) -> None:
    tab = short_tab
    _attach(tab, pictures["red"])
    first, second = _ask(tab, "What is it?"), _ask(tab, "Where is it?")
    _press(tab, "Undo")
    _wait_until(tab, f"document.querySelector('{QUESTION}').value == 'Where is it?'")
    assert _said(tab, "bot") == [first]
    tab.press(QUESTION, "Enter")
    _answered(tab, 2)
    assert _said(tab, "bot") == [first, second]
    tab.evaluate("document.querySelector('#figures p').textContent = ''")
    _press(tab, "Retry")
    _answered(tab, 2)
    assert _said(tab, "bot") == [first, second]

    tab.locator("#chat button[aria-label='Edit']").first.click()
    tab.locator("#chat textarea").last.fill(" ")
    tab.locator("#chat button[aria-label='Submit']").click()
    _told(tab, "the question is empty")
    tab.wait_for_selector("#chat [data-testid=user]:has-text('What is it?')")

    tab.locator("#chat button[aria-label='Edit']").first.click()
    widths = [tab.locator(place).last.bounding_box()["width"] for place in ("#chat textarea", "#chat")]  # type: ignore[index]
    assert widths[0] > 0.8 * widths[1]
    tab.locator("#chat textarea").last.fill("Describe it.")
    tab.locator("#chat button[aria-label='Submit']").click()
    _answered(tab, 1)
    assert _said(tab, "user") == ["Describe it."]
    assert tab.locator("#chat [data-testid=user] img").count() == 1


def test_a_fork_is_another_conversation(short_tab: "Page") -> None:
    tab = short_tab
    first = _ask(tab, "What is it?")
    tab.click("#fork")
    _wait_until(tab, "document.querySelector('#conversations input').value.startsWith('2')")
    _ask(tab, "Where is it?")
    tab.click("#conversations input")
    tab.click("[role=option]:has-text('1 ·')")
    _wait_until(tab, "document.querySelectorAll('#chat [data-testid=bot]').length == 1")
    assert _said(tab, "bot") == [first]
    tab.click("#chat button[aria-label='Clear']")
    _wait_until(tab, "document.querySelectorAll('#chat [data-testid=bot]').length == 2")
    tab.click("#reopen")
    _wait_until(tab, "document.querySelectorAll('#chat [data-testid=bot]').length == 1")
    assert _said(tab, "bot") == [first]
    tab.wait_for_selector("#reopen", state="hidden")
    for number in range(4, MOST + 2):  # the first one was closed, and is the third now
        tab.click("#new")
        _wait_until(tab, f"document.querySelector('#conversations input').value == '{number} · new'")
    assert _said(tab, "bot") == []
    tab.click("#new")
    _told(tab, f"a tab holds {MOST} conversations")


def test_a_conversation_is_saved_and_restored(
    browser: "Browser", listening_page: str, pictures: dict[str, Path], tmp_path: Path
) -> None:
    file = tmp_path / "saved.safetensors"
    with _opened(browser, listening_page) as tab:
        _attach(tab, pictures["red"])
        first = _ask(tab, "What is it?")
        with tab.expect_download() as download:
            tab.click("#save")
        download.value.save_as(file)
        assert download.value.suggested_filename == "conversation.safetensors"
        second = _ask(tab, "Where is it?")
    with _opened(browser, listening_page) as tab:
        bad = tmp_path / "bad.safetensors"
        bad.write_text("no conversation")
        for path, seen in ((file, 1), (bad, 0)):
            with tab.expect_file_chooser() as chooser:
                tab.click("#restore")
            chooser.value.set_files(path)
            if not seen:
                _told(tab, "the file is no saved conversation")
                break
            _wait_until(tab, "document.querySelectorAll('#chat [data-testid=bot]').length == 1")
            assert _said(tab, "bot") == [first]
            assert tab.locator("#chat [data-testid=user] img").count() == 1
            assert _ask(tab, "Where is it?") == second


def test_a_preset_asks_about_what_is_in_the_message(
    short_tab: "Page", listening_model: Any, pictures: dict[str, Path]
) -> None:
    tab = short_tab
    tab.fill(QUESTION, "kept")
    _attach(tab, pictures["blue"])
    tab.click("#presets button:has-text('Describe')")
    _answered(tab, 1)
    assert _said(tab, "user") == ["Describe the picture."]
    assert _said(tab, "bot")[0].split() == Pipeline(listening_model).caption(pictures["blue"]).split()
    assert tab.input_value(QUESTION) == "kept"
    assert tab.locator(THUMBNAILS).count() == 0


def test_a_sound_is_shown_and_asked_about(short_tab: "Page", listening_model: Any, wave: Path) -> None:
    tab, listener = short_tab, Pipeline(listening_model)
    _attach(tab, wave)
    assert _ask(tab, "What do you hear?").split() == listener.ask("What do you hear?", audio=[wave]).text.split()
    assert _shown(tab) == [label for label, _ in listener.tag(wave)]
    assert tab.get_attribute("#spectrogram img", "alt")
    tab.click("#new")
    tab.wait_for_selector("#spectrogram", state="hidden")
    _wait_until(tab, "document.querySelectorAll('#chat [data-testid=bot]').length == 0")
    with tab.expect_response(_direct(1)) as overheard:  # which shows or hides the spectrogram
        assert _ask(tab, "What?")
    overheard.value.finished()
    assert _ask(tab, "Where?")  # what came of it is there before an answer that was asked for later
    assert not tab.locator("#spectrogram").is_visible()  # it was another conversation's


def test_an_answer_does_not_wait_for_what_is_heard(
    short_tab: "Page", wave: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tab, release, hear = short_tab, threading.Event(), handlers.hear

    def waits(engine: Engine, path: str) -> Any:
        release.wait(2 * PATIENCE / 1000)
        return hear(engine, path)

    monkeypatch.setattr(handlers, "hear", waits)
    _attach(tab, wave)
    assert _ask(tab, "What do you hear?")
    assert not tab.locator("#spectrogram").is_visible()
    release.set()
    assert _shown(tab)


def test_a_sound_is_recorded(short_tab: "Page") -> None:
    tab = short_tab
    for button in ("Record audio", "Start recording"):
        tab.click(f"#question [aria-label='{button}']")
    tab.wait_for_selector("#question [aria-label='Stop recording']")
    tab.wait_for_timeout(1500)
    for button in ("Stop recording", "Attach audio"):
        tab.click(f"#question [aria-label='{button}']")
    _wait_until(tab, f"document.querySelectorAll('{THUMBNAILS}').length == 1")
    assert _ask(tab, "What do you hear?")
    assert len(_shown(tab)) == 3


def test_a_picture_is_taken(short_tab: "Page") -> None:
    tab = short_tab
    tab.locator("#camera-panel button").first.click()
    tab.click("text=Click to Access Webcam")
    _wait_until(tab, "document.querySelector('#camera video')?.videoWidth > 0")
    tab.click("#camera button[aria-label='capture photo']")
    _wait_until(tab, f"document.querySelectorAll('{THUMBNAILS}').length == 1")
    assert _ask(tab, "What is it?")
    assert tab.locator("#chat [data-testid=user] img").count() == 1


def test_files_that_cannot_be_read_are_refused_with_one_message_and_leave(
    short_tab: "Page", pictures: dict[str, Path], tmp_path: Path
) -> None:
    tab = short_tab
    for name in ("text.png", "text.wav"):
        (tmp_path / name).write_text("neither")
        _attach(tab, tmp_path / name)
        with tab.expect_response(_direct(2)):  # one of them on the spectrogram, the other when the message is refused
            _send(tab, "What is this?")
        _told(tab, f"{name} is neither a picture nor a sound")
        _wait_until(tab, f"document.querySelectorAll('{THUMBNAILS}').length == 0")
        assert tab.input_value(QUESTION) == "What is this?"
        assert _said(tab, "bot") == []
    assert _ask(tab, "What?")
    assert [said.partition(" ")[0] for said in tab.evaluate("window.toasts")] == ["text.png", "text.wav"]
    assert "Nothing to look at" in tab.inner_text("#figures")
    _attach(tab, pictures["red"])
    assert _ask(tab, "What?")


def test_too_many_files_are_told_as_they_are_added(
    short_tab: "Page", pictures: dict[str, Path], tmp_path: Path
) -> None:
    tab, many = short_tab, [tmp_path / f"{number}.png" for number in range(33)]
    for path in many:
        path.write_bytes(pictures["red"].read_bytes())
    _attach(tab, *many)
    tab.wait_for_selector("#too-many:has-text('33 files: one message takes at most 32')")
    tab.locator("#question [aria-label='Remove file']").first.click()
    tab.wait_for_selector("#too-many", state="hidden")
    assert tab.locator(THUMBNAILS).count() == 32


def test_an_example_fills_the_message(short_tab: "Page") -> None:
    tab = short_tab
    tab.locator("#examples button").first.click()
    _wait_until(tab, f"document.querySelector('{QUESTION}').value.endsWith('?')")
    assert tab.locator(THUMBNAILS).count() == 1
    assert _ask(tab, tab.input_value(QUESTION))


def test_it_is_used_by_keyboard_and_named_for_screen_readers(short_tab: "Page") -> None:
    tab = short_tab
    assert _nameless(tab) == []
    tab.focus(QUESTION)
    tab.keyboard.type("What?")
    tab.keyboard.press("Enter")
    _answered(tab, 1)
    assert tab.get_attribute("#figures", "role") == "status"
    dark = "document.body.classList.contains('dark')"
    before = tab.evaluate(dark)
    tab.focus("#theme")
    tab.keyboard.press("Enter")
    _wait_until(tab, f"{dark} != {str(before).lower()}")


def test_on_a_phone_the_question_is_in_sight(short_tab: "Page") -> None:
    tab = short_tab
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.evaluate("scrollTo(0, 0)")
    for _ in range(2):
        box = tab.locator("#question").bounding_box()
        assert box
        assert box["y"] + box["height"] <= 844
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        pressed = [*tab.locator("#tabs [role=tab]:visible").all(), *tab.locator("#presets button:visible").all()]
        boxes = [button.bounding_box() for button in pressed]
        assert len(boxes) >= 4 + 3
        assert all(box and box["x"] >= 0 and box["x"] + box["width"] <= 390 for box in boxes)
        _ask(tab, "What is it?")
        tab.evaluate("scrollTo(0, 0)")


def test_eight_tabs_at_once_mix_nothing(
    browser: "Browser", listening_page: str, listening_model: Any, pictures: dict[str, Path]
) -> None:
    questions = ("What is it?", "Where is it?", "Describe it.")
    names = ["red", "blue"] * 4
    pipeline = Pipeline(listening_model)
    alone = {
        name: [pipeline.ask(question, [picture]).text.split() for question in questions]
        for name, picture in pictures.items()
    }
    tabs = [browser.new_page() for _ in names]
    for tab, name in zip(tabs, names, strict=True):
        tab.set_default_timeout(PATIENCE)
        tab.goto(listening_page)
        _attach(tab, pictures[name])
    for number, question in enumerate(questions):
        for tab in tabs:
            _send(tab, question)
        for tab in tabs:
            _answered(tab, number + 1)
    for tab, name in zip(tabs, names, strict=True):
        assert [text.split() for text in _said(tab, "bot")] == alone[name]
    for tab in tabs:
        tab.close()
