import base64
import dataclasses
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from encoders.concat import ConcatTowerConfig
from encoders.protocol import join
from encoders.tiling import Tiling
from mm_rwkv7.config import MMConfig, PromptTemplate
from mm_rwkv7.hf import MMRWKV7ForConditionalGeneration, MMRWKV7Processor, MMRWKV7Tokenizer, export
from mm_rwkv7.hf.chat_template import chat_template
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.processor import Processor
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import WORLD_SIZE, Tokenizer

RED = Image.new("RGB", (20, 10), "red")
BLUE = Image.new("RGB", (10, 30), "blue")
MARKS = ("<|endoftext|>", "<image>", "<audio>")

texts = st.text(st.sampled_from("ab :.<|>\n\r\t\x0b\x85\u2028äあ🙂")) | st.text()
parts = st.one_of(
    texts.map(lambda words: {"type": "text", "text": words}),
    st.sampled_from([RED, BLUE]).map(lambda picture: {"type": "image", "image": picture}),
)
messages = st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["system", "user", "user", "assistant"]),
    st.one_of(texts, st.lists(parts, max_size=4)),
)


@pytest.fixture(scope="module")
def native(tiny_model: MMRWKV7) -> Processor:
    tokenizer = Tokenizer(tiny_model.config.vocabulary)
    return Processor(tiny_model.config, tokenizer, tiny_model.tower.preprocess, tiny_model.image_tokens)


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(st.lists(messages, min_size=1, max_size=4), st.booleans())
@example([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}], False)
@example([{"role": "user", "content": [{"type": "image", "image": RED}]}], False)
def test_ids_and_pixels_are_our_own_processor_s(
    hf_processor: MMRWKV7Processor, native: Processor, conversation: list[dict[str, Any]], generate: bool
) -> None:
    def render() -> Any:
        copied = [dict(message) for message in conversation]
        return hf_processor.apply_chat_template(
            copied, add_generation_prompt=generate, tokenize=True, return_dict=True, return_tensors="pt"
        )

    try:
        expected = native(conversation, generate)
    except ValueError:
        with pytest.raises(jinja2.TemplateError):
            render()
        return
    found = render()
    assert torch.equal(found["input_ids"], expected.ids)
    assert found["attention_mask"].all()
    if expected.pixels is None:
        assert "pixel_values" not in found
        ids = hf_processor.tokenizer.apply_chat_template(
            conversation, add_generation_prompt=generate, return_dict=False
        )
        assert ids == expected.ids[0].tolist()
    else:
        assert found["pixel_values"].dtype == torch.uint8
        assert torch.equal(found["pixel_values"], expected.pixels)


@pytest.mark.parametrize("mark", MARKS)
def test_a_text_cannot_pass_for_a_placeholder(hf_processor: MMRWKV7Processor, mark: str) -> None:
    with pytest.raises(jinja2.TemplateError, match="stands for something else"):
        hf_processor.apply_chat_template([{"role": "user", "content": f"a{mark}b"}])


@pytest.mark.parametrize("part", [{"type": "text"}, {"type": "text", "text": 5}, {"text": "a"}, {"image": RED}, "ab"])
def test_a_part_that_is_malformed_is_named(hf_processor: MMRWKV7Processor, part: Any) -> None:
    with pytest.raises(jinja2.TemplateError, match=r"a message has a (text that is no string|part without a type)"):
        hf_processor.apply_chat_template([{"role": "user", "content": [part]}])


def test_the_template_is_the_config_s() -> None:
    tokenizer = MMRWKV7Tokenizer()
    template = PromptTemplate("S\x16", "\x16U:", "\x16A:", "\x17\n", "<\"{image}'>")
    tokenizer.chat_template = chat_template(template, tokenizer)
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
        {"role": "assistant", "content": "a"},
    ]
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert text == "S\x16s\x17\n\x16U:<\"<image>'>q\x17\n\x16A: a\x17\n"


