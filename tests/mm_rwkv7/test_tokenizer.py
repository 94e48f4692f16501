import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_rwkv7.tokenizer import AUDIO_TOKEN, END_OF_TEXT, IMAGE_TOKEN, REQUIRED, WORLD_SIZE, Tokenizer

WORLD = Tokenizer()
TRIMMED = Tokenizer(Tokenizer.trim(["User: ", "What colour is the cat?\n\n", "Assistant:", " red\n\n"]))
TOKENIZERS = pytest.mark.parametrize("tokenizer", [WORLD, TRIMMED], ids=["world", "trimmed"])

WORLD_ID_OF = {WORLD.token_bytes(token): token for token in range(1, 65530)}


def longest_match(data: bytes) -> list[int]:
    """The definition of the World tokenizer, spelled out."""
    ids = []
    while data:
        length = next(n for n in range(min(len(data), 128), 0, -1) if data[:n] in WORLD_ID_OF)
        ids.append(WORLD_ID_OF[data[:length]])
        data = data[length:]
    return ids


def test_world_ids_are_the_published_ones() -> None:
    ids = [24281, 59, 3880, 261, 5585, 41693, 59, 4709]
    assert WORLD.encode("User: Hi\n\nAssistant: ok") == ids
    assert WORLD.decode(ids) == "User: Hi\n\nAssistant: ok"
    assert WORLD.size == WORLD_SIZE == 65536
    assert (WORLD.end_id, WORLD.image_id, WORLD.audio_id) == (END_OF_TEXT, IMAGE_TOKEN, AUDIO_TOKEN)


def test_every_published_id_has_bytes_of_its_own() -> None:
    assert len(WORLD_ID_OF) == 65529
    assert [WORLD.token_bytes(byte + 1) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


@given(st.text())
def test_encodes_by_longest_match(text: str) -> None:
    assert WORLD.encode(text) == longest_match(text.encode())


@TOKENIZERS
@given(text=st.text())
def test_text_round_trips(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {tokenizer.image_id, tokenizer.audio_id, tokenizer.end_id} & set(ids)


@TOKENIZERS
@given(data=st.data())
def test_stream_joins_to_decode(tokenizer: Tokenizer, data: st.DataObject) -> None:
    any_ids = st.lists(st.integers(0, 600) | st.integers(0, tokenizer.size - 1))
    ids = [token for token in data.draw(any_ids) if token < tokenizer.size]
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


@given(st.text())
def test_stream_never_emits_half_a_character(text: str) -> None:
    stream = WORLD.stream()
    pieces = [stream.push(byte + 1) for byte in text.encode()]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.flush() == ""


def test_unfinished_character_comes_out_at_the_flush() -> None:
    stream = WORLD.stream()
    assert [stream.push(byte + 1) for byte in "é".encode()[:1]] == [""]
    assert stream.flush() == "\ufffd"


@TOKENIZERS
def test_placeholders_and_end_are_silent(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.image_id, tokenizer.audio_id, tokenizer.end_id]
    assert [tokenizer.token_bytes(token) for token in ids] == [b"", b"", b""]
    assert tokenizer.decode(ids) == ""


def test_trim_keeps_what_occurs_and_what_is_needed() -> None:
    vocabulary = Tokenizer.trim(["the cat", "the dog"])
    assert list(vocabulary) == sorted({*REQUIRED, *WORLD.encode("the cat"), *WORLD.encode("the dog")})
    assert Tokenizer.trim([]) == tuple(sorted(REQUIRED))


def test_trimmed_ids_are_places_in_the_list() -> None:
    vocabulary = Tokenizer.trim(["the cat"])[::-1]
    tokenizer = Tokenizer(vocabulary)
    assert [vocabulary[token] for token in tokenizer.encode("the cat")] == WORLD.encode("the cat")
    assert vocabulary[tokenizer.image_id] == IMAGE_TOKEN
    assert tokenizer.size == len(vocabulary)


def test_an_id_outside_the_list_is_spelled_in_bytes() -> None:
    tokenizer = Tokenizer(Tokenizer.trim(["the cat"]))
    ids = tokenizer.encode("the zebra")
    assert [tokenizer.token_bytes(token) for token in ids] == [b"the", *(bytes([byte]) for byte in b" zebra")]


@pytest.mark.parametrize("missing", sorted(REQUIRED - set(range(3, 255))))
def test_a_vocabulary_without_a_needed_id_is_refused(missing: int) -> None:
    with pytest.raises(ValueError, match=f"lacks 1 World ids .*: {missing}$"):
        Tokenizer(sorted(REQUIRED - {missing}))


def test_a_vocabulary_with_wrong_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="lists 1 World ids more than once"):
        Tokenizer([*REQUIRED, 33])
    with pytest.raises(ValueError, match="lists id 65536"):
        Tokenizer([*REQUIRED, 65536])


@TOKENIZERS
def test_lone_surrogates_are_refused(tokenizer: Tokenizer) -> None:
    for text in ("ab\ud800c", "ab\udfffc"):
        with pytest.raises(ValueError, match="half a surrogate pair at character 2"):
            tokenizer.encode(text)


@TOKENIZERS
def test_foreign_ids_are_refused(tokenizer: Tokenizer) -> None:
    for token in (-1, tokenizer.size):
        with pytest.raises(ValueError, match=f"{token} is not an id"):
            tokenizer.token_bytes(token)


def test_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(TRIMMED))
    assert copy.encode("a red cat") == TRIMMED.encode("a red cat")
