"""What is packed is what the processor gives, every sample once, wherever one begins and however many share the work.

T tokens of a pack, S sequences in it.
"""

import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from encoders.tiling import Tiling
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Processor
from mm_rwkv7.sounds import Sound
from tests.training.data.conversing import words, write_llava
from training.data.conversations import Conversation, Drawn, Fault, Position, Reader
from training.data.feature_cache import FeatureCache
from training.data.llava import Llava
from training.data.media import picture_size, samples_of, tiles_of
from training.data.mixture import IGNORED, Mixture
from training.data.packing import TooLongError, pack, tokenize
from training.data.readers import open_reader


@pytest.fixture(scope="module")
def processor(listening_model: MMRWKV7) -> Processor:
    return Pipeline(listening_model).processor


def conversations(folder: Path, seed: int, count: int = 20) -> Llava:
    return Llava(write_llava(folder, seed, count, sounds=True)[0])


def told(batch: Mapping[str, Any]) -> list[Any]:
    """What says whether two batches are one."""
    return [value.tolist() if isinstance(value, Tensor) else value for value in batch.values()]


def pieces(batch: Mapping[str, Any]) -> dict[str, tuple[list[int], list[int]]]:
    """The ids and targets of every sample in a pack."""
    ends = batch["cu_seqlens"].tolist()
    found = {}
    for name, (begin, end) in zip(batch["samples"], pairwise(ends), strict=False):
        found[name] = batch["ids"][0, begin:end].tolist(), batch["targets"][0, begin:end].tolist()
    return found


def test_ids_are_those_of_the_processor_and_the_loss_lies_on_answers(
    processor: Processor, tmp_path: Path, seed: int
) -> None:
    """Every answer is preceded by exactly the prompt that the processor makes of the messages before it."""
    reader = conversations(tmp_path, seed)
    by_id = {reader[i].id: reader[i] for i in range(len(reader))}
    mixture = Mixture({"a": reader}, {"a": 1}, processor, 700, seed, window=4)
    seen = set()
    for batch in islice(mixture.batches(), 12):
        for name, (ids, targets) in pieces(batch).items():
            seen.add(name)
            messages = by_id[name].messages
            assert ids == processor(messages, generate=False).ids[0].tolist(), f"seed {seed}, {name}"
            expected = [IGNORED] * len(ids)
            for turn, message in enumerate(messages):
                if message["role"] == "assistant":
                    prompt = processor(messages[:turn]).ids[0].tolist()
                    answer = processor.tokenizer.encode(f" {_answer(message)}\n\n")
                    assert ids[: len(prompt)] == prompt, f"seed {seed}, {name}, turn {turn}"
                    expected[len(prompt) - 1 : len(prompt) - 1 + len(answer)] = answer
            assert targets == expected, f"seed {seed}, {name}"
    assert len(seen) > len(reader) / 2


def _answer(message: Mapping[str, Any]) -> str:
    return "\n".join(line for line in message["content"].strip().splitlines() if line.strip())


def test_a_pack_holds_its_samples_one_after_another_and_nothing_else(
    processor: Processor, tmp_path: Path, seed: int
) -> None:
    mixture = Mixture({"a": conversations(tmp_path, seed)}, {"a": 1}, processor, 600, seed, window=3)
    for batch in islice(mixture.batches(), 8):
        ends = batch["cu_seqlens"].tolist()
        assert batch["ids"].shape == batch["targets"].shape == (1, 600)
        assert ends[0] == 0
        assert ends[-1] == 600
        assert len(ends) - 1 == len(batch["samples"]) + (batch["tokens"] < 600)
        assert ends[len(batch["samples"])] == batch["tokens"]
        assert (batch["targets"][0, batch["tokens"] :] == IGNORED).all()
        for end in ends[1:]:
            assert batch["targets"][0, end - 1] == IGNORED  # nothing is foretold across a boundary
        asked = batch["targets"] != IGNORED
        assert torch.equal(batch["targets"][:, :-1][asked[:, :-1]], batch["ids"][:, 1:][asked[:, :-1]])


