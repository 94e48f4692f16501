"""The cases of the folder of real data that official scorers judged."""

import json
from pathlib import Path
from typing import Any


def read(data_dir: Path, name: str) -> list[dict[str, Any]]:
    """The lines of one file of cases."""
    path = data_dir / "metric_cases" / f"{name}_cases.jsonl"
    cases = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    assert cases, path
    return cases
