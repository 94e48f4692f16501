"""Completions and embeddings over HTTP: continued, scored, and as lm-eval asks for them."""

from typing import Any

import httpx
import openai
import pytest
import torch

from app.engine import Engine, EngineConfig
from app.reading import PIECE
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.app.servers import client_of, error_of, post, served

TEXT = "User: What is in the picture?\n\nAssistant: a red square"


def reference(pipeline: Pipeline, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T, V) of what may follow each of `ids`, from the model in one piece."""
    with torch.no_grad():
        logits, _ = pipeline.model.lm(torch.tensor([ids]))
    logits[..., list(pipeline.tokenizer.unwritable)] = -torch.inf
    return logits[0].log_softmax(-1)


def test_texts_are_continued_as_by_the_pipeline(client: openai.OpenAI, pipeline: Pipeline) -> None:
    ids = pipeline.tokenizer.encode(TEXT)
    prompts: list[Any] = [TEXT, [TEXT, "a red"], ids, [ids, ids[:3]]]
    for prompt in prompts:
        found = client.completions.create(model="tiny", prompt=prompt, max_tokens=5, n=2)
        texts = [TEXT, "a red" if isinstance(prompt[-1], str) else pipeline.tokenizer.decode(ids[:3])]
        expected = [pipeline.generate(text, Sampling(5)).text for text in texts[: len(found.choices) // 2]]
        assert [choice.text for choice in found.choices] == [text for text in expected for _ in range(2)]
        assert [choice.index for choice in found.choices] == list(range(len(found.choices)))
    stream = client.completions.create(model="tiny", prompt=TEXT, max_tokens=5, stream=True, logprobs=1)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == pipeline.generate(TEXT, Sampling(5)).text
    assert chunks[-1].choices[0].finish_reason == "length"
    assert sum(len(chunk.choices[0].logprobs.tokens or []) for chunk in chunks if chunk.choices[0].logprobs) == 5


def test_more_prompts_than_the_engine_takes_are_answered_in_turn(pipeline: Pipeline) -> None:
    prompts = [f"{'a red ' * (i % 3)}square{i}" for i in range(12)]
    expected = [pipeline.generate(prompt, Sampling(3)).text for prompt in prompts]
    with Engine(pipeline, EngineConfig(slots=2, max_waiting=1)) as engine, served(engine) as url:
        for n in (1, 2):
            found = client_of(url).completions.create(model="tiny", prompt=prompts, max_tokens=3, n=n)
            assert [choice.text for choice in found.choices] == [text for text in expected for _ in range(n)]


def test_an_echo_tells_how_likely_the_prompt_is(client: openai.OpenAI, pipeline: Pipeline, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    usable = [i for i in range(pipeline.tokenizer.size) if i not in pipeline.tokenizer.unwritable]
    picked = torch.randint(len(usable), (2 * PIECE + 3,), generator=generator).tolist()
    ids = [usable[i] for i in picked]  # longer than a piece, and no text
    found = client.completions.create(model="tiny", prompt=[ids], max_tokens=1, echo=True, logprobs=2, temperature=0)
    told = found.choices[0].logprobs
    assert told is not None
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    expected = reference(pipeline, ids)
    likeliest = expected.max(-1)
    assert told.token_logprobs[0] is None
    assert len(told.token_logprobs) == len(ids) + 1
    following = [*ids[1:], int(likeliest.indices[-1])]
    found_scores = torch.tensor(told.token_logprobs[1:])
    torch.testing.assert_close(found_scores, expected[range(len(ids)), following], rtol=1e-4, atol=1e-4)
    for token, top, best in zip(told.token_logprobs[1:], told.top_logprobs[1:], likeliest.values, strict=True):
        assert next(iter(top.values())) == max(top.values()) == pytest.approx(float(best), abs=1e-4), f"seed {seed}"
        assert token in top.values(), f"seed {seed}"  # so that a reader can tell whether it was the likeliest


def test_lm_eval_finds_a_continuation_written_greedily_to_be_greedy(url: str, pipeline: Pipeline) -> None:
    """lm-eval's local-completions sends this, and reads it so (lm_eval/models/openai_completions.py)."""
    context = pipeline.tokenizer.encode(TEXT)
    written = pipeline.tokenizer.encode(pipeline.generate(TEXT, Sampling(4)).text)
    for continuation, greedy in ((written, True), (context[:4], False)):
        body = {
            "model": "tiny",
            "prompt": [context + continuation],
            "max_tokens": 1,
            "logprobs": 1,
            "temperature": 0,
            "echo": True,
            "seed": 1234,
        }
        told = post(url, "completions", body).json()["choices"][0]["logprobs"]
        scores = told["token_logprobs"][len(context) : -1]
        tops = told["top_logprobs"][len(context) : -1]
        assert all(score == max(top.values()) for score, top in zip(scores, tops, strict=True)) is greedy
        both = reference(pipeline, context + continuation)
        expected = sum(float(both[len(context) - 1 + i, token]) for i, token in enumerate(continuation))
        assert sum(scores) == pytest.approx(expected, rel=1e-4)


