"""What a measurement prints; how long it took is not a test's business."""

import json

import pytest

from mm_rwkv7.bench.__main__ import main
from mm_rwkv7.ops import wkv_reason

SMALL = ["wkv", "--T", "8", "--H", "1", "--N", "4", "--rounds", "2"]


def test_json_is_a_list_of_rows_with_a_reference(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    out, progress = capsys.readouterr()
    reference, fast = json.loads(out)
    assert (reference["path"], fast["path"]) == ("reference", "torch-chunked")
    assert reference["forward_ratio"] == reference["forward_backward_ratio"] == 1
    expected = reference["forward_ms"]["median"] / fast["forward_ms"]["median"]
    assert fast["forward_ratio"] == pytest.approx(expected, rel=0.05, abs=0.006)  # rounded to hundredths
    for row in (reference, fast):
        assert row["forward_ms"]["low"] <= row["forward_ms"]["median"] <= row["forward_ms"]["high"]
        assert (row["B"], row["T"], row["H"], row["N"]) == (1, 8, 1, 4)
    assert "round 2 of 2" in progress


def test_the_table_has_a_column_for_each_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SMALL) == 0
    first, *others = capsys.readouterr().out.splitlines()
    assert first.split() == ["path", "reference", "torch-chunked"]
    assert any(line.startswith("forward_backward_ms") and " to " in line for line in others)


def test_the_kernel_has_a_row_where_it_can_be_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--N", "8"]) == 0
    first, *_ = capsys.readouterr().out.splitlines()
    assert ("native" in first) == (wkv_reason("cpu") is None)


@pytest.mark.parametrize(
    ("arguments", "message"), [(["--T", "0"], "--T is 0, expected 1"), (["--rounds", "1"], "--rounds is 1, expected 2")]
)
def test_bad_sizes_end_with_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, *arguments]) == 2
    out, complaint = capsys.readouterr()
    assert not out
    assert message in complaint
    assert complaint.count("\n") == 1
