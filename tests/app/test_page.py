"""The page through its own API: streams, refusals, and visitors side by side."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from gradio.route_utils import delete_files_created_by_app
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from app import example_sounds
from app.cli import main
from app.example_scenes import SCENES, examples, picture
from app.page import build
from app.serving import check_address
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.synthetic import soundscapes

ROOT = Path(__file__).resolve().parents[2]
Pictures = dict[str, Path]
CONTROLS = {
    "follow_up": False,
    "temperature": 0,
    "top_p": 1,
    "top_k": 0,
    "presence_penalty": 0,
    "count_penalty": 0,
    "penalty_decay": 1,
    "max_new_tokens": 8,
    "seed": 0,
}


@pytest.fixture
def visitor(slow_page: Any) -> Client:
    return Client(slow_page.url, verbose=False)


def _asking(picture: Path | None, question: str, **controls: Any) -> dict[str, Any]:
    file = None if picture is None else handle_file(picture)
    return {"picture": file, "question": question, **CONTROLS, **controls}


def _answer(outputs: tuple[Any, ...]) -> str:
    chat, _, _ = outputs
    assert chat[-1]["role"] == "assistant"
    return chat[-1]["content"][0]["text"]


def test_an_answer_streams_in(visitor: Client, pictures: Pictures, endless_model: Any) -> None:
    updates = list(visitor.submit(**_asking(pictures["red"], "What?", max_new_tokens=40), api_name="/ask"))
    texts = [_answer(update) for update in updates]
    assert len(set(texts)) > 3
    assert all(after.startswith(before) for before, after in pairwise(texts))
    chat, question, figures = updates[-1]
    sampling = Sampling(max_new_tokens=40)
    assert texts[-1] == Pipeline(endless_model).ask("What?", [pictures["red"]], sampling=sampling).text
    assert chat[0]["content"][0]["text"] == "What?"
    assert question == ""
    assert "40 tokens" in figures
    assert "picture read in" in figures


def test_describe_asks_for_a_caption(visitor: Client, pictures: Pictures, endless_model: Any) -> None:
    outputs = visitor.predict(*_asking(pictures["red"], "kept").values(), api_name="/describe")
    caption = Pipeline(endless_model).caption(pictures["red"], Sampling(max_new_tokens=8))
    assert _answer(outputs) == caption
    assert outputs[1] == "kept"


def test_a_sound_is_asked_about_and_shown(
    listening_page: str, listening_model: Any, pictures: Pictures, wave: Path
) -> None:
    listener, visitor = Pipeline(listening_model), Client(listening_page, verbose=False)
    sound = {"sound": handle_file(wave)}
    for seen, read in ((None, "sound"), (pictures["red"], "picture and sound")):
        outputs = visitor.predict(**_asking(seen, "What?") | sound, api_name="/ask")
        assert _answer(outputs) == listener.ask("What?", [] if seen is None else [seen], [wave]).text
        assert outputs[2].startswith(f"{read} read in")
    described = visitor.predict(None, handle_file(wave), "kept", *CONTROLS.values(), api_name="/describe")
    assert _answer(described) == listener.ask("Describe the sound.", audio=[wave]).text

    spectrogram, tags = visitor.predict(handle_file(wave), api_name="/hear")
    with Image.open(spectrogram) as drawn:
        assert drawn.getbbox() is not None
    shown = {tag["label"]: tag["confidence"] for tag in tags["confidences"]}
    assert shown == pytest.approx(dict(listener.tag(wave)))
    assert visitor.predict(None, api_name="/hear") == (None, {})


def test_a_sound_is_encoded_once_for_its_tags_and_all_questions(
    listening_page: str, listening_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.wav"
    soundfile.write(path, np.random.default_rng().normal(0, 0.1, 8000), 16_000)
    encode, encoded = listening_model.sound.encoder.forward, []
    monkeypatch.setattr(listening_model.sound.encoder, "forward", lambda *w: encoded.append(1) or encode(*w))
    for _ in range(2):
        visitor = Client(listening_page, verbose=False)
        visitor.predict(handle_file(path), api_name="/hear")
        visitor.predict(**_asking(None, "What?") | {"sound": handle_file(path)}, api_name="/ask")
    assert len(encoded) == 1


def test_a_file_that_is_no_sound_is_a_message(listening_page: str, tmp_path: Path) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    visitor = Client(listening_page, verbose=False)
    for asking, name in (
        ({"sound": handle_file(text)}, "/hear"),
        (_asking(None, "?") | {"sound": handle_file(text)}, "/ask"),
    ):
        with pytest.raises(AppError) as error:
            visitor.predict(**asking, api_name=name)
        assert str(error.value) == "text.wav is not a sound, or not of a known format (WAV, FLAC, OGG, MP3)"
    with pytest.raises(AppError, match="no picture or sound to describe"):
        visitor.predict(None, None, "", *CONTROLS.values(), api_name="/describe")


def test_visitors_side_by_side_do_not_hear_each_other(slow_page: Any, pictures: Pictures) -> None:
    def talk(name: str) -> list[str]:
        client = Client(slow_page.url, verbose=False)
        asking = [_asking(pictures[name], question, follow_up=True) for question in ("What is it?", "Where is it?")]
        return [_answer(client.predict(**one, api_name="/ask")) for one in asking]

    alone = {name: talk(name) for name in pictures}
    assert alone["red"] != alone["blue"]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(talk, ["red", "blue"] * 2))
    assert together == [alone["red"], alone["blue"]] * 2


def test_a_cancelled_request_stops_writing(slow_page: Any, visitor: Client, pictures: Pictures) -> None:
    before = slow_page.tokens
    job = visitor.submit(**_asking(pictures["red"], "What?", max_new_tokens=600), api_name="/ask")
    next(iter(job))
    with pytest.raises(AppError, match="still being written"):
        visitor.predict(**_asking(pictures["red"], "And?"), api_name="/ask")
    job.cancel()
    written = -1
    while written != slow_page.tokens:
        written = slow_page.tokens
        time.sleep(0.5)
    assert written - before < 600
    chat, _, _ = visitor.predict(**_asking(pictures["red"], "And?"), api_name="/ask")
    assert len(chat) == 2


def test_bad_input_is_a_message_without_the_servers_folders(
    visitor: Client, pictures: Pictures, tmp_path: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    refused = [
        (_asking(text, "What?"), "text.png is not a picture, or not of a known format"),
        (_asking(pictures["red"], " "), "the question is empty"),
    ]
    for asking, said in refused:
        with pytest.raises(AppError) as error:
            visitor.predict(**asking, api_name="/ask")
        assert str(error.value) == said
    with pytest.raises(AppError, match="no picture to describe"):
        visitor.predict(*_asking(None, "").values(), api_name="/describe")
    with pytest.raises(AppError):
        visitor.predict(**_asking(None, "What?", max_new_tokens=10**9), api_name="/ask")


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


def test_examples_do_not_go_with_old_uploads(listening_model: Any) -> None:
    page = build(Pipeline(listening_model))
    held = [Path(path) for component in page.blocks.values() for path in component.temp_files]
    assert {path.name for path in held} == {path.name for path in (ROOT / "app" / "examples").iterdir()}
    delete_files_created_by_app(page, None)
    assert all(path.exists() for path in held)
