"""What the bundled model is there for: it answers about what it sees and hears. Its scores are in its card."""

from typing import Any

import pytest

from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sources import BUNDLED
from mm_rwkv7.synthetic import scenes, soundscapes

SEEDS = range(10_001, 10_025, 2)


@pytest.fixture(scope="module")
def nano() -> Pipeline:
    return Pipeline.from_pretrained("nano", device="cpu", dtype="fp32")


def share_right(nano: Pipeline, part: dict[str, Any], qa: tuple[tuple[str, str, str], ...]) -> tuple[int, int]:
    state = nano.prefill([{"role": "user", "content": [part]}])
    return sum(nano.ask(question, state=state).text == answer for question, answer, _ in qa), len(qa)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_it_answers_about_scenes_and_soundscapes_that_it_never_met(nano: Pipeline, kind: str) -> None:
    right = asked = 0
    for seed in SEEDS:
        if kind == "image":
            scene = scenes.sample(seed, 192)
            found = share_right(nano, {"type": "image", "image": scene.image}, scene.qa)
        else:
            scape = soundscapes.sample(seed)
            found = share_right(nano, {"type": "audio", "audio": (scape.waveform, scape.rate)}, scape.qa)
        right, asked = right + found[0], asked + found[1]
    assert right / asked > 0.7, (right, asked)


def test_its_tags_name_what_sounds(nano: Pipeline) -> None:
    found = expected = 0
    for seed in SEEDS:
        scape = soundscapes.sample(seed)
        heard = {event.kind for event in scape.events} | ({f"{scape.noise} noise"} if scape.noise else set())
        tags = [label for label, _ in nano.tag((scape.waveform, scape.rate), top=len(heard))]
        found, expected = found + len(heard.intersection(tags)), expected + len(heard)
    assert found / expected > 0.8, (found, expected)


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in BUNDLED["nano"].iterdir()) < 32e6