def test_a_prompt_can_be_scored_alone(url: str) -> None:
    body = {"model": "tiny", "prompt": "a red", "max_tokens": 0, "echo": True, "logprobs": 0}
    found = post(url, "completions", body).json()
    assert found["choices"][0]["text"] == "a red"
    assert len(found["choices"][0]["logprobs"]["tokens"]) == found["usage"]["prompt_tokens"]
    one = post(url, "completions", {**body, "prompt": "a"}).json()["choices"][0]["logprobs"]
    assert (one["tokens"], one["token_logprobs"]) == (["a"], [None])
    assert error_of(post(url, "completions", {**body, "echo": False}))["param"] == "max_tokens"


def test_embeddings_are_those_of_the_pipeline(client: openai.OpenAI, url: str, pipeline: Pipeline) -> None:
    long = "a red square " * PIECE
    texts = ["a red square", "Describe", long]
    found = client.embeddings.create(model="tiny", input=texts)  # in base64, as the client likes it
    for item, text in zip(found.data, texts, strict=True):
        torch.testing.assert_close(torch.tensor(item.embedding), pipeline.embed(text), rtol=1e-4, atol=1e-4)
    assert found.usage.prompt_tokens == sum(len(pipeline.tokenizer.encode(text)) for text in texts)
    one = post(url, "embeddings", {"model": "tiny", "input": pipeline.tokenizer.encode(texts[0])}).json()
    assert one["data"][0]["embedding"] == pytest.approx(found.data[0].embedding)
    assert error_of(post(url, "embeddings", {"model": "tiny", "input": "a", "dimensions": 3}))["param"] == "dimensions"
    for nothing, told in (("", "the text is empty"), (["a", ""], "the text is empty"), ([], "input holds 0 texts")):
        empty = post(url, "embeddings", {"model": "tiny", "input": nothing})
        assert (empty.status_code, error_of(empty)["param"]) == (400, "input")
        assert told in error_of(empty)["message"]
    untyped = httpx.post(f"{url}/v1/embeddings", content=b'{"model": "tiny", "input": "a"}')
    assert untyped.status_code == 400
    assert "expected a JSON object and Content-Type: application/json" in error_of(untyped)["message"]


def test_no_more_log_probabilities_than_there_is_memory_for(pipeline: Pipeline) -> None:
    body = {"model": "tiny", "prompt": [[1] * 10, [1] * 10], "echo": True, "max_tokens": 0}
    with Engine(pipeline, EngineConfig(slots=1)) as engine, served(engine, scores=40) as url:
        assert post(url, "completions", {**body, "logprobs": 1}).status_code == 200
        refused = error_of(post(url, "completions", {**body, "logprobs": 2}))
    assert (refused["param"], "60 log-probabilities, expected at most 40" in refused["message"]) == ("prompt", True)
