import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mm_rwkv7.hf import MMRWKV7ForConditionalGeneration, MMRWKV7Processor, RecurrentCache
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline, question_about
from mm_rwkv7.sampling import Sampling

Inputs = Callable[..., dict[str, Tensor]]
QUESTIONS = (("What is in the picture?", [0, 1]), "Describe the picture.", ("a red square?", [2]))
MODES: list[dict[str, Any]] = [{"do_sample": False}, {"do_sample": False, "num_beams": 3, "num_return_sequences": 2}]


@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_is_our_own_answer(
    hf_model: MMRWKV7ForConditionalGeneration,
    hf_processor: MMRWKV7Processor,
    inputs: Inputs,
    tiny_model: MMRWKV7,
    pictures: list[Image.Image],
    question: str | tuple[str, list[int]],
) -> None:
    text, numbers = (question, []) if isinstance(question, str) else question
    messages = question_about(text, [pictures[number] for number in numbers])
    expected = Pipeline(tiny_model).chat(messages, Sampling(temperature=0)).text
    batch = inputs(question)
    written = hf_model.generate(**batch, do_sample=False)[0, batch["input_ids"].shape[1] :]
    assert hf_processor.decode(written).lstrip() == expected


@pytest.mark.parametrize("mode", MODES)
def test_a_padded_batch_with_a_cache_is_each_row_without(
    hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs, mode: dict[str, Any]
) -> None:
    batch = inputs(*QUESTIONS)
    together = hf_model.generate(**batch, **mode)[:, batch["input_ids"].shape[1] :]
    apart = []
    for question in QUESTIONS:
        alone = inputs(question)
        apart.append(hf_model.generate(**alone, **mode, use_cache=False)[:, alone["input_ids"].shape[1] :])
    assert torch.equal(together, torch.cat(apart))


def test_beams_find_the_likeliest_texts(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs) -> None:
    """Against every text of three tokens out of five, scored by the core."""
    batch = inputs(QUESTIONS[0])
    ids, few = batch["input_ids"], [10, 40, 70, 100, 130]
    texts = torch.tensor(list(itertools.product(few, repeat=3)))
    rows = torch.cat([ids.repeat(len(texts), 1), texts], 1)
    with torch.no_grad():
        logits, _ = hf_model.model(rows, pixels=batch["pixel_values"].repeat(len(texts), 1, 1, 1))
    steps = logits[:, -4:-1].log_softmax(-1).gather(2, texts[..., None])[..., 0]
    best = steps.sum(1).topk(5)
    found = hf_model.generate(
        **batch,
        num_beams=25,
        num_return_sequences=5,
        do_sample=False,
        max_new_tokens=3,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=lambda row, text: few,
        return_dict_in_generate=True,
        output_scores=True,
    )
    assert torch.equal(found.sequences[:, -3:], texts[best.indices])
    torch.testing.assert_close(found.sequences_scores, best.values, rtol=1e-5, atol=1e-4)


def test_samples_are_the_seed_s(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs) -> None:
    batch = inputs(*QUESTIONS)

    def sample(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return hf_model.generate(**batch, do_sample=True, temperature=3.0, num_return_sequences=3)

    first = sample(1)
    assert torch.equal(first, sample(1))
    assert not torch.equal(first, sample(2))
    assert len({tuple(row) for row in first[:3].tolist()}) > 1
    # Every copy of a row reads the row's own pictures.
    surest = hf_model.generate(**batch, do_sample=True, top_k=1, num_return_sequences=3)
    assert torch.equal(surest, hf_model.generate(**batch, do_sample=False).repeat_interleave(3, dim=0))


@pytest.mark.parametrize("given", ["the whole text", "what is new"])
def test_a_second_turn_goes_on_from_the_cache(
    hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs, given: str
) -> None:
    first, question = inputs(QUESTIONS[0], QUESTIONS[2]), inputs(("And this? What is it?", [3]))
    cache = RecurrentCache()
    said = hf_model.generate(**first, past_key_values=cache, do_sample=False)
    assert cache.get_seq_length() == said.shape[1] - 1  # the last token is not read yet
    asked = question["input_ids"].repeat(2, 1)
    ids = torch.cat([said, asked], 1)
    mask = torch.ones_like(ids)
    mask[:, : first["attention_mask"].shape[1]] = first["attention_mask"]
    old, new = first["pixel_values"], question["pixel_values"]
    pixels = torch.cat([old[:2], new, old[2:], new])  # row by row
    expected = hf_model.generate(ids, attention_mask=mask, pixel_values=pixels, do_sample=False)
    if given == "the whole text":
        found = hf_model.generate(ids, attention_mask=mask, pixel_values=pixels, past_key_values=cache, do_sample=False)
        assert torch.equal(found, expected)
    else:
        rest = torch.cat([said[:, -1:], asked], 1)
        found = hf_model.generate(
            rest, attention_mask=mask, pixel_values=torch.cat([new, new]), past_key_values=cache, do_sample=False
        )
        assert torch.equal(found[:, rest.shape[1] :], expected[:, ids.shape[1] :])


def test_a_streamer_gets_every_token_as_it_is_written(
    hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs
) -> None:
    class Listener:
        def __init__(self) -> None:
            self.heard: list[Tensor] = []
            self.ended = False

        def put(self, tokens: Tensor) -> None:
            self.heard.append(tokens.flatten())

        def end(self) -> None:
            self.ended = True

    batch, listener = inputs(QUESTIONS[0]), Listener()
    written = hf_model.generate(**batch, do_sample=False, streamer=listener)
    assert torch.equal(torch.cat(listener.heard), written[0])
    assert [len(tokens) for tokens in listener.heard[1:]] == [1] * 8
    assert listener.ended


def test_answers_end_where_ours_do_and_hold_no_placeholder(hf_model: MMRWKV7ForConditionalGeneration) -> None:
    config, core = hf_model.generation_config, hf_model.model.config
    tokenizer = MMRWKV7Processor.from_core(hf_model.model).tokenizer
    assert config.eos_token_id == [tokenizer.eos_token_id, *tokenizer.encode("\n\n")]
    assert set(config.suppress_tokens) == set(tokenizer.convert_tokens_to_ids(["<image>", "<audio>"]))
    assert config.max_new_tokens == core.max_new_tokens


def test_assisted_decoding_is_refused(hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="not supported with stateful models"):
        hf_model.generate(**inputs(QUESTIONS[1]), assistant_model=hf_model)


@pytest.mark.parametrize("copies", [1, 2])
def test_a_wrong_number_of_pictures_is_told(
    hf_model: MMRWKV7ForConditionalGeneration, inputs: Inputs, copies: int
) -> None:
    batch = inputs(QUESTIONS[0])
    for pixels in (batch["pixel_values"][:1], batch["pixel_values"].repeat(2, 1, 1, 1)):
        with pytest.raises(ValueError, match=rf"placeholders, .* but {len(pixels)} pictures came"):
            hf_model.generate(**{**batch, "pixel_values": pixels}, num_return_sequences=copies, do_sample=True)
