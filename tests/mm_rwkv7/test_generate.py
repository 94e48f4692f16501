import codecs
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mm_rwkv7 import generate
from mm_rwkv7.generate import Decoder, prefill
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.sampler import Sampler
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.tokenizer import Tokenizer

TEXTS = ("ab", "ba", "aab", "\n\n", "a\n", "é", "🙂", "b🙂")
TOKENIZER = Tokenizer(Tokenizer.trim(TEXTS))
WHOLE = [token for text in TEXTS for token in TOKENIZER.encode(text)]


class Counter:
    """In a model's place: its state is the number of tokens read, and it likes the placeholders best."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(image_id=TOKENIZER.image_id)
        self.lm = self

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        return torch.zeros(*ids.shape, 1)

    def hidden(self, x: Tensor, state: int) -> tuple[Tensor, int]:
        return x, state + x.shape[1]

    def head(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden), TOKENIZER.size)
        logits[:, [TOKENIZER.image_id, TOKENIZER.audio_id]] = 9
        return logits


def forced(tokens: Sequence[int], stop: Sequence[str] = (), limit: int | None = None) -> Decoder:
    """A decoder that writes `tokens`."""
    queue = iter(tokens)

    def sampler(logits: Tensor) -> int:
        return next(queue)

    model: Any = Counter()
    any_sampler: Any = sampler
    any_state: Any = 0
    limit = len(tokens) if limit is None else limit
    return Decoder(model, TOKENIZER, torch.zeros(1, 1), any_state, any_sampler, stop, limit)


def whole_answer(tokens: Sequence[int], stop: Sequence[str]) -> tuple[str, str, int]:
    """-> (the text up to the stop text that is complete first, why it ends, tokens read until then)."""
    data = b""
    for count, token in enumerate(tokens, start=1):
        if token == TOKENIZER.end_id:
            return data.decode(errors="replace"), "stop", count
        data += TOKENIZER.token_bytes(token)
        text = codecs.getincrementaldecoder("utf-8")("replace").decode(data)
        if cuts := [text.index(end) for end in stop if end in text]:
            return text[: min(cuts)], "stop", count
    return data.decode(errors="replace"), "length", len(tokens)


stops = st.lists(st.text("ab\né🙂", min_size=1, max_size=4), max_size=3)
token_lists = st.lists(st.sampled_from([*WHOLE, *WHOLE, *range(TOKENIZER.size)]), max_size=14).map(
    lambda tokens: [t for t in tokens if t not in (TOKENIZER.image_id, TOKENIZER.audio_id)]
)


@settings(deadline=None)
@given(token_lists, stops)
def test_the_pieces_join_to_the_text_before_the_first_stop(tokens: list[int], stop: list[str]) -> None:
    decoder = forced(tokens, stop)
    pieces = list(decoder)
    text, reason, count = whole_answer(tokens, stop)
    assert "".join(pieces) == text
    assert all(pieces)
    assert decoder.finish_reason == reason
    assert decoder.tokens == tokens[:count]
    assert decoder.state == count


@settings(deadline=None)
@given(st.text("ab\né🙂", max_size=8), stops)
def test_a_piece_is_whole_characters_and_no_beginning_of_a_stop(text: str, stop: list[str]) -> None:
    single_bytes = [1 + byte for byte in text.encode()]
    assert TOKENIZER.decode(single_bytes) == text  # ids 1 to 256 are the bytes
    shown = ""
    decoder = forced(single_bytes, stop)
    for piece in decoder:
        shown += piece
        assert "\ufffd" not in piece
        assert not any(end in shown for end in stop)
        read = TOKENIZER.decode(decoder.tokens)
        assert read.startswith(shown)
        if decoder.finish_reason == "cancelled":  # still writing: what may yet become a stop is held back
            held = max((n for end in stop for n in range(1, len(end)) if read.endswith(end[:n])), default=0)
            assert len(shown) <= len(read) - held


def test_text_is_shown_as_soon_as_it_can_be_no_stop() -> None:
    tokens = [1 + byte for byte in "a\nb🙂\n\nb".encode()]
    decoder = forced(tokens, ["\n\n"])
    shown = [(piece, len(decoder.tokens)) for piece in decoder]
    assert shown == [("a", 1), ("\nb", 3), ("🙂", 7)]
    assert decoder.finish_reason == "stop"


def test_the_bound_and_the_end_of_text_end_an_answer() -> None:
    a = TOKENIZER.encode("a")[0]
    decoder = forced([a] * 9, limit=4)
    assert ("".join(decoder), decoder.finish_reason, decoder.state) == ("aaaa", "length", 4)
    decoder = forced([a, TOKENIZER.end_id, a])
    assert ("".join(decoder), decoder.finish_reason, decoder.state) == ("a", "stop", 2)


def test_left_early_the_state_has_read_what_was_written() -> None:
    decoder = forced(TOKENIZER.encode("abba"), ["\n\n"])
    pieces: Iterator[str] = iter(decoder)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert decoder.finish_reason == "cancelled"
    assert decoder.state == len(decoder.tokens) == 1


def test_placeholders_are_never_written() -> None:
    model: Any = Counter()
    any_state: Any = 0
    for sampling in (Sampling(), Sampling(temperature=1.0, seed=1)):
        sampler = Sampler(sampling, TOKENIZER.size)
        decoder = Decoder(model, TOKENIZER, torch.zeros(1, 1), any_state, sampler, (), 30)
        list(decoder)
        assert not {TOKENIZER.image_id, TOKENIZER.audio_id} & set(decoder.tokens)


@pytest.fixture
def picture(tiny_model: MMRWKV7) -> tuple[Tensor, Tensor]:
    """(ids (1, T) with two pictures, their features)."""
    side, M = tiny_model.tower.preprocess.size, tiny_model.image_tokens
    pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = tiny_model.config.image_id
    ids = torch.tensor([[3, 4, *[image] * M, 5, *[image] * M, 6, 7, 8]])
    with torch.no_grad():
        return ids, tiny_model.encode(pixels)


@torch.no_grad()
@pytest.mark.parametrize("piece", [1, 3, 7])
def test_a_prompt_is_read_in_pieces(
    tiny_model: MMRWKV7, picture: tuple[Tensor, Tensor], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, features = picture
    expected, whole = tiny_model.lm.hidden(tiny_model.embed(ids, features))
    monkeypatch.setattr(generate, "PIECE", piece)
    hidden, state = prefill(tiny_model, ids, features=features)
    assert torch.allclose(hidden, expected[:, -1], rtol=1e-4, atol=1e-4)
    assert state.tokens_seen == whole.tokens_seen == ids.shape[1]
    for one, other in zip(state.layers, whole.layers, strict=True):
        for found, wanted in zip(one, other, strict=True):
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_prompt_that_does_not_fit_its_pictures_is_refused(
    tiny_model: MMRWKV7, picture: tuple[Tensor, Tensor]
) -> None:
    ids, features = picture
    with pytest.raises(ValueError, match="nothing to read"):
        prefill(tiny_model, ids[:, :0])
    with pytest.raises(ValueError, match="placeholders"):
        prefill(tiny_model, ids, features=features[:1])
    with pytest.raises(ValueError, match="placeholders"):
        prefill(tiny_model, ids, features=torch.cat([features, features]))
