import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mm_rwkv7.synthetic import scenes
from training.singles.sources import NLVR, SOURCES, EasyVQA, Emoji, Flowers, Sample, Scenes, draw, random_crop

SIZE = 64


def test_scenes_are_trained_on_even_seeds_and_judged_on_odd_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def spy(seed: int, size: int) -> Any:
        seeds.append(seed)
        return scene

    scene = scenes.sample(4, SIZE)
    source = Scenes(None, SIZE)
    monkeypatch.setattr(scenes, "sample", spy)
    rng = random.Random(0)
    for _ in range(200):
        source.train(rng)
    source.texts()
    assert len(set(seeds)) > 100
    assert not any(seed % 2 for seed in seeds)
    seeds.clear()
    source.held_out(50)
    assert len(set(seeds)) == 50
    assert all(seed % 2 for seed in seeds)


def test_a_scene_becomes_a_sample() -> None:
    sample = Scenes(None, SIZE).train(random.Random(3))
    assert sample.image.size == (SIZE, SIZE)
    assert sample.caption
    assert sample.qa
    assert 1 <= len(sample.objects) <= 8
    assert sample.label in Scenes.labels


@pytest.mark.parametrize(("name", "most"), [("scenes_of_2", 2), ("scenes_of_4", 4)])
def test_scenes_of_few_objects_are_for_training_only(name: str, most: int) -> None:
    source, rng = SOURCES[name](Path(), SIZE), random.Random(0)
    assert {len(source.train(rng).objects) for _ in range(30)} == set(range(1, most + 1))
    assert source.held_out(5) == []


def assert_usable(samples: list[Sample]) -> None:
    for sample in samples:
        assert sample.image.mode == "RGB"
        assert sample.caption
        assert sample.qa
        assert all(question and answer for question, answer in sample.qa)


class Chosen(random.Random):
    """Remembers from which rows a source chooses."""

    rows: list[dict[str, Any]]

    def choice(self, rows: Any) -> Any:
        self.rows = rows
        return super().choice(rows)


@pytest.mark.slow  # decodes all pictures
@pytest.mark.parametrize(("kind", "share"), [(Flowers, 5), (EasyVQA, 10), (NLVR, 5)])
def test_what_is_kept_out_is_never_trained_on(data_dir: Path, kind: Any, share: int) -> None:
    source = kind(data_dir, SIZE)
    rng = Chosen(0)
    assert_usable([source.train(rng) for _ in range(20)])
    kept = source.table.kept
    assert_usable(source.held_out(20))
    assert len(source.held_out(10**6)) == len(kept)
    assert len(kept) + len(rng.rows) == len(source.table.rows)
    assert len(kept) == pytest.approx(len(source.table.rows) / share, rel=0.15)
    assert not {id(row) for row in kept} & {id(row) for row in rng.rows}
    if kind is NLVR:  # a group's statements share their pictures

        def group(row: dict[str, Any]) -> str:
            return str(row["name"].split("-")[1])

        assert not set(map(group, kept)) & set(map(group, rng.rows))
    else:
        seen = {row["image"].tobytes() for row in rng.rows}
        assert not [row["name"] for row in kept if row["image"].tobytes() in seen]


@pytest.mark.slow  # decodes all pictures
def test_emoji_are_placed_anew_for_judging(data_dir: Path) -> None:
    source = Emoji(data_dir, SIZE)
    assert_usable([source.train(random.Random(0))])
    one, again = source.held_out(30), source.held_out(30)
    assert_usable(one)
    assert [sample.image.tobytes() for sample in one] == [sample.image.tobytes() for sample in again]
    assert len({sample.label for sample in one}) == 30
    assert all(sample.qa == (("What is this emoji?", sample.label),) for sample in one)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    for name in ("emoji", "flowers", "easy_vqa", "nlvr"):
        with pytest.raises(ValueError, match=f"{name}.*parquet is missing"):
            SOURCES[name](tmp_path, SIZE)


@pytest.mark.parametrize("smallest", [0.3, 0.9, 1.0])
def test_a_crop_is_a_part_of_the_picture(smallest: float) -> None:
    picture = scenes.sample(0, 100).image.resize((120, 70))
    for seed in range(20):
        crop = random_crop(picture, random.Random(seed), 48, smallest)
        assert (crop.size, crop.mode) == ((48, 48), "RGB")
    again = random_crop(picture, random.Random(19), 48, smallest)
    assert again.tobytes() == crop.tobytes()


def test_a_broken_table_or_picture_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    file = tmp_path / "flowers/train.parquet"
    file.parent.mkdir()
    file.write_text("no parquet")
    with pytest.raises(ValueError, match=r"train\.parquet is no parquet table"):
        Flowers(tmp_path, SIZE)
    pyarrow.write_table(pa.Table.from_pylist([{"image": {"bytes": b"no picture", "path": "a"}, "label": "rose"}]), file)
    with pytest.raises(ValueError, match=r"train\.parquet, row 0: no picture"):
        Flowers(tmp_path, SIZE)


@pytest.mark.parametrize(
    ("name", "table", "columns"),
    [
        ("flowers", "flowers/train.parquet", ["label"]),
        ("easy_vqa", "easy_vqa/train.parquet", ["answers", "questions"]),
        ("nlvr", "nlvr/dev.parquet", ["boxes", "label", "sentence"]),
    ],
)
def test_a_table_of_other_columns_or_no_rows_is_named(
    tmp_path: Path, name: str, table: str, columns: Sequence[str]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    file = tmp_path / table
    file.parent.mkdir()
    for left_out in columns:
        row = {"image": {"bytes": b"?", "path": "a"}, **{column: "?" for column in columns if column != left_out}}
        parquet.write_table(pa.Table.from_pylist([row]), file)
        with pytest.raises(ValueError, match=rf"parquet lacks the columns \['{left_out}'\], it has \[.*'image'"):
            SOURCES[name](tmp_path, 32)
    parquet.write_table(pa.table({"image": []}), file)
    with pytest.raises(ValueError, match="has no rows"):
        SOURCES[name](tmp_path, 32)


def test_some_of_what_is_kept_out_are_of_every_label() -> None:
    """A table often lies in the order of its labels: the first rows of it would be flowers of one kind."""
    rows = [(label, number) for label in range(5) for number in range(100)]
    some = draw(rows, 50)
    assert len(set(some)) == 50
    assert {label for label, _ in some} == set(range(5))
    assert draw(rows, 50) == some
    assert draw(rows, 500) == draw(rows, 10**6) == rows
