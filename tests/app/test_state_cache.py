"""What is remembered of what was read, and for how long."""

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from app.api.kept import StateFiles
from app.drafts import OLD_S, remove_drafts
from app.engine import Engine, EngineConfig
from app.lru import ByteBound
from app.prompts import Said, content_key
from app.requests import Request
from app.state_cache import StateCache
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.state import State
from tests.app.servers import until

CPU = torch.device("cpu")


def _state(number: int) -> State:
    return State.zeros(1, 1, 1, 8, torch.float32, CPU).map(lambda tensor: tensor + number)


def _key(number: int) -> bytes:
    return bytes([number]) * 20


def test_the_least_used_go_first(seed: int) -> None:
    rng = random.Random(seed)
    cache, expected = ByteBound[int](100), dict[bytes, int]()  # expected: in order of use, with sizes
    for _ in range(500):
        key = _key(rng.randrange(20))
        if rng.random() < 0.5:
            assert (cache.get(key) is not None) == (key in expected), f"seed {seed}"
            if key in expected:
                expected[key] = expected.pop(key)
            continue
        size = rng.randrange(120)
        gone = cache.put(key, size, size)
        expected.pop(key, None)
        expected[key] = size
        while sum(expected.values()) > 100:
            oldest = next(iter(expected))
            assert gone.pop(0) == (oldest, expected.pop(oldest)), f"seed {seed}"
        assert gone == []
        assert cache.bytes == sum(expected.values())
    assert dict(cache.drain()) == expected
    assert len(cache) == cache.bytes == 0


def test_states_move_to_disk_and_are_found_by_the_next_process(tmp_path: Path) -> None:
    size = sum(tensor.nbytes for tensor in _state(0).layers[0])
    cache = StateCache(CPU, 0, 2 * size, tmp_path)
    for number in range(4):
        cache.keep(_key(number), _state(number))
    assert cache.held == [2 * size]
    assert cache.find(_key(0)) is None
    cache.close()
    assert len(list(tmp_path.iterdir())) == 4
    again = StateCache(CPU, 0, 2 * size, tmp_path)
    again.warm([_key(9), _key(1), _key(2)], "")
    found = again.find(_key(1))
    assert found is not None
    assert torch.equal(found.state.layers[0].wkv, _state(1).layers[0].wkv)
    assert again.find(_key(2)) is None  # a shorter prefix is of no use
    again.warm([_key(3)], "another model")
    assert again.find(_key(3)) is None
    assert not (tmp_path / f"{_key(3).hex()}.safetensors").exists()
    again.close()


def test_what_people_said_is_for_nobody_else_to_read(tmp_path: Path) -> None:
    StateCache(CPU, 0, 0, tmp_path / "states").close()
    assert (tmp_path / "states").stat().st_mode & 0o777 == 0o700


def test_what_is_written_through_is_found_by_another_process_at_once(tmp_path: Path) -> None:
    one, other = StateCache(CPU, 0, 1 << 20, tmp_path), StateCache(CPU, 0, 1 << 20, tmp_path)
    one.keep(_key(1), _state(1), through=True)
    one.keep(_key(2), _state(2))
    until((tmp_path / f"{_key(1).hex()}.safetensors").exists, "it is written")
    other.warm([_key(2), _key(1)], "")
    found = other.find(_key(1))
    assert found is not None
    assert torch.equal(found.state.layers[0].wkv, _state(1).layers[0].wkv)
    assert other.find(_key(2)) is None  # in memory alone
    (tmp_path / f"{_key(1).hex()}.safetensors").unlink()
    third = StateCache(CPU, 0, 1 << 20, tmp_path)
    third.warm([_key(1)], "")
    assert third.find(_key(1)) is None
    for cache in (one, other, third):
        cache.close()


def test_the_disk_is_bounded_and_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.safetensors").write_bytes(b"mine")
    cache = StateCache(CPU, 0, 0, tmp_path, disk_bytes=3000)
    for number in range(8):
        cache.keep(_key(number), _state(number))
    cache.close()
    names = {path.name for path in tmp_path.iterdir()}
    assert "notes.safetensors" in names
    assert 1 < len(names) < 6
    assert f"{_key(7).hex()}.safetensors" in names


def test_drafts_of_killed_processes_go_and_those_of_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("safetensors.torch.save_file", killed)
        patch.setattr("os.unlink", lambda _: None)  # who is killed clears nothing away
        for name in (_key(1).hex(), f"state_{_key(2).hex()}"):
            with pytest.raises(SystemExit):
                _state(1).save(tmp_path / f"{name}.safetensors")
    assert len(list(tmp_path.iterdir())) == 2
    for name in ("notes.tmp", f"{_key(3).hex()}.safetensors.tmp"):
        (tmp_path / name).touch()
    remove_drafts(tmp_path)
    assert len(list(tmp_path.iterdir())) == 4  # they may be being written
    hours_ago = time.time() - 2 * OLD_S
    for path in tmp_path.iterdir():
        os.utime(path, (hours_ago, hours_ago))
    beside = tmp_path / f".{16 * 'a'}.tmp"
    beside.touch()
    StateCache(CPU, 0, 0, tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {"notes.tmp", f"{_key(3).hex()}.safetensors.tmp", beside.name}
    os.utime(beside, (hours_ago, hours_ago))
    StateFiles(tmp_path, "", 1 << 20)
    assert not beside.exists()


def test_an_engine_begins_where_the_last_one_was(tiny_model: Any, pictures: Any, tmp_path: Path) -> None:
    pipeline = Pipeline(tiny_model)
    parts = [{"type": "image", "image": pictures["red"]}, {"type": "text", "text": "Describe"}]
    request = Request([{"role": "user", "content": parts}])
    texts = []
    for _ in range(2):
        with Engine(pipeline, EngineConfig(slots=1, folder=tmp_path)) as engine:
            texts.append(engine.submit(request).result().text)
            encoded = engine.media.encoded
    assert texts[0] == texts[1]
    assert encoded == 0


def test_keys_tell_apart_what_was_read(tmp_path: Path) -> None:
    def key(*read: list[int] | bytes) -> bytes:
        said = Said()
        for part in read:
            said.see(part) if isinstance(part, bytes) else said.read(part)
        return said.key

    assert key([1, 2], [3]) == key([1], [2, 3])
    different = [key(), key([1]), key([1, 0]), key([0, 1]), key(b"a" * 20), key([1], b"a" * 20), key(b"a" * 20, [1])]
    different += [key(b"b" * 20), key(b"a" * 20, b"a" * 20)]
    assert len(set(different)) == len(different)
    path = tmp_path / "one"
    path.write_bytes(b"picture")
    assert content_key("image", path) == content_key("image", b"picture") != content_key("audio", b"picture")
    before = content_key("image", str(path))
    path.write_bytes(b"pictures")
    assert content_key("image", str(path)) != before
