"""The names of AudioSet's classes."""

from pathlib import Path

FILE = Path(__file__).parent / "audioset_labels.txt"


def labels(classes: int) -> tuple[str, ...]:
    """The display names of AudioSet's 527 classes, in the order of its `class_labels_indices.csv`, which taggers keep;
    numbers for any other number of classes."""
    lines = FILE.read_text("utf-8").splitlines()
    names = tuple(line for line in lines if line and not line.startswith("#"))
    return names if classes == len(names) else tuple(f"class {i}" for i in range(classes))
