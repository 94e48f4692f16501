import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from encoders.protocol import Preprocess, Views
from encoders.tiling import Tiling
from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.config import MMConfig, PromptTemplate
from mm_rwkv7.processor import Picture, Processor
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import Tokenizer

CONFIG = MMConfig(RWKV7Config(vocab_size=65536, width=64, layers=1, head_size=64, ffn_width=256))
SEEING_CONFIG = dataclasses.replace(CONFIG, tower=TimmTowerConfig("test_vit", 16), projector=ProjectorConfig(64, 8))
TOKENIZER = Tokenizer()
PREPROCESS = Preprocess(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SEEING = Processor(CONFIG, TOKENIZER, PREPROCESS, image_tokens=4)
BLIND = Processor(CONFIG, TOKENIZER, None, image_tokens=0)

RED = Image.new("RGB", (20, 10), "red")
BLUE = Image.new("RGB", (10, 30), "blue")


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(source: Any) -> dict[str, Any]:
    return {"type": "image", "image": source}


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def user(*parts: Any) -> dict[str, Any]:
    return message("user", parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts))


def test_a_question_about_a_picture_is_the_published_prompt() -> None:
    messages = [user(image(RED), text("What colour?"))]
    assert SEEING.segments(messages) == ["User: ", Picture(RED), "\nWhat colour?\n\n", "Assistant:"]
    batch = SEEING(messages)
    expected = [
        *TOKENIZER.encode("User: "),
        *[TOKENIZER.image_id] * 4,
        *TOKENIZER.encode("\nWhat colour?\n\n"),
        *TOKENIZER.encode("Assistant:"),
    ]
    assert batch.ids.dtype == torch.int64
    assert batch.ids.tolist() == [expected]
    assert batch.mask is None


def test_a_conversation() -> None:
    messages = [
        message("system", " Be brief. "),
        user("Hello"),
        message("assistant", "Hi!"),
        user(text("And"), text("these?"), image(RED), image(BLUE), text("Which is blue?")),
    ]
    assert SEEING.segments(messages) == [
        "System: Be brief.\n\n",
        "User: Hello\n\n",
        "Assistant:",
        " Hi!\n\n",
        "User: And\nthese?",
        Picture(RED),
        "\n",
        Picture(BLUE),
        "\nWhich is blue?\n\n",
        "Assistant:",
    ]


def test_the_template_is_the_config_s() -> None:
    template = PromptTemplate("<s>", "<u>", "<a>", "</>", "<img>{image}</img>")
    config = MMConfig(CONFIG.lm, template=template)
    processor = Processor(config, TOKENIZER, PREPROCESS, image_tokens=1)
    messages = [message("system", "S"), user(image(RED), text("Q")), message("assistant", "A")]
    assert processor.segments(messages, generate=False) == [
        "<s>S</>",
        "<u><img>",
        Picture(RED),
        "</img>Q</>",
        "<a>",
        " A</>",
    ]


@given(st.text(alphabet="ab \t\r\n\x0b\x85\u2028"))
def test_a_question_never_holds_the_end_of_its_turn(words: str) -> None:
    if not words.strip():
        with pytest.raises(ValueError, match=r"^the question is empty$"):
            BLIND.segments([user(words)])
        return
    question, prompt = BLIND.segments([user(words)])
    body = question.removeprefix("User: ").removesuffix("\n\n")
    assert prompt == "Assistant:"
    assert body == body.strip()
    assert not any(not line.strip() for line in body.splitlines())
    assert body.split() == words.split()


def test_pictures_are_prepared_as_the_tower_says() -> None:
    pixels = SEEING([user(image(RED), image(BLUE), text("Which?"))]).pixels
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels[:, :, 8, 8].tolist() == [[255, 0, 0], [0, 0, 255]]
    random = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    resized = PREPROCESS.resize(Image.fromarray(random))
    assert np.array_equal(SEEING.pixels(Image.fromarray(random))[0].permute(1, 2, 0), np.asarray(resized))
    assert SEEING([user("Hello")]).pixels is None


def test_each_tile_has_its_placeholders_and_its_pixels() -> None:
    config = dataclasses.replace(SEEING_CONFIG, tiling=Tiling(10))
    tiled = Processor(config, TOKENIZER, PREPROCESS, image_tokens=4)
    batch = tiled([user(image(RED), image(BLUE), text("Which?"))])  # two tiles, then three
    assert (batch.ids == TOKENIZER.image_id).sum() == 4 * (2 + 3)
    assert batch.pixels[:, :, 8, 8].tolist() == [[255, 0, 0]] * 2 + [[0, 0, 255]] * 3
    together = tiled.collate([tiled([user(image(BLUE), text("Hm?"))]), tiled([user(image(RED), text("Hm?"))])])
    assert together.pixels[:, :, 8, 8].tolist() == [[0, 0, 255]] * 3 + [[255, 0, 0]] * 2


def test_a_tower_of_several_views_gets_each_picture_in_all_of_them() -> None:
    several = Views((PREPROCESS, Preprocess(24, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))))
    processor = Processor(CONFIG, TOKENIZER, several, image_tokens=4)
    batch = processor([user(image(RED), image(BLUE), text("Which?"))])
    assert [view.shape for view in batch.pixels] == [(2, 3, 16, 16), (2, 3, 24, 24)]
    assert (batch.ids == TOKENIZER.image_id).sum() == 2 * 4
    together = processor.collate([batch, processor([user(image(RED), text("Hm?"))])])
    for view in together.pixels:
        assert view[:, :, 8, 8].tolist() == [[255, 0, 0], [0, 0, 255], [255, 0, 0]]


