"""ScienceQA: which option an answer names."""

from pathlib import Path

import pytest

from eval.metrics import scienceqa
from tests.eval import cases


@pytest.mark.parametrize(
    ("text", "choices", "index"),
    [
        ("A", 2, 0),
        ("E", 5, 4),
        ("E", 4, -1),  # there is no fifth option
        ("F", 6, -1),  # letters end at E
        ("a", 2, -1),
        ("B.", 3, -1),
        ("B. ", 3, 1),
        ("B. the moon", 3, 1),
        ("B.the moon", 3, -1),
        ("(B)", 3, -1),
        ("The answer is C.", 3, 2),
        ("The answer is C", 3, -1),  # one character must follow
        ("So: The answer is C!", 3, 2),
        ("The answer is A. The answer is B.", 3, -1),
        ("AB", 3, -1),
        ("", 3, -1),
        (None, 3, -1),
    ],
)
def test_reads_options_as_llava_does(text: str | None, choices: int, index: int) -> None:
    assert scienceqa.parse(text, choices) == index


def test_official_parse_agrees(data_dir: Path) -> None:
    official = cases.read(data_dir, "scienceqa")
    for case in official:
        index = scienceqa.parse(case["prediction"], case["n_choices"])
        assert index == case["parsed_index"], case
        assert (index == case["answer"]) == case["correct"], case