@pytest.mark.parametrize(
    "template",
    [
        PromptTemplate(turn_end=""),
        PromptTemplate(assistant="Assistant", turn_end="s\n"),
        PromptTemplate(turn_end=" ", user="the "),
    ],
)
def test_a_template_that_a_token_could_lie_across_is_refused(template: PromptTemplate) -> None:
    with pytest.raises(ValueError, match="a token may lie across, no jinja can cut it"):
        chat_template(template, MMRWKV7Tokenizer())


def test_a_batch_of_conversations_is_padded_on_the_left(prompts: Callable[..., Any], native: Processor) -> None:
    conversations = [
        [{"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "What?"}]}],
        [{"role": "user", "content": "Describe the picture."}],
        [{"role": "user", "content": [{"type": "image", "image": BLUE}, {"type": "text", "text": "a red square?"}]}],
    ]
    rows = [native(conversation) for conversation in conversations]
    batch = prompts(conversations)
    for ids, mask, row in zip(batch["input_ids"], batch["attention_mask"], rows, strict=True):
        length = row.ids.shape[1]
        assert torch.equal(ids[-length:], row.ids[0])
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * length
    assert torch.equal(batch["pixel_values"], torch.cat([rows[0].pixels, rows[2].pixels]))


def test_pictures_come_as_paths_and_data_addresses(
    hf_processor: MMRWKV7Processor, native: Processor, tmp_path: Any
) -> None:
    path = tmp_path / "red.png"
    RED.save(path)
    buffer = io.BytesIO()
    BLUE.save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    found = hf_processor(images=[[str(path)], [address]], text=["a<image>", "<image>b"], padding=True)["pixel_values"]
    assert torch.equal(found, join([native.pixels(RED), native.pixels(BLUE)]))


def test_transparency_is_white_from_an_address_too(hf_processor: MMRWKV7Processor, native: Processor) -> None:
    clear, buffer = Image.new("RGBA", (10, 10), (0, 0, 0, 0)), io.BytesIO()
    clear.save(buffer, "PNG")
    address = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    found = hf_processor(images=address, text="<image>")["pixel_values"]
    assert torch.equal(found, native.pixels(clear))


@pytest.mark.parametrize("address", ["data:image/png;base64,a", "data:nothing"])
def test_an_address_without_a_picture_is_one_error(hf_processor: MMRWKV7Processor, address: str) -> None:
    with pytest.raises(ValueError, match="holds no picture"):
        hf_processor(images=address, text="<image>")


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/a.png", "https://example.com/a.png", "file:///etc/passwd"])
def test_nothing_is_fetched_from_elsewhere(hf_processor: MMRWKV7Processor, native: Processor, address: str) -> None:
    question = {"role": "user", "content": [{"type": "image", "image": address}, {"type": "text", "text": "What?"}]}
    for ask in (native, partial(hf_processor.apply_chat_template, tokenize=True, return_dict=True)):
        with pytest.raises(ValueError, match="is an address, expected a path, bytes or a PIL image") as raised:
            ask([question])
        assert address in str(raised.value)
        assert "\n" not in str(raised.value)


def test_models_that_need_the_pipeline_are_refused_before_anything_is_written(
    tiny_model: MMRWKV7, tmp_path: Path
) -> None:
    config, vision = tiny_model.config, tiny_model.config.tower
    wide = dataclasses.replace(config.projector, input_width=128)
    full = {"vocabulary": None, "lm": dataclasses.replace(config.lm, vocab_size=WORLD_SIZE)}
    marked = dataclasses.replace(config.template, image_start=65530, image_end=65531)
    for change, how in (
        ({"tiling": Tiling(32)}, "the model cuts pictures into tiles"),
        ({"tower": ConcatTowerConfig((vision, vision)), "projector": wide}, "looks at each picture in several ways"),
        ({"template": dataclasses.replace(config.template, images_first=True)}, "sets pictures before the turn"),
        (full | {"template": marked}, "or between marks"),
        ({"template": dataclasses.replace(config.template, answer="")}, "no jinja can cut it"),
    ):
        core = MMRWKV7(dataclasses.replace(config, **change))
        with pytest.raises(ValueError, match=rf"{how}.*use mm_rwkv7\.Pipeline$"):
            export(core, tmp_path / "out", "")
        assert not any(tmp_path.iterdir())


def test_a_model_of_another_tokenizer_is_refused() -> None:
    core = MMRWKV7(MMConfig(RWKV7Config(50277, 64, 1), tokenizer="pile"))
    for adapter in (MMRWKV7Processor, MMRWKV7ForConditionalGeneration):
        with pytest.raises(ValueError, match="the tokenizer is 'pile'"):
            adapter.from_core(core)


def test_wrong_inputs_are_refused(hf_processor: MMRWKV7Processor, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="the text has 1 <image>, but 2 pictures came"):
        hf_processor(images=[RED, RED], text="<image>")
    with pytest.raises(ValueError, match=r"the texts have \[1, 1\] <image>, but \[2, 0\] pictures came"):
        hf_processor(images=[[RED, RED], []], text=["<image>", "<image>"])
    with pytest.raises(ValueError, match="a text is a int, expected a string"):
        hf_processor(text=["a", 1])
    with pytest.raises(ValueError, match="there is no text"):
        hf_processor(images=[RED])
    with pytest.raises(ValueError, match="no video"):
        hf_processor(text="a", videos=[RED])
    with pytest.raises(ValueError, match=r"missing\.png: there is no such file"):
        hf_processor(images=str(tmp_path / "missing.png"), text="<image>")


@pytest.mark.parametrize("trimmed", [False, True])
def test_the_tokenizer_is_ours(tiny_model: MMRWKV7, trimmed: bool) -> None:
    vocabulary = tiny_model.config.vocabulary if trimmed else None
    tokenizer, native = MMRWKV7Tokenizer(vocabulary), Tokenizer(vocabulary)
    assert len(tokenizer) == tokenizer.vocab_size == native.size
    assert len(set(tokenizer.get_vocab().values())) == native.size
    ends = (tokenizer.eos_token_id, tokenizer.pad_token_id, *tokenizer.convert_tokens_to_ids(["<image>", "<audio>"]))
    assert ends == (native.end_id, native.end_id, native.image_id, native.audio_id)

    @settings(max_examples=200, deadline=None)
    @given(texts.filter(lambda text: not any(mark in text for mark in MARKS)))
    def check(text: str) -> None:
        ids = tokenizer(text).input_ids
        assert ids == native.encode(text)
        assert tokenizer.decode(ids) == native.decode(ids) == text
        assert tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)) == ids

    check()
    half = native.encode("🙂")[:1] if trimmed else [native.encode("a")[0], 241]
    assert tokenizer.decode(half) == native.decode(half)
    with pytest.raises(ValueError, match="is not an id of this vocabulary"):
        tokenizer.decode([native.size])
    with pytest.raises(ValueError, match="is no token of this vocabulary"):
        tokenizer.convert_tokens_to_ids("no such token")


def test_a_model_that_cannot_see_has_a_processor_for_texts() -> None:
    core = MMRWKV7(MMConfig(RWKV7Config(WORLD_SIZE, width=16, layers=1, head_size=16)))
    processor = MMRWKV7Processor.from_core(core)
    assert processor(text="User: Hi").input_ids == [Tokenizer().encode("User: Hi")]
    with pytest.raises(ValueError, match="no vision tower"):
        processor(images=[RED], text="<image>")


def test_a_saved_processor_is_the_same(hf_processor: MMRWKV7Processor, tmp_path: Any) -> None:
    hf_processor.save_pretrained(tmp_path)
    from mm_rwkv7.hf import MMRWKV7Config, register

    register()
    MMRWKV7Config(native=hf_processor.image_processor.native).save_pretrained(tmp_path)
    loaded = MMRWKV7Processor.from_pretrained(tmp_path)
    arguments: dict[str, Any] = {"images": [RED], "text": "User: <image>\nHi\n\n", "return_tensors": "pt"}
    found, expected = loaded(**arguments), hf_processor(**arguments)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert loaded.chat_template == loaded.tokenizer.chat_template == hf_processor.chat_template
    assert loaded.tokenizer.padding_side == "left"
