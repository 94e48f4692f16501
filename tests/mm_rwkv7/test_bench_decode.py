"""What `decode` and `prefill` print at tiny sizes; how fast it was is not a test's business."""

import json

import pytest

from mm_rwkv7.bench.__main__ import main

TINY = ["--shape", "tiny", "--device", "cpu", "--rounds", "2", "--json"]


@pytest.mark.parametrize(
    ("bench", "arguments", "paths", "share"),
    [
        ("decode", ["--tokens", "2"], ["step fp32", "modules fp32", "step int8", "pip rwkv fp32"], "share_of_limit"),
        ("prefill", ["--T", "8"], ["hidden fp32", "hidden int8", "pip rwkv fp32"], "share_of_products"),
    ],
)
def test_each_precision_and_the_package_have_a_row(
    bench: str, arguments: list[str], paths: list[str], share: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([bench, *TINY, *arguments, "--dtype", "fp32", "int8"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["path"]: row for row in found if "not_measured" not in row}
    assert list(rows) == paths
    for path, row in rows.items():
        assert row["tokens_per_s"]["low"] <= row["tokens_per_s"]["median"] <= row["tokens_per_s"]["high"]
        assert row[share] > 0
        assert ("times pip rwkv fp32" in row) == (not path.startswith("pip"))
    ours = rows[paths[0]]
    ratio = ours["tokens_per_s"]["median"] / rows["pip rwkv fp32"]["tokens_per_s"]["median"]
    assert ours["times pip rwkv fp32"] == pytest.approx(ratio, rel=0.02, abs=0.01)


@pytest.mark.parametrize("bench", ["decode", "prefill"])
def test_an_unknown_precision_ends_with_one_line(bench: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([bench, *TINY, "--dtype", "fp8"]) == 2
    assert "--dtype is 'fp8', expected some of fp32, bf16, fp16, int8" in capsys.readouterr().err


def test_the_limit_is_the_median_of_readings_around_each_measurement(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two paths in fp32 and one in int8, each warmed up once and measured twice, between two readings."""
    order: list[float] = []

    def reading(_: object) -> float:
        order.append(1e9 * (1 + len(order)))
        return order[-1]

    monkeypatch.setattr("mm_rwkv7.bench.decode.reading_rate", reading)
    assert main(["decode", *TINY, "--tokens", "1", "--dtype", "fp32", "int8"]) == 0
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out) if "not_measured" not in row}
    assert len(order) == 18
    expected = {"step fp32": 8.5, "modules fp32": 8.5, "step int8": 11.5}
    for path, median in expected.items():
        row = rows[path]
        assert row["bandwidth_gb_per_s"]["low"] < median == row["bandwidth_gb_per_s"]["median"]
        limit = row["bandwidth_gb_per_s"]["median"] * 1e3 / row["weights_mb"]
        assert row["limit_tokens_per_s"] == pytest.approx(limit, rel=0.3)
        assert row["share_of_limit"] == pytest.approx(
            row["tokens_per_s"]["median"] / row["limit_tokens_per_s"], rel=0.02
        )