@pytest.mark.parametrize("window", [1, 5])
def test_it_goes_on_from_every_position(processor: Processor, tmp_path: Path, seed: int, window: int) -> None:
    sources = {"a": conversations(tmp_path / "a", seed), "b": conversations(tmp_path / "b", seed + 1, 7)}
    weights = {"a": 3, "b": 1}

    def packs(position: Position = None) -> Iterator[dict[str, Any]]:
        return Mixture(sources, weights, processor, 700, seed, window=window).batches(position)

    batches = list(islice(packs(), 18))
    for at, batch in enumerate(batches[:-3]):
        position = json.loads(json.dumps(batch["position"]))
        again = list(islice(packs(position), 3))
        assert [told(b) for b in again] == [told(b) for b in batches[at + 1 : at + 4]], f"seed {seed}, position {at}"


@pytest.mark.parametrize(("world", "packs"), [(2, 2), (2, 6), (4, 4)])
def test_ranks_together_see_what_one_sees(
    processor: Processor, tmp_path: Path, seed: int, world: int, packs: int
) -> None:
    """Pack i of a step goes to rank i % world; all agree on where the next step begins, whoever takes it up."""
    reader = conversations(tmp_path, seed)

    def batches(count: int, rank: int = 0, world: int = 1, position: Position = None) -> list[dict[str, Any]]:
        mixture = Mixture({"a": reader}, {"a": 1}, processor, 700, seed, window=5)
        return list(islice(mixture.batches(position, rank, world, packs), count))

    alone = batches(3 * packs)
    ranks = [batches(3 * packs // world, rank, world) for rank in range(world)]
    together = [ranks[i % world][i // packs * (packs // world) + i % packs // world] for i in range(3 * packs)]
    assert [told(batch) for batch in together] == [told(batch) for batch in alone], f"seed {seed}"
    for step in range(3):
        positions = [batch["position"] for batch in alone[step * packs : (step + 1) * packs]]
        assert all(position == positions[0] for position in positions)
    resumed = batches(packs // world, world - 1, world, alone[0]["position"])
    assert [told(b) for b in resumed] == [told(b) for b in alone[packs + world - 1 : 2 * packs : world]], f"seed {seed}"


def test_an_epoch_has_every_conversation_once(processor: Processor, tmp_path: Path, seed: int) -> None:
    reader = conversations(tmp_path, seed, 30)
    mixture = Mixture({"a": reader}, {"a": 1}, processor, 900, seed, window=2)
    names: list[str] = []
    orders = []
    for samples, _, _ in mixture._windows(mixture._start()):
        names += [sample.conversation.id for sample in samples]
        if len(names) >= 60:
            break
    for epoch in range(2):
        orders.append(names[30 * epoch : 30 * epoch + 30])
        assert sorted(orders[-1]) == sorted(reader[i].id for i in range(30)), f"seed {seed}"
    assert orders[0] != orders[1], f"seed {seed}"


class Words(Reader):
    """As many conversations as one likes, without a file; every fifth may be broken, another too long."""

    def __init__(self, name: str, broken: int = 0, long: int = 0) -> None:
        self.name, self.broken, self.long = name, broken, long

    def stream(self, seed: int, position: Position = None) -> Iterator[tuple[Drawn, Position]]:
        number = position or 0
        while True:
            yield self._drawn(seed, number), number + 1
            number += 1

    def _drawn(self, seed: int, number: int) -> Drawn:
        rng = random.Random(f"{seed} {self.name} {number}")
        if self.broken and number % self.broken == 0:
            return Fault(str(number), self.name, "it is broken")
        answer = words(rng, 9) * (200 if self.long and number % self.long == 1 else 1)
        messages = ({"role": "user", "content": words(rng)}, {"role": "assistant", "content": answer})
        return Conversation(f"{self.name} {number}", messages, self.name)


def test_a_conversation_may_fill_a_pack_to_its_last_token(processor: Processor, tmp_path: Path, seed: int) -> None:
    for talk in conversations(tmp_path, seed):
        whole = tokenize(processor, talk, 10**6)
        size = len(whole.ids)
        assert tokenize(processor, talk, size) == whole, f"seed {seed}"
        if len(whole.answers) > 1:
            assert tokenize(processor, talk, size - 1).answers == whole.answers[:-1], f"seed {seed}"
        else:
            with pytest.raises(TooLongError, match=f"it has more than {size - 1} tokens"):
                tokenize(processor, talk, size - 1)


def test_sources_are_drawn_by_weight(processor: Processor, seed: int) -> None:
    sources = {name: Words(name) for name in "abc"}
    mixture = Mixture(sources, {"a": 6, "b": 3, "c": 0}, processor, 512, seed)
    names = [name[0] for batch in islice(mixture.batches(), 60) for name in batch["samples"]]
    share = names.count("a") / len(names)
    assert set(names) == {"a", "b"}
    assert abs(share - 2 / 3) < 5 * (2 / 9 / len(names)) ** 0.5, f"seed {seed}: {share}"


def test_little_stays_empty_and_what_cannot_be_used_is_told(processor: Processor, seed: int) -> None:
    sources = {"a": Words("a", broken=7, long=11)}
    mixture = Mixture(sources, {"a": 1}, processor, 512, seed, broken_share=0.2)
    batches = list(islice(mixture.batches(), 130))
    assert sum(batch["tokens"] for batch in batches) > 0.97 * 130 * 512, f"seed {seed}"
    reasons = [str(fault) for batch in batches for fault in batch["faults"]]
    assert any("it is broken" in reason for reason in reasons)
    assert any("it has more than 512 tokens" in reason for reason in reasons)
    assert len(set(reasons)) == len(reasons)
    with pytest.raises(ValueError, match=r"samples cannot be read, more than 10\.00%; the last one: a, \d+: it is"):
        list(islice(Mixture(sources, {"a": 1}, processor, 512, seed, broken_share=0.1).batches(), 50))
    with pytest.raises(ValueError, match=r"none of the last 100 samples can be used.*it has more than 5 tokens"):
        next(Mixture({"a": Words("a")}, {"a": 1}, processor, 5, seed).batches())


def test_a_long_conversation_keeps_the_turns_that_fit(processor: Processor, tmp_path: Path, seed: int) -> None:
    turns = [{"from": who, "value": f"{who} {i} " * 20} for i in range(9) for who in ("human", "gpt")]
    path = tmp_path / "long.json"
    path.write_text(json.dumps([{"conversations": turns}]))
    reader = Llava(path)
    batch = next(Mixture({"a": reader}, {"a": 1}, processor, 1000, seed, window=1).batches())
    ((ids, targets),) = pieces(batch).values()
    kept = next(n for n in range(18, 0, -2) if processor(reader[0].messages[:n], generate=False).ids.shape[1] <= 1000)
    assert 2 <= kept < 18
    assert ids == processor(reader[0].messages[:kept], generate=False).ids[0].tolist()
    assert targets[-2] == ids[-1]


def test_a_broken_picture_leaves_its_sample_out(processor: Processor, tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path, records = write_llava(tmp_path, seed, 40)
    wrong = {record["id"]: record for record in records if record.get("image")}
    name = rng.choice(sorted(wrong))
    names = wrong[name]["image"]
    (tmp_path / (names if isinstance(names, str) else names[-1])).write_bytes(b"no picture" + rng.randbytes(300))

    def batches(share: float) -> list[dict[str, Any]]:
        mixture = Mixture({"a": Llava(path)}, {"a": 1}, processor, 700, seed, window=4, broken_share=share)
        found, places = [], 0
        for batch in mixture.batches():
            found.append(batch)
            places += len(batch["samples"]) + len(batch["faults"])
            if places >= 200:
                return found
        raise AssertionError

    found = batches(0.1)
    faults = [fault for batch in found for fault in batch["faults"]]
    assert {fault.id.partition(" ")[2] for fault in faults} == {f"({name})"}, f"seed {seed}"
    assert not any(f"({name})" in sample for batch in found for sample in batch["samples"])
    for batch in found:
        placeholders = int((batch["ids"] == processor.tokenizer.image_id).sum())
        pictures = 0 if batch["pixels"] is None else len(batch["pixels"])
        assert placeholders == pictures * processor.image_tokens
        assert len(batch["tiles"]) == pictures
    with pytest.raises(ValueError, match=r"more than 0\.50%.*not a picture"):
        batches(0.005)


@torch.no_grad()
def test_the_model_reads_a_pack_as_it_reads_each_conversation(
    listening_model: MMRWKV7, processor: Processor, tmp_path: Path, seed: int
) -> None:
    """Pictures and sounds land at their own placeholders, and states do not leak."""
    reader = conversations(tmp_path, seed)
    by_id = {reader[i].id: reader[i] for i in range(len(reader))}
    model = listening_model
    packs = Mixture({"a": reader}, {"a": 1}, processor, 900, seed, window=2).batches()
    batch = next(batch for batch in packs if len(batch["samples"]) > 1 and batch["pixels"] is not None)
    features = None if batch["pixels"] is None else model.encode(batch["pixels"], batch["tiles"])
    sounds = None if batch["windows"] is None else model.hear(batch["windows"], batch["frames"])
    x = model.embed(batch["ids"], features, sounds)
    logits, _ = model.lm(x=x, cu_seqlens=batch["cu_seqlens"])
    for name, (begin, end) in zip(batch["samples"], pairwise(batch["cu_seqlens"].tolist()), strict=False):
        row = processor(by_id[name].messages, generate=False)
        windows = [window for sound in row.sounds for window in processor.sound_tokens.frontend.windows(sound.blocks())]
        heard = (
            {
                "windows": torch.stack([window for window, _ in windows]),
                "frames": torch.tensor([count for _, count in windows]),
            }
            if windows
            else {}
        )
        alone, _ = model(row.ids, pixels=row.pixels, tiles=row.tiles, **heard)
        error = (logits[:, begin:end] - alone).norm() / alone.norm()
        assert error < 1e-5, f"seed {seed}, {name}"


@pytest.mark.parametrize("thumbnail", [False, True])
def test_tiles_are_counted_from_the_header(tmp_path: Path, seed: int, thumbnail: bool) -> None:
    rng = random.Random(seed)
    tiling = Tiling(64, closest=rng.random() < 0.5, most=rng.choice([None, 3, 6]), thumbnail=thumbnail)
    for orientation in (None, 3, 6, 8):
        image = Image.new("RGB", (rng.randint(1, 400), rng.randint(1, 400)))
        exif = image.getexif()
        if orientation is not None:
            exif[0x0112] = orientation
        file = io.BytesIO()
        image.save(file, "JPEG", exif=exif)
        upright = Image.new("RGB", image.size[::-1] if orientation in (6, 8) else image.size)
        assert picture_size(file) == upright.size, f"seed {seed}"
        assert tiles_of(file.getvalue(), tiling) == len(tiling.cut(upright)), f"seed {seed}, {image.size}"


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_samples_are_counted_from_the_header(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    for rate in (8000, 16_000, 22_050, 44_100):
        noise = np.random.default_rng(seed).normal(0, 0.1, (rng.randint(1000, 90_000), rng.choice([1, 2])))
        file = io.BytesIO()
        soundfile.write(file, noise, rate, format=kind)
        expected = Sound.read(file.getvalue(), 16_000).samples
        assert samples_of(file.getvalue(), 16_000) == expected, f"seed {seed}, rate {rate}"
    odd = (np.zeros(12_345), rng.randint(4000, 96_000))
    assert samples_of(odd, 16_000) == Sound.read(odd, 16_000).samples, f"seed {seed}"
    with pytest.raises(ValueError, match="the sound is broken, missing or no sound"):
        samples_of(b"no sound", 16_000)


def test_packing_fits_and_forgets_nothing(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(30):
        room = rng.randint(1, 100)
        lengths = [rng.randint(1, room) for _ in range(rng.randrange(60))]
        packs = pack(lengths, room)
        assert sorted(index for found in packs for index in found) == list(range(len(lengths))), f"seed {seed}"
        loads = [sum(lengths[i] for i in found) for found in packs]
        assert all(0 < load <= room for load in loads), f"seed {seed}"
        assert sum(load <= room / 2 for load in loads) <= 1, f"seed {seed}"  # two such would be one


def test_what_makes_no_mixture_is_refused(processor: Processor) -> None:
    reader = Words("a")
    for weights in ({"b": 1.0}, {"a": 0.0}, {"a": -1.0}):
        with pytest.raises(ValueError, match="weights"):
            Mixture({"a": reader}, weights, processor, 100)
    mixture = Mixture({"a": reader}, {"a": 1}, processor, 100)
    with pytest.raises(ValueError, match="rank 1 of 2 takes from steps of 3 packs"):
        next(mixture.batches(rank=1, world=2, packs_per_step=3))
    with pytest.raises(ValueError, match=r"the position is one in \['b'\], the data is \['a'\]"):
        next(mixture.batches({"sources": {"b": None}}))
    position = next(mixture.batches())["position"]
    with pytest.raises(ValueError, match=r"the position is one in packs of .*100.*expected .*120"):
        next(Mixture({"a": reader}, {"a": 1}, processor, 120).batches(position))


def test_the_cache_gives_what_the_encoders_give_and_then_needs_neither_pixels_nor_windows(
    listening_model: MMRWKV7, processor: Processor, tmp_path: Path, seed: int
) -> None:
    path, _ = write_llava(tmp_path / "data", seed, 16, sounds=True)
    model = listening_model
    cache = FeatureCache(tmp_path / "cache", model)

    def batches(**options: Any) -> Sequence[dict[str, Any]]:
        return list(islice(Mixture({"a": Llava(path)}, {"a": 1}, processor, 500, seed, **options).batches(), 16))

    with torch.no_grad():
        plain = batches()
        assert any(batch["frames"] is not None for batch in plain), f"seed {seed}"
        for turn in range(2):
            found = batches(cache=cache)
            assert turn == 0 or all(batch["pixels"] is None and batch["windows"] is None for batch in found)
            for batch, whole in zip(found, plain, strict=True):
                seen, heard = cache.see(model, batch), cache.hear(model, batch)
                assert (seen is None) == (whole["pixels"] is None)
                assert (heard is None) == (whole["windows"] is None)
                if seen is not None:
                    expected = model.encode(whole["pixels"], whole["tiles"])
                    torch.testing.assert_close(model.project(seen, batch["tiles"]), expected)
                if heard is not None:
                    assert torch.equal(batch["frames"], whole["frames"]), f"seed {seed}"
                    expected = model.hear(whole["windows"], whole["frames"])
                    torch.testing.assert_close(model.sound.project(heard, batch["frames"]), expected)


@pytest.mark.slow
def test_real_conversations_fill_their_packs(data_dir: Path, listening_model: MMRWKV7) -> None:
    processor = Pipeline(listening_model).processor
    mixture = Mixture({"a": open_reader(data_dir / "llava_format" / "dummy.json")}, {"a": 1}, processor, 2048)
    batches = list(islice(mixture.batches(), 20))
    assert not any(batch["faults"] for batch in batches)
    assert sum(batch["tokens"] for batch in batches) > 0.95 * 20 * 2048
