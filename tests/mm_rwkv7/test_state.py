from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mm_rwkv7.state import FORMAT, LayerState, State


def random_state(batch: int = 1, dtype: torch.dtype = torch.float32) -> State:
    torch.manual_seed(0)
    layers = (
        LayerState(torch.randn(batch, 2, 4, 4), torch.randn(batch, 8, dtype=dtype), torch.randn(batch, 8, dtype=dtype))
        for _ in range(3)
    )
    return State(tuple(layers), tokens_seen=123_456_789_012, open_turn=True, model="m")


def assert_equal(found: State, expected: State) -> None:
    for field in ("tokens_seen", "open_turn", "model"):
        assert getattr(found, field) == getattr(expected, field)
    for one, other in zip(found.layers, expected.layers, strict=True):
        for found_tensor, expected_tensor in zip(one, other, strict=True):
            assert found_tensor.dtype == expected_tensor.dtype
            assert torch.equal(found_tensor, expected_tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    state = random_state(dtype=dtype)
    state.save(tmp_path / "state")
    assert_equal(State.load(tmp_path / "state", "m"), state)
    assert_equal(State.load(tmp_path / "state"), state)
    closed = State(state.layers)
    closed.save(tmp_path / "state")
    assert_equal(State.load(tmp_path / "state"), closed)


def test_the_file_has_the_agreed_tensors(tmp_path: Path) -> None:
    random_state().save(tmp_path / "state")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "state").items()}
    expected = {f"layers.{i}.wkv": (2, 4, 4) for i in range(3)}
    expected |= {f"layers.{i}.{shift}": (8,) for i in range(3) for shift in ("att_shift", "ffn_shift")}
    assert shapes == expected


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    random_state().save(tmp_path / "state")
    with pytest.raises(ValueError, match="belongs to model m"):
        State.load(tmp_path / "state", "another")


def test_a_batch_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch of 2"):
        random_state(2).save(tmp_path / "state")
    assert not list(tmp_path.iterdir())


def test_what_is_no_state_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    random_state().save(path)
    whole = path.read_bytes()
    for content in (b"", b"words", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="state"):
            State.load(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="format None"):
        State.load(path)


@pytest.mark.parametrize("metadata", [{"model": "", "tokens_seen": "1"}, {"model": ""}, {"tokens_seen": "1"}])
def test_a_state_file_with_something_missing_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "state"
    random_state().save(path)
    tensors = load_file(path)
    if len(metadata) == 2:
        del tensors["layers.1.wkv"]
    save_file(tensors, path, {"format": FORMAT, **metadata})
    with pytest.raises(ValueError, match="state"):
        State.load(path, "")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent"):
        State.load(tmp_path / "absent")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(tensors: Any, path: str, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    path = tmp_path / "state"
    state = random_state()
    state.save(path)
    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        State(state.layers, tokens_seen=7).save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert_equal(State.load(path), state)


def test_rows_are_forked_and_chosen() -> None:
    state = random_state(2)
    assert_equal(state.repeat(2), state.rows(torch.tensor([0, 0, 1, 1])))
    assert state.repeat(3).batch == 6
    swapped = state.rows(torch.tensor([1, 0]))
    assert torch.equal(swapped.layers[2].wkv, state.layers[2].wkv.flip(0))
    assert_equal(swapped.rows(torch.tensor([1, 0])), state)


def test_zeros() -> None:
    state = State.zeros(3, 5, 2, 4, torch.bfloat16, torch.device("cpu"))
    assert (state.batch, state.tokens_seen, state.open_turn, len(state.layers)) == (5, 0, False, 3)
    for wkv, *shifts in state.layers:
        assert (wkv.shape, wkv.dtype) == ((5, 2, 4, 4), torch.float32)
        assert not wkv.any()
        for shift in shifts:
            assert (shift.shape, shift.dtype) == ((5, 8), torch.bfloat16)
            assert not shift.any()
