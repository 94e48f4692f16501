"""The byte-level tokenizer of Pile models, on a small one of the same kind that is trained here."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Bpe

from mm_rwkv7.pile_tokenizer import PileTokenizer
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling

ROWS = 50304


SPECIAL = ("<|endoftext|>", "<|padding|>")
BYTES = tuple(sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(map(chr, (0xC0, 0xC1, *range(0xF5, 0x100))))))


@pytest.fixture(scope="module")
def bpe() -> Bpe:
    return trained()


def trained(special: Sequence[str] = SPECIAL, alphabet: Sequence[str] = BYTES) -> Bpe:
    """Built as `20B_tokenizer.json` is: NFC, byte-level BPE, two special tokens, the bytes that texts have, and runs of
    spaces added."""
    made = Bpe(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(special), initial_alphabet=list(alphabet), show_progress=False
    )
    made.train_from_iterator(["the cat sat on the mat, the café and the 猫" * 5], trainer)
    made.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in (2, 3, 4)])
    return made


@pytest.fixture(scope="module")
def tokenizer(bpe: Bpe, tmp_path_factory: pytest.TempPathFactory) -> PileTokenizer:
    path = tmp_path_factory.mktemp("pile") / "20B_tokenizer.json"
    bpe.save(str(path))
    return PileTokenizer(path, ROWS)


@given(text=st.text(st.characters(max_codepoint=0x2FF, exclude_categories=["Cs"])))
def test_ids_are_the_library_s_and_bytes_are_the_text(bpe: Bpe, tokenizer: PileTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == bpe.encode(text, add_special_tokens=False).ids
    normal = bpe.normalizer.normalize_str(text)
    assert tokenizer.decode(ids) == normal
    stream = tokenizer.stream()
    assert "".join([*map(stream.push, ids), stream.flush()]) == normal


def test_special_tokens_are_written_by_nobody(tokenizer: PileTokenizer) -> None:
    assert tokenizer.end_id == 0
    assert tokenizer.token_bytes(0) == tokenizer.token_bytes(1) == tokenizer.token_bytes(ROWS - 1) == b""
    assert 0 not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.decode(tokenizer.encode("a<|endoftext|>b")) == "a<|endoftext|>b"
    assert {1, ROWS - 1} <= set(tokenizer.unwritable)
    assert not {0, *tokenizer.encode("the cat   sat")} & set(tokenizer.unwritable)


def test_bad_input_is_refused(bpe: Bpe, tokenizer: PileTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair"):
        tokenizer.encode("\ud800")
    with pytest.raises(ValueError, match="expected 0 to 50303"):
        tokenizer.token_bytes(ROWS)
    bpe.save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match=r"t\.json has id \d+, the model only 260 rows"):
        PileTokenizer(tmp_path / "t.json", 260)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(ValueError, match=r"t\.json is not a tokenizer's file"):
        PileTokenizer(tmp_path / "t.json", ROWS)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"special": SPECIAL[::-1]}, "'<|endoftext|>' has id 1, expected 0"),
        ({"special": ["<s>", "</s>"]}, "'<|endoftext|>' has id None, expected 0"),
        ({"special": SPECIAL[:1]}, "'<|padding|>' has id None, expected 1"),
        ({"special": [*SPECIAL, "<|mask|>"]}, "'!' has id 3, expected 2"),
        ({"alphabet": pre_tokenizers.ByteLevel.alphabet()}, "'Ċ' has id 200, expected 187"),
    ],
)
def test_another_tokenizer_is_refused(other: dict[str, list[str]], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    trained(**other).save(str(path))
    with pytest.raises(ValueError, match=r"tokenizer\.json is not the 20B tokenizer") as raised:
        PileTokenizer(path, ROWS)
    assert str(raised.value) == f"{path} is not the 20B tokenizer: {reason}"


def test_a_pile_model_answers_with_the_tokenizer_beside_it(bpe: Bpe, pile_model: Path) -> None:
    bpe.save(str(pile_model.parent / "20B_tokenizer.json"))
    pipeline = Pipeline.from_pretrained(pile_model, "cpu")
    answer = pipeline.generate("the cat", Sampling(max_new_tokens=20, temperature=1.0, seed=0))
    assert answer.usage.prompt_tokens == len(bpe.encode("the cat").ids)
    assert answer.usage.completion_tokens == 20


@pytest.fixture
def pile_model(tmp_path: Path) -> Path:
    from mm_rwkv7.initialisation import initialise
    from mm_rwkv7.interop import blinkdl
    from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config

    model = RWKV7(RWKV7Config(ROWS, 64, 2, decay_rank=8, iclr_rank=8, value_rank=8, gate_rank=8))
    torch.manual_seed(0)
    initialise(model)
    torch.save(blinkdl.theirs(model.state_dict()), tmp_path / "RWKV-x070-Pile.pth")
    return tmp_path / "RWKV-x070-Pile.pth"
