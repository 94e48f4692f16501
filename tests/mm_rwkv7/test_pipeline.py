import dataclasses
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mm_rwkv7 import pipeline as module
from mm_rwkv7.generate import prefill
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Answer, Pipeline, choose_device, choose_dtype, question_about
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State

RED = Image.new("RGB", (40, 30), "red")
NOISE = Image.effect_noise((30, 40), 90).convert("RGB")
QUESTIONS = ("What is in the picture?", "a red square", "Describe the picture.")
WARM = Sampling(temperature=1.0, seed=5)


@pytest.fixture(scope="module")
def pipe(tiny_model: MMRWKV7) -> Pipeline:
    return Pipeline(tiny_model, "tiny")


def look(image: Image.Image) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}]}]


def assert_states_close(found: State, expected: State) -> None:
    assert (found.tokens_seen, found.open_turn) == (expected.tokens_seen, expected.open_turn)
    for one, other in zip(found.layers, expected.layers, strict=True):
        for found_tensor, expected_tensor in zip(one, other, strict=True):
            assert torch.allclose(found_tensor, expected_tensor, rtol=1e-4, atol=1e-4)


def reads(pipe: Pipeline, state: State) -> Tensor:
    """The logits (V,) that follow a word read after `state`: what its content amounts to."""
    hidden, _ = prefill(pipe.model, torch.tensor([pipe.tokenizer.encode("a")]), state)
    with torch.no_grad():
        logits: Tensor = pipe.model.lm.head(hidden)[0]
    return logits


def test_an_answer_counts_what_was_read_and_written(pipe: Pipeline) -> None:
    answer = pipe.ask("a red square", [RED, NOISE])
    batch = pipe.processor(question_about("a red square", [RED, NOISE]))
    media = 2 * pipe.model.image_tokens
    assert answer.usage.media_tokens == media
    assert answer.usage.prompt_tokens == batch.ids.shape[1] - media
    assert answer.usage.completion_tokens == 8
    assert answer.finish_reason == "length"
    assert answer.text
    assert answer.text == answer.text.strip()
    turn_end = pipe.tokenizer.encode(pipe.model.config.template.turn_end)
    assert answer.state.tokens_seen == batch.ids.shape[1] + 8 + len(turn_end)
    assert not answer.state.open_turn


def test_the_picture_matters(pipe: Pipeline) -> None:
    assert not torch.allclose(
        reads(pipe, pipe.prefill(look(RED))), reads(pipe, pipe.prefill(look(NOISE))), rtol=1e-3, atol=1e-3
    )


def test_a_picture_read_before_equals_a_picture_with_the_question(pipe: Pipeline) -> None:
    state = pipe.prefill(look(NOISE))
    assert state.open_turn
    for question in QUESTIONS:
        later, at_once = pipe.ask(question, state=state), pipe.ask(question, [NOISE])
        assert later.text == at_once.text
        assert_states_close(later.state, at_once.state)
        assert torch.allclose(reads(pipe, later.state), reads(pipe, at_once.state), rtol=1e-4, atol=1e-3)


def test_an_answer_prints_without_its_state(pipe: Pipeline) -> None:
    answer = pipe.ask("How many?")
    assert repr(answer.text) in repr(answer)
    assert "tensor" not in repr(answer)


def test_a_saved_picture_is_asked_later(pipe: Pipeline, tmp_path: Path) -> None:
    state = pipe.prefill(look(NOISE))
    state.save(tmp_path / "state")
    loaded = State.load(tmp_path / "state", pipe.fingerprint)
    assert pipe.ask(QUESTIONS[0], state=loaded).text == pipe.ask(QUESTIONS[0], state=state).text


def test_a_state_of_another_model_is_not_gone_on_from(pipe: Pipeline) -> None:
    foreign = dataclasses.replace(pipe.prefill(look(NOISE)), model="0123456789abcdef")
    with pytest.raises(ValueError, match=r"is of model 0123456789ab\.\.\., this is"):
        pipe.ask(QUESTIONS[0], state=foreign)


def test_the_fingerprint_does_not_depend_on_the_precision(tiny_checkpoint: Path) -> None:
    full, half = (Pipeline.from_pretrained(tiny_checkpoint, "cpu", dtype).fingerprint for dtype in ("fp32", "bf16"))
    assert full == half