turns = st.one_of(
    st.text(min_size=1).filter(str.strip).map(user),
    st.just(user(image(RED), text("What is it?"))),
    st.just(user(image(RED))),
    st.text().map(lambda words: message("assistant", words)),
    st.text(min_size=1).map(lambda words: message("system", words)),
)


@given(st.lists(turns, min_size=2, max_size=5), st.data())
def test_a_conversation_can_be_continued_anywhere(messages: list[dict[str, Any]], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(messages) - 1))
    whole = SEEING(messages, generate=False)
    first = SEEING(messages[:cut], generate=False)
    if first.open_turn:  # what follows is then the rest of the turn, not a message of its own
        messages = [*messages[: cut - 1], user(image(RED), text("Why?"))]
        whole, rest = SEEING(messages, generate=False), SEEING([user("Why?")], generate=False, open_turn=True)
    else:
        rest = SEEING(messages[cut:], generate=False)
    assert torch.equal(torch.cat([first.ids, rest.ids], dim=1), whole.ids)


@given(st.text())
def test_a_prompt_begins_the_row_with_its_answer(answer: str) -> None:
    question = user(image(RED), text("What is it?"))
    prompt = SEEING([question]).ids
    whole = SEEING([question, message("assistant", answer)], generate=False).ids
    assert torch.equal(whole[:, : prompt.shape[1]], prompt)
    words = "\n".join(line for line in answer.strip().splitlines() if line.strip())
    assert TOKENIZER.decode(whole[0, prompt.shape[1] :].tolist()) == (f" {words}" if words else "") + "\n\n"


def test_collate_pads_on_the_right() -> None:
    batches = [
        SEEING([user("Hello there, how are you?")]),
        SEEING([user(image(RED), text("Hm?"))]),
        SEEING([user(image(BLUE), text("Hm?"))]),
    ]
    lengths = [batch.ids.shape[1] for batch in batches]
    assert len(set(lengths)) == 2
    together = SEEING.collate(batches)
    assert together.ids.shape == together.mask.shape == (3, max(lengths))
    for row, mask, batch, length in zip(together.ids, together.mask, batches, lengths, strict=True):
        assert torch.equal(row[:length], batch.ids[0])
        assert (row[length:] == TOKENIZER.end_id).all()
        assert mask.tolist() == [True] * length + [False] * (max(lengths) - length)
    assert torch.equal(together.pixels, torch.cat([batches[1].pixels, batches[2].pixels]))


def test_collate_of_equal_rows_needs_no_mask() -> None:
    batch = SEEING([user("Hello")])
    together = SEEING.collate([batch, batch])
    assert together.mask is None
    assert together.pixels is None
    assert torch.equal(together.ids, batch.ids.repeat(2, 1))
    with pytest.raises(ValueError, match=r"no row to collate"):
        SEEING.collate([])


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "there are no messages"),
        ([message("robot", "Hi")], "message 1 has role 'robot', expected one of system, user, assistant"),
        ([user("Hi"), message("assistant", "Hi")], "the last message is from 'assistant', expected 'user'"),
        ([user("")], "the question is empty"),
        ([user(" \n\t ")], "the question is empty"),
        ([user(text(" "), text("\n"))], "the question is empty"),
        ([user(image(RED))], "the question is empty"),
        ([user(image(RED), text(" "))], "the question is empty"),
        ([user(""), message("assistant", "Hi"), user("Hi")], "the question is empty"),
        ([user({"type": "audio", "audio": b""}, text("Hi"))], "this model has no sound encoder"),
        ([user({"type": "video", "video": b""})], "message 1 has the part {'type': 'video'"),
        ([user({"type": "image", "path": "x.png"}, text("Hi"))], "message 1 has the part {'type': 'image'"),
        ([user(text(7))], "message 1 has the text 7, expected a string"),
        ([user("Hi"), message("assistant", [image(RED)])], "message 2 is from 'assistant' and has a picture"),
        ([message("user", None)], "message 1 has content None, expected a text or a list of parts"),
        ([message("user", b"Hi")], "message 1 has content b'Hi', expected a text or a list of parts"),
        ([message("user", ["Hi"])], "message 1 has the part 'Hi'"),
        ([{"role": "user"}], "message 1 is {'role': 'user'}, expected a role and a content"),
        (["Hi"], "message 1 is 'Hi', expected a role and a content"),
    ],
)
def test_bad_messages_are_refused(messages: list[Any], expected: str) -> None:
    with pytest.raises(ValueError, match=r"^") as error:
        SEEING(messages)
    assert str(error.value).startswith(expected)


def test_a_picture_alone_can_be_read_in_advance() -> None:
    assert SEEING.segments([user(image(RED))], generate=False) == ["User: ", Picture(RED)]
    assert SEEING([user(image(RED))], generate=False).open_turn
    assert not SEEING([user(image(RED)), user("Hello")], generate=False).open_turn
    assert SEEING.segments([user("What?")], open_turn=True) == ["\nWhat?\n\n", "Assistant:"]
    with pytest.raises(ValueError, match="expected 'user' after a picture"):
        SEEING.segments([message("assistant", "A dog.")], generate=False, open_turn=True)


def test_a_broken_picture_is_named(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"missing\.png: there is no such file"):
        SEEING([user(image(tmp_path / "missing.png"), text("What?"))])


def test_a_model_without_a_tower_refuses_pictures() -> None:
    messages = [user(image(RED), text("What?"))]
    for use in (BLIND, BLIND.segments):
        with pytest.raises(ValueError, match=r"^this model has no vision tower"):
            use(messages)
