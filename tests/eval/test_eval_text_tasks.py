"""LAMBADA, perplexity, needle and recall: what is read, and what the numbers of a model amount to."""

import json
import math
import random
import re
from pathlib import Path

import pytest
import torch

from eval.haystack import fill
from eval.task import Sample
from eval.tasks import perplexity as perplexity_module
from eval.tasks.lambada import Lambada, Standard
from eval.tasks.needle import DEPTHS, LENGTHS, REPEATS, Needle
from eval.tasks.needle import sample as hide
from eval.tasks.perplexity import Perplexity, Strided
from eval.tasks.recall import Recall
from eval.tasks.recall import text as pairs_text
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.tokenizer import Tokenizer
from tests.eval.clips import write

HERE = Path()


@pytest.fixture(scope="module")
def pipe(tiny_model: MMRWKV7) -> Pipeline:
    return Pipeline(tiny_model, "tiny")


def log_probs(pipe: Pipeline, ids: list[int]) -> list[float]:
    """Of every token but the first, by one forward pass."""
    with torch.no_grad():
        logits, _ = pipe.model.lm(torch.tensor([ids]))
    rows = logits[0, :-1].double().log_softmax(-1)
    return [float(rows[place, token]) for place, token in enumerate(ids[1:])]


@pytest.fixture(scope="module")
def lambada(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lambada")
    passages = [f"“The square is here,” said number {number}, and drew a red square" for number in range(20)]
    write(folder / "lambada_test.jsonl", "".join(json.dumps({"text": passage}) + "\n" for passage in passages))
    plain = [f"the square is here , said number {number} , and drew a square" for number in range(20)]
    write(folder / "lambada_test_plain_text.txt", "\n".join(plain) + "\n")
    return folder


def test_lambada_is_the_likelihood_of_the_last_word(lambada: Path, pipe: Pipeline) -> None:
    for task in (Lambada(), Standard()):
        samples = task.samples(lambada)
        assert len(samples) == 20
        assert (samples[3].expected, samples[3].choices) == ("square", (" square",))
        for sample, (total, greedy) in zip(samples[:3], task.predict(pipe, samples[:3]), strict=True):
            word = pipe.tokenizer.encode(" square")
            expected = log_probs(pipe, [pipe.tokenizer.end_id, *pipe.tokenizer.encode(sample.question), *word])
            assert total == pytest.approx(sum(expected[-len(word) :]), rel=1e-4)
            assert greedy in (0, 1)


def test_lambada_by_hand(lambada: Path) -> None:
    scores = Lambada().score(lambada, {"0": [math.log(0.5), 1.0], "7": [math.log(0.125), 0.0]})
    assert scores.metrics == pytest.approx({"accuracy": 50.0, "perplexity": 4.0})
    assert scores.per_sample == {"0": 100.0, "7": 0.0}
    assert scores.corpus["perplexity"](["7", "7", "0"]) == pytest.approx(2 ** (7 / 3))
    hopeless = Lambada().score(lambada, {"0": [-1000.0, 0.0]})
    assert hopeless.metrics == {"accuracy": 0.0}
    assert hopeless.notes == ("perplexity is left out: it is not finite.",)
    with pytest.raises(ValueError, match=r"the prediction of '0' is \[1.0\], expected a logarithm and 0 or 1"):
        Lambada().score(lambada, {"0": [1.0]})


def test_lambada_refuses_what_is_no_passage(tmp_path: Path) -> None:
    for text, expected in (
        ('{"text": "one two"}\n{"text": "word"}\n', "line 2.text: expected a passage of several words, got 'word'"),
        ('{"text": "one two"}\n{"text": 5}\n', "line 2.text: expected a text, got 5"),
        ('{"text": "one two"}\n{text}\n', "line 2 is not JSON"),
        ("<!DOCTYPE html>", "is a web page"),
    ):
        write(tmp_path / "lambada_test.jsonl", text)
        with pytest.raises(ValueError, match=expected):
            Lambada().samples(tmp_path)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity")
    write(folder / "a.txt", "Describe the picture: a red square, one triangle. " * 2)
    write(folder / "b.txt", "Ein Text mit Umlauten: äöü.\n")
    return folder


def test_perplexity_by_one_forward_pass(texts: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity_module, "FIRST", 8)
    samples = Perplexity().samples(texts)
    predictions = {s.id: row for s, row in zip(samples, Perplexity().predict(pipe, samples), strict=True)}
    expected = {s.id: log_probs(pipe, [0, *pipe.tokenizer.encode(s.question)]) for s in samples}
    ids = expected["a.txt"]
    assert predictions["a.txt"][:6] == pytest.approx(
        [8, sum(ids[:8]), 8, sum(ids[8:16]), 16, sum(ids[16:32])], rel=1e-4
    )
    assert sum(predictions["a.txt"][::2]) == len(ids)
    scores = Perplexity().score(texts, predictions)
    total = sum(map(sum, expected.values()))
    tokens, size = sum(map(len, expected.values())), sum((texts / name).stat().st_size for name in expected)
    metrics = scores.metrics
    assert metrics["bits per byte"] == pytest.approx(-total / math.log(2) / size, rel=1e-4)
    assert math.log(metrics["perplexity per byte"]) == pytest.approx(-total / size, rel=1e-4)
    assert math.log(metrics["perplexity per token"]) == pytest.approx(-total / tokens, rel=1e-4)
    assert (metrics["tokens"], metrics["bytes"]) == (tokens, size)
    table = scores.breakdown["bits per token by place in the text"]
    both = [*ids[:8], *expected["b.txt"][:8]]
    assert table["up to 8"] == pytest.approx(-sum(both) / 16 / math.log(2), rel=1e-4)
    assert list(table)[:3] == ["up to 8", "up to 16", "up to 32"]


def test_strided_windows_score_every_token_once(texts: Path, pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perplexity_module, "WINDOW", 10)
    monkeypatch.setattr(perplexity_module, "STRIDE", 4)
    ids = pipe.tokenizer.encode((texts / "a.txt").read_text("utf-8"))
    found = Strided().log_probs(pipe, ids)
    assert len(found) == len(ids)
    expected = log_probs(pipe, [0, *ids[:10]])  # the first window, then those of tokens 4 ... 13, 8 ... 17, ...
    for start in range(4, len(ids) - 6, 4):
        expected += log_probs(pipe, ids[start : start + 10])[5:]
    assert found == pytest.approx(expected[: len(ids)], rel=1e-4, abs=1e-4)


def test_perplexity_refuses_what_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no \*.txt"):
        Perplexity().samples(tmp_path)
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt is not a text in UTF-8"):
        Perplexity().samples(tmp_path)
    write(tmp_path / "a.txt", "\n")
    with pytest.raises(ValueError, match=r"a.txt is empty"):
        Perplexity().samples(tmp_path)
    write(tmp_path / "a.txt", "text")
    with pytest.raises(ValueError, match=r"the prediction of 'a.txt' has 3 numbers, expected pairs"):
        Perplexity().score(tmp_path, {"a.txt": [1.0, -2.0, 1.0]})


def test_haystacks_have_their_length(seed: int) -> None:
    encode = Tokenizer().encode
    for tokens, between in ((100, " "), (1000, " "), (1000, "\n")):
        text = between.join(fill(random.Random(seed), tokens, between))
        assert 0.9 * tokens - 20 < len(encode(text)) <= tokens, seed


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_needle_lies_at_its_depth(depth: int) -> None:
    sample = hide(1024, depth, 1)
    assert sample == hide(1024, depth, 1)
    assert sample.question != hide(1024, depth, 2).question
    fact = re.search(r"The secret number of (\w+) is (\d{5})\.", sample.question)
    assert fact is not None
    assert fact[2] == sample.expected
    haystack, _, question = sample.question.rpartition("\n")
    assert question == f"What is the secret number of {fact[1]}? Answer with the number."
    assert abs(haystack.index(fact[0]) / (len(haystack) - len(fact[0])) - depth / 100) < 0.02
    assert 950 < len(Tokenizer().encode(sample.question)) <= 1024


def test_needles_by_length_and_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eval.tasks.needle.LENGTHS", LENGTHS[:2])
    samples = Needle().samples(HERE)
    assert len(samples) == 2 * len(DEPTHS) * REPEATS
    right = {s.id: s.id.startswith("512-") or s.id.startswith("1024-25-") for s in samples}
    said = {s.id: f"It is {s.expected}." if right[s.id] else f"{s.expected}0" for s in samples}
    scores = Needle().score(HERE, said)
    assert scores.metrics["accuracy"] == pytest.approx(60)
    assert scores.breakdown["tokens"] == {"512": 100.0, "1,024": 20.0}
    assert scores.breakdown["depth"] == {"0 %": 50.0, "25 %": 100.0, "50 %": 50.0, "75 %": 50.0, "100 %": 50.0}
    assert scores.breakdown["tokens and depth"]["1,024 at 25 %"] == 100


def test_every_key_of_a_recall_has_its_value() -> None:
    for pairs in (4, 16):
        samples = list(pairs_text(1024, pairs, 0))
        assert samples == list(pairs_text(1024, pairs, 0))
        assert len(samples) == 4
        for sample in samples:
            context, _, query = sample.question.rpartition("\n")
            found = dict(re.findall(r"^(\w+) = (\d\d)$", context, re.MULTILINE))
            assert len(found) == len(set(found.values())) == pairs
            assert sample.choices == tuple(f" {value}" for value in found.values())
            assert found[query.removesuffix(" =")] == sample.expected
            assert len(Tokenizer().encode(context)) <= 1024


def one_cell(samples: list[Sample]) -> list[Sample]:
    """All questions of two texts of four pairs."""
    return [sample for sample in samples if sample.id.startswith(("256-4-0", "256-4-1"))]


def test_recall_from_the_state_to_tables(pipe: Pipeline) -> None:
    task = Recall()
    samples = one_cell(list(task.samples(HERE)))
    assert len(samples) == 8
    predictions = {s.id: row for s, row in zip(samples, task.predict(pipe, samples), strict=True)}
    encode = pipe.tokenizer.encode
    for sample in samples[::3]:
        context, _, query = sample.question.rpartition("\n")
        prompt = [0, *encode(context + "\n"), *encode(query)]
        expected = [sum(log_probs(pipe, [*prompt, *encode(c)])[len(prompt) - 1 :]) for c in sample.choices]
        assert predictions[sample.id] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    scores = task.score(HERE, predictions)
    right = [s.choices[predictions[s.id].index(max(predictions[s.id]))] == f" {s.expected}" for s in samples]
    assert scores.metrics == pytest.approx({"accuracy": 100 * sum(right) / 8, "blind": 25.0})
    assert scores.breakdown["pairs"] == {"4": scores.metrics["accuracy"]}
    knowing = {s.id: [float(choice == f" {s.expected}") for choice in s.choices] for s in task.samples(HERE)}
    scores = task.score(HERE, knowing)
    assert set(scores.breakdown["tokens and pairs"].values()) == {100.0}
    assert {"256 with 4 pairs", "4,096 with 64 pairs"} <= set(scores.breakdown["tokens and pairs"])
    with pytest.raises(ValueError, match="has 1 numbers, expected 4"):
        task.score(HERE, {samples[0].id: [1.0]})
