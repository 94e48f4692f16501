import random
from pathlib import Path

import pytest

from eval.catalogue import open_task
from eval.run import open_source
from mm_rwkv7.synthetic import scenes, soundscapes


@pytest.mark.parametrize(("name", "maker"), [("scenes", scenes), ("soundscapes", soundscapes)])
def test_questions_are_those_of_odd_seeds(name: str, maker: object, seed: int) -> None:
    samples = open_task(name).samples(Path())
    rng = random.Random(seed)
    for place in rng.sample(range(300), 5):
        made = maker.sample(2 * place + 1)  # type: ignore[attr-defined]
        ours = [sample for sample in samples if sample.cluster == str(2 * place + 1)]
        assert [(sample.question, sample.expected) for sample in ours] == [(q, a) for q, a, _ in made.qa]
        (source,) = ours[0].images or ours[0].sounds
        opened = open_source(source)
        if name == "scenes":
            assert opened.tobytes() == made.image.tobytes()
        else:
            assert (opened[0] == made.waveform).all()
            assert opened[1] == made.rate
    assert len({sample.id for sample in samples}) == len(samples)


@pytest.mark.parametrize(("name", "maker"), [("scenes", scenes), ("soundscapes", soundscapes)])
def test_scores_are_exact_answers_by_kind(name: str, maker: object, seed: int) -> None:
    task, rng = open_task(name), random.Random(seed)
    kinds = {f"{s}-{i}": kind for s in range(1, 600, 2) for i, (_, _, kind) in enumerate(maker.questions(s))}  # type: ignore[attr-defined]
    right = {sample.id: rng.random() < 0.7 for sample in task.samples(Path())}
    ways = (str, str.upper, lambda text: f" {text}.", str.capitalize)
    predictions = {
        sample.id: rng.choice(ways)(sample.expected) if right[sample.id] else sample.expected + " or so"
        for sample in task.samples(Path())
    }
    scores = task.score(Path(), predictions)
    assert scores.metrics["exact"] == pytest.approx(100 * sum(right.values()) / len(right)), f"seed {seed}"
    for kind, value in scores.breakdown["kind of question"].items():
        asked = [id for id in right if kinds[id] == kind]
        assert value == pytest.approx(100 * sum(right[id] for id in asked) / len(asked)), f"seed {seed}, {kind}"
