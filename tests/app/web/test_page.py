"""The page through its own API: streams, refusals, conversations, and visitors side by side."""

import html
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
from gradio.route_utils import delete_files_created_by_app
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app.addresses import check_address
from app.cli import main
from app.engine import Engine, EngineConfig
from app.requests import Busy, Request
from app.web import chat_view, example_sounds
from app.web.conversation import Conversation, Figures, Medium
from app.web.example_scenes import SCENES, examples, picture
from app.web.handlers import NOT_LAST, UNSEEN, Handlers
from app.web.page import build
from app.web.presets import Preset, presets
from app.web.refusals import SHOWN_S
from app.web.shelf import Shelf
from app.web.uploads import read_uploads
from mm_rwkv7 import Sampling
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.synthetic import soundscapes
from tests.app.servers import until
from tests.app.web.page_client import CONTROLS, PageClient, answers, message, said

ROOT = Path(__file__).resolve().parents[3]
Pictures = dict[str, Path]


@pytest.fixture
def visitor(slow_page: Any) -> PageClient:
    return PageClient(slow_page.url)


def test_an_answer_streams_in(
    slow_page: Any, visitor: PageClient, pictures: Pictures, endless_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[Any] = []
    texts: list[str] = []
    before = slow_page.tokens

    def seen() -> None:
        """Of every ten tokens something is seen before the next ten are written."""
        tens = (slow_page.tokens - before) // 10
        until(lambda: len(set(texts)) > tens, "the answer streams in")

    monkeypatch.setattr("app.web.growing.PAUSE", 0)
    monkeypatch.setattr(slow_page, "pace", seen)
    for update in visitor.submit("What?", pictures["red"], max_new_tokens=40):
        updates.append(update)
        text = answers(update)[-1]
        texts.append("" if text == chat_view.WAITING else text)
    assert len(set(texts)) > 3
    assert all(after.startswith(before) for before, after in pairwise(texts))
    alone = Pipeline(endless_model).ask("What?", [pictures["red"]], sampling=Sampling(max_new_tokens=40))
    assert texts[-1] == alone.text
    assert list(said(updates[-1]))[:2] == [("user", "Picture: red.png"), ("user", "What?")]
    assert updates[0][1]["value"] == {"text": "", "files": []}
    assert updates[0][1]["stop_btn"]
    assert not updates[-1][1]["stop_btn"]
    assert "40 tokens written" in updates[-1][2]
    assert "cut at the limit" in updates[-1][2]
    assert UNSEEN not in updates[-1][2]


def test_a_conversation_remembers_unless_told_not_to(
    listening_page: str, listening_model: Any, pictures: Pictures, wave: Path
) -> None:
    listener = Pipeline(listening_model)
    first = listener.ask("What?", [pictures["red"]], [wave])
    visitor = PageClient(listening_page)
    assert visitor.ask("What?", pictures["red"], wave) == first.text
    assert visitor.ask("Where?") == listener.ask("Where?", state=first.state).text
    assert visitor.ask("Where?", remember=False) == listener.ask("Where?", [pictures["red"]], [wave]).text


def test_a_picture_without_words_is_described(visitor: PageClient, pictures: Pictures, endless_model: Any) -> None:
    alone = Pipeline(endless_model).caption(pictures["red"], Sampling(max_new_tokens=8))
    assert visitor.ask("", pictures["red"]) == alone
    described = visitor.do("describe", message("kept", pictures["red"]), *(CONTROLS | {"remember": False}).values())
    assert answers(described)[-1] == alone


def test_words_about_nothing_are_answered_with_a_hint(visitor: PageClient) -> None:
    outputs = visitor.submit("What is in the picture?").result()
    assert answers(outputs)[-1]
    assert UNSEEN in outputs[2]


def test_no_hint_where_words_alone_are_enough(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with a vocabulary of its own knows pictures and sounds; others talk."""
    model, question = engine.pipeline.model, {"text": "What?", "files": []}

    def figures() -> str:
        *_, (_, _, told, _) = Handlers(engine).ask(question, gr.Request(session_hash="tab"), **CONTROLS)
        return str(told)

    assert UNSEEN in figures()
    world = replace(model.config, vocabulary=None, lm=replace(model.config.lm, vocab_size=65536))
    monkeypatch.setattr(model, "config", world)
    assert UNSEEN not in figures()


def test_undo_retry_fork_show_and_close(visitor: PageClient, pictures: Pictures) -> None:
    first = visitor.ask("What?", pictures["red"])
    second = visitor.ask("Where?")
    undone = visitor.do("undo")
    assert answers(undone) == [first]
    assert undone[1]["value"] == {"text": "Where?", "files": []}
    assert visitor.ask("Where?") == second
    assert answers(visitor.do("retry", *CONTROLS.values())) == [first, second]
    assert visitor.do("fork")[3]["value"] == 2
    third = visitor.ask("And?")
    assert answers(visitor.do("show", 1)) == [first, second]
    assert visitor.ask("And?") == third
    assert answers(visitor.do("new")) == []
    assert answers(visitor.do("close")) == [first, second, third]
    with pytest.raises(AppError, match=r"Value: 3 is not in the list|no such conversation"):
        visitor.do("show", 3)


def test_a_conversation_is_saved_and_restored(
    slow_page: Any, visitor: PageClient, pictures: Pictures, tmp_path: Path
) -> None:
    first = visitor.ask("What?", pictures["red"])
    file = Path(visitor.do("save"))
    other = PageClient(slow_page.url)
    restored = other.do("restore", handle_file(str(file)))
    assert answers(restored) == [first]
    assert next(said(restored)) == ("user", "Picture: red.png")
    assert other.ask("Where?") == visitor.ask("Where?")
    broken = tmp_path / "conversation.safetensors"
    broken.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(AppError) as error:
        other.do("restore", handle_file(str(broken)))
    assert str(error.value) == "the file is no saved conversation"
    with pytest.raises(AppError, match="nothing was said yet"):
        PageClient(slow_page.url).do("save")


def test_a_sound_is_shown(listening_page: str, listening_model: Any, wave: Path) -> None:
    visitor = PageClient(listening_page)
    spectrogram, tags = visitor.do("hear", message("", wave))
    with Image.open(spectrogram) as drawn:
        assert drawn.getbbox() is not None
    shown = {tag["label"]: tag["confidence"] for tag in tags["confidences"]}
    assert shown == pytest.approx(dict(Pipeline(listening_model).tag(wave)))


def test_bad_files_are_messages_without_the_servers_folders(
    listening_page: str, pictures: Pictures, tmp_path: Path
) -> None:
    visitor = PageClient(listening_page)
    kinds = {"text.png": "neither a picture nor a sound", "text.wav": "neither a picture nor a sound"}
    for name, expected in kinds.items():
        (tmp_path / name).write_text("neither")
        for attempt in (lambda file: visitor.ask("What?", file), lambda file: visitor.do("hear", message("", file))):
            with pytest.raises(AppError) as error:
                attempt(tmp_path / name)
            assert str(error.value).startswith(f"{name} is {expected}")
    with pytest.raises(AppError, match="question is empty"):
        visitor.ask(" ")
    with pytest.raises(AppError, match="expected at most 32"):
        visitor.ask("What?", *[pictures["red"]] * 33)
    with pytest.raises(AppError):
        visitor.ask("What?", max_new_tokens=10**9)
    assert visitor.ask("What?", pictures["red"])


def test_a_refused_file_leaves_the_message_and_the_rest_of_it_stays(
    listening_page: str, pictures: Pictures, tmp_path: Path
) -> None:
    visitor, bad = PageClient(listening_page), [tmp_path / name for name in ("one.png", "two.wav")]
    for path in bad:
        path.write_text("neither")
    files = message("typed", bad[0], pictures["red"], bad[1])
    calls: dict[str, list[Any]] = {"/ask": [], "/describe": []}
    for name in calls:
        job = visitor.client.submit(files, *CONTROLS.values(), api_name=name)
        with pytest.raises(AppError) as error:
            job.result()
        for path in bad:
            assert str(error.value).count(path.name) == 1
        held = job.outputs()[-1][1]["value"]
        assert held["text"] == "typed"
        assert [Path(file).name for file in held["files"]] == ["red.png"]


def test_what_could_not_be_answered_is_in_the_box_again(
    listening_page: str, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(self: Engine, request: Request) -> None:
        raise Busy(3)

    monkeypatch.setattr(Engine, "submit", busy)
    job = PageClient(listening_page).submit("typed", pictures["red"])
    with pytest.raises(AppError, match="try again in 3 s"):
        job.result()
    cleared, again = (outputs[1]["value"] for outputs in job.outputs())
    assert cleared == {"text": "", "files": []}
    assert again["text"] == "typed"
    assert [Path(file).name for file in again["files"]] == ["red.png"]


def test_a_seed_that_was_emptied_is_another_one_each_time(engine: Engine) -> None:
    question = {"text": "What?", "files": []}
    *_, (_, _, told, _) = Handlers(engine).ask(question, gr.Request(session_hash="tab"), **{**CONTROLS, "seed": None})
    assert "written" in told


def test_programs_name_the_controls(visitor: PageClient) -> None:
    first = visitor.client.predict(message("What?"), max_new_tokens=3, api_name="/ask")
    assert "3 tokens written" in first[2]
    assert "5 tokens written" in visitor.client.predict(max_new_tokens=5, api_name="/retry")[2]


def test_no_file_of_the_server_is_read(listening_page: str, pictures: Pictures) -> None:
    for path in (str(pictures["red"]), "/etc/passwd", str(ROOT / "README.md")):
        asked = {"text": "What?", "files": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        body = {"data": [asked, *CONTROLS.values()], "session_hash": "somebody"}
        called = httpx.post(f"{listening_page}/gradio_api/call/ask", json=body, timeout=60)
        told = httpx.get(f"{listening_page}/gradio_api/call/ask/{called.json()['event_id']}", timeout=60).text
        assert "event: error" in told, told
        assert httpx.get(f"{listening_page}/gradio_api/file={path}").status_code in (403, 404)


def test_no_event_takes_what_could_name_a_file_of_the_server(listening_page: str) -> None:
    """A chat that is an input opens every path in it, whoever wrote that there."""
    config = httpx.get(f"{listening_page}/config").json()
    chats = {component["id"] for component in config["components"] if component["type"] == "chatbot"}
    assert len(chats) == 2
    assert not [event["api_name"] for event in config["dependencies"] if chats & set(event["inputs"])]


def test_pictures_are_bounded_together(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.uploads.PIXELS", 10_000)
    files = [str(pictures["red"])] * 32
    with pytest.raises(ValueError, match="more than 10,000 pixels together"):
        read_uploads(files)


def test_visitors_side_by_side_do_not_hear_each_other(slow_page: Any, pictures: Pictures) -> None:
    def talk(name: str) -> list[str]:
        visitor = PageClient(slow_page.url)
        return [visitor.ask("What is it?", pictures[name]), visitor.ask("Where is it?")]

    alone = {name: talk(name) for name in pictures}
    assert alone["red"] != alone["blue"]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(talk, ["red", "blue"] * 4))
    assert together == [alone["red"], alone["blue"]] * 4


def test_a_cancelled_request_stops_writing(
    slow_page: Any, visitor: PageClient, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, left = slow_page.tokens, threading.Event()

    def held() -> None:
        if slow_page.tokens > before:
            until(left.is_set, "the visitor may leave")
            time.sleep(0.3)  # 600 tokens take minutes then

    def free() -> bool:
        with pytest.raises(AppError, match=r"still being written|nothing was said") as told:
            visitor.do("undo")
        return "nothing" in str(told.value)

    with monkeypatch.context() as patch:
        patch.setattr(slow_page, "pace", held)
        job = visitor.submit("What?", pictures["red"], max_new_tokens=600)
        next(iter(job))
        with pytest.raises(AppError, match="still being written"):
            visitor.ask("And?")
        until(lambda: slow_page.tokens > before, "it writes")
        left.set()
        job.cancel()
        until(free, "the conversation is free")
        until(lambda: not slow_page.engine.scheduler.rows, "the request is given up")
    assert slow_page.tokens - before < 600
    assert next(said(visitor.submit("And?").result())) == ("user", "And?")


def test_two_conversations_of_a_tab_are_answered_side_by_side(
    slow_page: Any, visitor: PageClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is not shown goes on, and does not disturb the one that is."""
    before, may_end, engine = slow_page.tokens, threading.Event(), slow_page.engine

    def together() -> None:
        """The first answer goes on while there is another one."""
        if slow_page.tokens > before:
            until(lambda: may_end.is_set() or len(engine.scheduler.rows) > 1 or engine._inbox.qsize(), "it goes on")

    monkeypatch.setattr(slow_page, "pace", together)
    first = visitor.submit("What?", max_new_tokens=200)
    next(iter(first))
    visitor.do("new")
    assert visitor.ask("Where?", max_new_tokens=5)
    assert not first.done()
    may_end.set()
    shown = first.result()
    assert "2 · Where?" in [title for title, _ in shown[3]["choices"]]
    assert [text for role, text in said(visitor.do("show", 1)) if role == "user"] == ["What?"]


@pytest.fixture(scope="module")
def engine(listening_model: Any) -> Iterator[Engine]:
    with Engine(Pipeline(listening_model, "listener"), EngineConfig(slots=1)) as engine:
        yield engine


def test_a_message_of_the_chat_leads_to_its_turn(engine: Engine, pictures: Pictures, wave: Path) -> None:
    conversation = Conversation(engine, Shelf(1 << 28))
    for text, files in (("One", [pictures["red"], wave]), ("Two", []), ("Three", [pictures["blue"]])):
        list(conversation.ask(text, read_uploads([str(file) for file in files]), Sampling(max_new_tokens=2)))
    turns = conversation.turns
    shown = chat_view.messages(turns)
    owners = [chat_view.turn_of(turns, index) for index in range(len(shown))]
    assert owners == [0, 0, 0, 0, 1, 1, 2, 2, 2]
    assert [shown[index]["content"] for index in (2, 4, 7)] == ["One", "Two", "Three"]
    for wrong in (-1, len(shown)):
        with pytest.raises(ValueError, match="no such message"):
            chat_view.turn_of(turns, wrong)
    gone = [replace(medium, path="") for medium in turns[0].media]
    picture, sound, *_ = chat_view.messages([replace(turns[0], media=tuple(gone))])
    with Image.open(picture["content"]["path"]) as preview:
        assert preview.convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert sound["content"] == f"[Sound: {wave.name}]"


def test_what_is_stopped_before_an_answer_began_is_in_the_box_again(engine: Engine, pictures: Pictures) -> None:
    handlers, tab = Handlers(engine), gr.Request(session_hash="tab")
    question, release = {"text": "What?", "files": [str(pictures["red"])]}, threading.Event()
    held = engine.call(lambda _: release.wait(60))  # nothing is read before
    updates = handlers.ask(question, tab, **CONTROLS)
    _, box, told, _ = next(updates)
    assert (box.value, told) == ({"text": "", "files": []}, "Reading the picture …")
    handlers.stop(tab)
    release.set()
    assert held.result()
    *_, (chat, box, _, _) = updates
    assert (chat, box.value["text"]) == ([], "What?")
    assert [file["orig_name"] for file in box.value["files"]] == ["red.png"]


def test_a_message_is_shown_before_what_was_sent_with_it_is_decoded(
    engine: Engine, pictures: Pictures, wave: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long sound takes its time, which counts, and in which it can be stopped."""
    decoded: list[list[str]] = []

    def slowly(paths: list[str]) -> list[Medium]:
        decoded.append(paths)
        time.sleep(0.25)
        return read_uploads(paths)

    monkeypatch.setattr("app.web.handlers.read_uploads", slowly)
    handlers, tab, question = Handlers(engine), gr.Request(session_hash="tab"), {"text": "", "files": [str(wave)]}
    updates = handlers.ask(question, tab, **CONTROLS)
    chat, box, told, _ = next(updates)
    assert not decoded
    assert [part["content"] for part in chat] == [
        {"path": str(wave), "alt_text": f"Sound: {wave.name}"},
        chat_view.WAITING,
    ]
    assert box.stop_btn
    assert told == "Reading the sound …"
    *_, (chat, *_) = updates
    assert [part["content"] for part in chat][1:-1] == ["Describe the sound."]
    assert handlers.visitors.of("tab").current.turns[0].figures.first_s >= 0.25

    updates = handlers.ask({"text": "And?", "files": [str(pictures["red"]), str(wave)]}, tab, **CONTROLS)
    assert next(updates)[2] == "Reading 2 pictures and sounds …"
    handlers.stop(tab)
    before = engine.counts.tokens_read
    *_, (chat_after, box, told, _) = updates
    assert (chat_after, box.value["text"]) == (chat, "And?")
    assert "first token after" in told
    assert engine.counts.tokens_read == before


def test_words_are_shown_as_they_were_written(engine: Engine) -> None:
    handlers, tab, words = Handlers(engine), gr.Request(session_hash="tab"), "is 3 <b> 2? <script>x</script>"
    *_, (chat, *_) = handlers.ask({"text": words, "files": []}, tab, **CONTROLS)
    assert "<" not in chat[0]["content"]
    assert html.unescape(chat[0]["content"]) == words
    event = mock.Mock(index=0, value=f"{chat[0]['content']} And?")
    *_, (chat, *_) = handlers.edit(event, tab, **CONTROLS)
    assert handlers.visitors.of("tab").current.turns[0].text == f"{words} And?"


def test_a_message_that_is_refused_once_it_is_shown_leaves_the_chat(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF....WAVE")
    handlers, tab = Handlers(engine), gr.Request(session_hash="tab")
    updates = handlers.ask({"text": "What?", "files": [str(tmp_path / "bad.wav")]}, tab, **CONTROLS)
    assert len(next(updates)[0]) == 3
    chat, box, told, _ = next(updates)
    assert (chat, box.value, box.stop_btn, told) == ([], {"text": "What?", "files": []}, False, "")
    with pytest.raises(gr.Error, match="broken or cut short"):
        next(updates)

    updates = handlers.ask({"text": "What?", "files": [str(tmp_path / "bad.wav")]}, tab, **CONTROLS)
    next(updates)
    handlers.new(tab)  # whose box is not filled with the words of another conversation
    with pytest.raises(gr.Error, match="broken or cut short"):
        next(updates)


def test_the_figures_say_what_was_measured() -> None:
    figures = Figures(0.25, 50, 0, 0.1, 0.0, 12, 240.0, "length", 330_000)
    line = chat_view.describe(figures)
    for part in ("0.25 s", "read 50 tokens, 500 a second", "12 tokens written, 240 a second", "0.33 MB", "cut at"):
        assert part in line
    assert "encoded" not in line
    assert "read" not in chat_view.describe(replace(figures, ending=""))


def test_a_preset_refuses_to_speak_of_what_is_not_there(engine: Engine, pictures: Pictures, wave: Path) -> None:
    def pressed(label: str, *files: Path, remember: bool = True) -> str:
        said = {"text": "kept", "files": [str(file) for file in files]}
        try:
            *_, (chat, *_) = handlers.preset(label)(said, tab, **(CONTROLS | {"remember": remember}))
        except gr.Error as error:
            return str(error.message)
        return next(str(one["content"]) for one in reversed(chat) if one["role"] == "user")

    handlers, tab = Handlers(engine), gr.Request(session_hash="tab")
    handlers.presets = {"see": Preset("What?", "image"), "hear": Preset("Where?", "audio")}
    no_picture, no_sound = "there is no picture yet, send one first", "there is no sound yet, send one first"
    assert [pressed("see"), pressed("hear")] == [no_picture, no_sound]
    assert pressed("see", wave) == no_picture
    assert handlers.visitors.of("tab").current.turns == ()
    assert [pressed("see", pictures["red"]), pressed("see"), pressed("hear")] == ["What?", "What?", no_sound]
    assert [pressed("hear", wave), pressed("see")] == ["Where?", "What?"]
    assert pressed("see", remember=False) == NOT_LAST  # but the sound
    handlers.new(tab)
    assert pressed("see") == no_picture
    with pytest.raises(gr.Error) as refused:
        handlers.hear(None, tab)
    assert (refused.value.message, refused.value.duration) == (no_sound, SHOWN_S)
    assert SHOWN_S < 10  # Gradio's own, for which a message would lie over buttons


def test_no_picture_is_decoded_to_look_for_sounds(
    engine: Engine, pictures: Pictures, wave: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples, rate = soundfile.read(wave)
    unlike = tmp_path / "noise.aiff"  # its first bytes are not among those that `is_sound` knows
    soundfile.write(unlike, samples, rate)
    monkeypatch.setattr("mm_rwkv7.pictures.load_picture", None)
    monkeypatch.setattr("app.media.load_picture", None)
    handlers = Handlers(engine)
    assert "__type__" in handlers.overhear({"text": "", "files": [str(pictures["red"])]})[0]
    for sound in (wave, unlike):
        spectrogram, _ = handlers.overhear({"text": "", "files": [str(pictures["red"]), str(sound)]})
        assert isinstance(spectrogram, Image.Image)


def test_presets_are_those_that_a_model_has_words_for(tiny_model: MMRWKV7) -> None:
    assert presets(Pipeline(tiny_model)) == {
        "Describe": ("Describe the picture.", "image"),
        "What is it?": ("What is in the picture?", "image"),
    }
    assert "Describe the sound" not in presets(Pipeline(tiny_model))
    assert set(presets(Pipeline.from_pretrained("nano"))) >= {"Describe", "Read the text", "Describe the sound"}


def test_a_tab_that_is_closed_is_forgotten(engine: Engine) -> None:
    handlers, tab = Handlers(engine), gr.Request(session_hash="tab")
    handlers.new(tab)
    assert len(handlers.visitors) == 1
    handlers.leave(tab)
    assert len(handlers.visitors) == 0


def test_a_port_that_is_taken_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["app", "--port", str(port)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in error[0]
    check_address("127.0.0.1", port)


def test_the_examples_are_scenes_that_no_training_has_shown() -> None:
    from mm_rwkv7.synthetic.scenes import sample

    assert len(examples()) == len(SCENES)
    for seed, question in SCENES.items():
        assert seed % 2 == 1
        with Image.open(picture(seed)) as image:
            assert image.tobytes() == sample(seed, image.width).image.tobytes()
        assert question


def test_the_example_sounds_are_soundscapes_that_no_training_has_played() -> None:
    assert len(example_sounds.examples()) == len(example_sounds.names()) == len(example_sounds.SOUNDS)
    for seed, (_, question) in example_sounds.SOUNDS.items():
        assert seed % 2 == 1
        waveform, rate = soundfile.read(example_sounds.file(seed), dtype="int16")
        scape = soundscapes.sample(seed)
        assert rate == scape.rate
        assert np.array_equal(waveform, scape.waveform)
        assert question in [asked for asked, _, _ in scape.qa]


def test_examples_do_not_go_with_old_uploads(engine: Engine) -> None:
    page = build(engine)
    held = [Path(path) for component in page.blocks.values() for path in component.temp_files]
    assert {path.name for path in held} >= {path.name for path in (ROOT / "app" / "examples").iterdir()}
    delete_files_created_by_app(page, None)
    assert all(path.exists() for path in held)