def test_questions_from_one_state_do_not_disturb_one_another(pipe: Pipeline) -> None:
    state = pipe.prefill(look(NOISE))
    copy = state.map(Tensor.clone)
    expected = {question: pipe.ask(question, sampling=WARM, state=state).text for question in QUESTIONS}
    assert len(set(expected.values())) > 1
    for order in itertools.permutations(QUESTIONS):
        assert [pipe.ask(question, sampling=WARM, state=state).text for question in order] == [
            expected[question] for question in order
        ]
    for one, other in zip(state.layers, copy.layers, strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


class Script:
    """In a sampler's place: writes these tokens."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, *ignored: Any) -> Any:
        return lambda logits: next(self.tokens)


@pytest.mark.parametrize("cut", [0, 1])
def test_going_on_from_an_answer_equals_the_whole_conversation_at_once(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """With `cut` the answer reaches its bound before it ends its turn, which is then ended for it."""
    tokens = pipe.tokenizer.encode(" a red square\n\n")
    bound = len(tokens) - cut
    monkeypatch.setattr(module, "Sampler", Script(tokens))
    first = pipe.ask(QUESTIONS[0], [RED], sampling=Sampling(max_new_tokens=bound))
    assert (first.text, first.finish_reason) == ("a red square", "length" if cut else "stop")
    monkeypatch.undo()
    second = pipe.ask(QUESTIONS[1], [NOISE], state=first.state)
    conversation = [
        *question_about(QUESTIONS[0], [RED]),
        {"role": "assistant", "content": "a red square"},
        *question_about(QUESTIONS[1], [NOISE]),
    ]
    at_once = pipe.chat(conversation)
    assert second.text == at_once.text
    assert_states_close(second.state, at_once.state)


def test_greedy_and_seeded_answers_repeat(pipe: Pipeline) -> None:
    for sampling in (Sampling(), WARM):
        assert (
            pipe.ask(QUESTIONS[0], [RED], sampling=sampling).text
            == pipe.ask(QUESTIONS[0], [RED], sampling=sampling).text
        )
    drawn = {pipe.ask(QUESTIONS[0], [RED], sampling=Sampling(temperature=2.0, seed=seed)).text for seed in range(4)}
    assert len(drawn) > 1


def test_a_stream_s_pieces_join_to_its_answer(pipe: Pipeline) -> None:
    stream = pipe.stream(question_about(QUESTIONS[0], [RED]), WARM)
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == stream.answer.text == pipe.ask(QUESTIONS[0], [RED], sampling=WARM).text


def test_a_cancelled_stream_has_an_answer(pipe: Pipeline) -> None:
    question = question_about(QUESTIONS[0], [RED])
    stream = pipe.stream(question, WARM)
    begun = next(iter(stream))
    stream.close()
    answer = stream.answer
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason) == (begun, "cancelled")
    assert 1 <= answer.usage.completion_tokens < 8
    assert pipe.ask(QUESTIONS[1], state=answer.state).text


def test_a_stream_cancelled_before_it_began_is_an_answer_without_text(pipe: Pipeline) -> None:
    stream = pipe.stream(question_about(QUESTIONS[0]), WARM)
    stream.close()
    assert (stream.answer.text, stream.answer.finish_reason) == ("", "cancelled")


def test_two_streams_do_not_disturb_one_another(pipe: Pipeline) -> None:
    def stream(question: str) -> Iterator[str]:
        return iter(pipe.stream(question_about(question, [RED]), WARM))

    alone = [list(stream(question)) for question in QUESTIONS[:2]]
    together: list[list[str]] = [[], []]
    for pair in itertools.zip_longest(*map(stream, QUESTIONS[:2])):
        for pieces, piece in zip(together, pair, strict=True):
            pieces += [piece] if piece is not None else []
    assert together == alone


def test_a_text_is_continued_as_it_stands(pipe: Pipeline) -> None:
    answer = pipe.generate("a red")
    assert answer.usage.prompt_tokens == len(pipe.tokenizer.encode("a red"))
    assert answer.state.tokens_seen == answer.usage.prompt_tokens + 8
    on = pipe.generate("a red", Sampling(max_new_tokens=3))
    assert answer.text.startswith(on.text)


def test_a_caption_is_a_text(pipe: Pipeline) -> None:
    assert pipe.caption(RED) == pipe.ask(pipe.model.config.template.caption, [RED]).text


def test_texts_and_messages_have_vectors(pipe: Pipeline) -> None:
    vector = pipe.embed("a red square")
    assert (vector.shape, vector.dtype) == ((pipe.model.config.lm.width,), torch.float32)
    assert not torch.equal(vector, pipe.embed("a red squarf"))
    assert pipe.embed(question_about("a", [RED])).shape == vector.shape


def test_bad_input_raises_before_any_work(pipe: Pipeline) -> None:
    for call in (
        lambda: pipe.stream([]),
        lambda: pipe.stream(question_about("  ")),
        lambda: pipe.stream(question_about("a", ["/nowhere.png"])),
        lambda: pipe.stream(question_about("a", audio=[b""])),
        lambda: pipe.generate(""),
        lambda: pipe.embed(""),
        lambda: pipe.tag(b""),
    ):
        with pytest.raises(ValueError, match=r"\w+ \w+"):
            call()


def test_a_pipeline_opens_a_checkpoint(tiny_checkpoint: Path, pipe: Pipeline) -> None:
    opened = Pipeline.from_pretrained(tiny_checkpoint, device="cpu", dtype="fp32")
    assert opened.fingerprint == pipe.fingerprint
    assert opened.ask(QUESTIONS[0], [RED]).text == pipe.ask(QUESTIONS[0], [RED]).text


def test_devices_and_precisions() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_dtype("auto", torch.device("cpu")) == torch.float32
    with pytest.raises(ValueError, match="'fp7'"):
        choose_dtype("fp7", torch.device("cpu"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            choose_device("cuda")


def test_a_state_travels_without_its_model(pipe: Pipeline) -> None:
    state = pipe.prefill(look(NOISE))
    size = sum(tensor.nbytes for layer in state.layers for tensor in layer)
    copy = pickle.dumps(state)
    assert len(copy) < 2 * size + 10_000
    assert pickle.loads(copy).model == pipe.fingerprint


def test_padding_for_comparison_needs_the_whole_vocabulary(tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="whole World vocabulary"):
        Pipeline.from_pretrained(tiny_checkpoint, "cpu", "fp32", pad_compat=True)


def test_one_path_is_no_list_of_pictures(pipe: Pipeline) -> None:
    with pytest.raises(ValueError, match="expected a list of pictures"):
        pipe.ask("What is this?", "photo.jpg")
