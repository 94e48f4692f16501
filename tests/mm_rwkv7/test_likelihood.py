"""The likelihood of texts: equal to the plain forward pass, whatever is read beside them and in whichever pieces."""

import random

import pytest
import torch
from torch import Tensor

from mm_rwkv7 import likelihood as module
from mm_rwkv7.int8 import quantise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.conftest import make_model
from tests.ears import RATE, noise

PROMPT = "What is in the picture?"


@pytest.fixture(scope="module")
def pipe(listening_model: MMRWKV7) -> Pipeline:
    return Pipeline(listening_model, "listening")


def plain(model: MMRWKV7, prompt: list[int], continuation: list[int]) -> tuple[list[float], list[bool]]:
    """By one forward pass over everything, in the logits that the model itself gives."""
    with torch.no_grad():
        logits, _ = model.lm(torch.tensor([[*prompt, *continuation]]))
    rows: Tensor = logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    log_probs = [float(rows[i, token]) for i, token in enumerate(continuation)]
    return log_probs, [int(row.argmax()) == token for row, token in zip(rows, continuation, strict=True)]


def draw(pipe: Pipeline, rng: random.Random, length: int) -> list[int]:
    readable = [token for token in range(pipe.tokenizer.size) if token not in pipe.tokenizer.unwritable]
    return rng.choices(readable, k=length)


def test_equals_one_forward_pass(pipe: Pipeline, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with more continuations than are read side by side, and longer ones than are read at once."""
    monkeypatch.setattr(module, "ROWS", 3)
    monkeypatch.setattr(module, "PIECE", 12)
    rng = random.Random(seed)
    prompt = draw(pipe, rng, 5)
    continuations = [draw(pipe, rng, length) for length in (1, 30, 2, 7, 1, 13, 4)]
    found = pipe.token_likelihood(prompt, continuations)
    for one, continuation in zip(found, continuations, strict=True):
        log_probs, likeliest = plain(pipe.model, prompt, continuation)
        assert list(one.tokens) == continuation
        assert one.log_probs == pytest.approx(log_probs, rel=1e-4, abs=1e-4), seed
        assert list(one.likeliest) == likeliest, seed
        assert one.total == pytest.approx(sum(log_probs), rel=1e-4), seed
        assert one.mean * len(continuation) == pytest.approx(one.total)


def test_probabilities_of_all_tokens_add_up_to_one(pipe: Pipeline, seed: int) -> None:
    prompt = draw(pipe, random.Random(seed), 4)
    every = pipe.token_likelihood(prompt, [[token] for token in range(pipe.tokenizer.size)])
    assert sum(torch.tensor([one.total for one in every]).double().exp().tolist()) == pytest.approx(1, abs=1e-5), seed
    assert sum(one.greedy for one in every) == 1


def test_what_is_written_greedily_is_likeliest(pipe: Pipeline) -> None:
    ids = pipe.tokenizer.encode("Describe")
    written = pipe.tokenizer.encode(pipe.generate("Describe", Sampling(max_new_tokens=6)).text)
    other = [*written[:-1], (written[-1] + 1) % pipe.tokenizer.size]
    found = pipe.token_likelihood(ids, [written, other])
    assert [one.greedy for one in found] == [True, False]
    assert found[0].total > found[1].total


def test_a_state_is_gone_on_from(pipe: Pipeline, seed: int) -> None:
    rng = random.Random(seed)
    prompt, rest, continuation = draw(pipe, rng, 6), draw(pipe, rng, 3), draw(pipe, rng, 4)
    state = pipe.model.lm(torch.tensor([prompt]))[1]
    before = [layer.wkv.clone() for layer in state.layers]
    (found,) = pipe.token_likelihood(rest, [continuation], state)
    (whole,) = pipe.token_likelihood([*prompt, *rest], [continuation])
    assert found.log_probs == pytest.approx(whole.log_probs, rel=1e-4, abs=1e-4), seed
    assert all(torch.equal(old, layer.wkv) for old, layer in zip(before, state.layers, strict=True))


def test_answers_come_after_the_template_and_end_their_turn(pipe: Pipeline) -> None:
    messages = [{"role": "user", "content": PROMPT}]
    answers = ["a red square", "blue"]
    found = pipe.likelihood(messages, answers)
    template = pipe.model.config.template
    ids = pipe.processor(messages).ids[0].tolist()
    for one, answer in zip(found, answers, strict=True):
        continuation = pipe.tokenizer.encode(f" {answer}\n\n")
        assert list(one.tokens) == continuation
        assert template.turn_end == "\n\n"
        assert one.log_probs == pytest.approx(plain(pipe.model, ids, continuation)[0], rel=1e-4, abs=1e-4)


def test_a_sound_read_before_equals_a_sound_with_the_question(pipe: Pipeline) -> None:
    sound = {"type": "audio", "audio": (noise(2.0, 1), RATE)}
    words = {"type": "text", "text": PROMPT}
    heard = pipe.prefill([{"role": "user", "content": [sound]}])
    later = pipe.likelihood([{"role": "user", "content": PROMPT}], ["a", "picture"], heard)
    at_once = pipe.likelihood([{"role": "user", "content": [sound, words]}], ["a", "picture"])
    silent = pipe.likelihood([{"role": "user", "content": PROMPT}], ["a", "picture"])
    for one, other, without in zip(later, at_once, silent, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, rel=1e-4)
        assert one.log_probs[0] != pytest.approx(without.log_probs[0], rel=1e-4)


def test_half_precision_keeps_the_digits_of_its_logits(seed: int) -> None:
    """Logits in bf16 would come in steps of a hundredth and more: many of the log-probabilities would be equal."""
    model = make_model(8).to(torch.bfloat16)
    pipe = Pipeline(model, "half")
    prompt = draw(pipe, random.Random(seed), 4)
    totals = [one.total for one in pipe.token_likelihood(prompt, [[token] for token in range(pipe.tokenizer.size)])]
    with torch.no_grad():
        hidden = model.lm.hidden(model.lm.embed(torch.tensor([prompt])))[0][0, -1]
        logits = model.lm.head.weight.double() @ hidden.double()
    assert totals == pytest.approx(logits.log_softmax(0).tolist(), abs=1e-2), seed
    assert len(set(totals)) > 0.9 * len(totals), seed


def test_rounded_weights_are_read_too(seed: int) -> None:
    model = make_model(8)
    quantise(model.lm)
    pipe = Pipeline(model, "int8")
    rng = random.Random(seed)
    prompt, continuation = draw(pipe, rng, 4), draw(pipe, rng, 6)
    (found,) = pipe.token_likelihood(prompt, [continuation])
    assert found.log_probs == pytest.approx(plain(model, prompt, continuation)[0], rel=1e-4, abs=1e-4), seed


def test_what_has_no_likelihood_is_refused(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="a continuation is empty"):
        pipe.token_likelihood([1], [[2], []])
    with pytest.raises(ValueError, match="the prompt is empty"):
        pipe.token_likelihood([], [[2]])
    with pytest.raises(ValueError, match="an answer is empty"):
        pipe.likelihood([{"role": "user", "content": PROMPT}], ["a", ""])
    assert pipe.token_likelihood([1], []) == []
