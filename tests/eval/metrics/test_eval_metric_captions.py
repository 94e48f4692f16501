"""Captions: what pycocoevalcap's parts give when called one by one, and clear errors where something is missing."""

import importlib.util
import random
import shutil
import sys
from pathlib import Path

import pytest

from eval.metrics import captions

here = shutil.which("java") is not None and importlib.util.find_spec("pycocoevalcap") is not None
needs_java = pytest.mark.skipif(not here, reason="pycocoevalcap or Java is not here")

REFERENCES = {
    "1": ("A red square lies on a table.", "There is a red square."),
    "2": ("Two dogs play in the snow.", "Dogs playing, in snow!"),
    "3": ("A man rides a bicycle down the street.", "a man on a bike"),
}
MORE = {**REFERENCES, "4": ("A cat.",)}


@needs_java
@pytest.mark.slow
def test_a_caption_that_is_a_reference_is_perfect() -> None:
    result = captions.evaluate({"4": "", **{id: texts[0].upper() for id, texts in REFERENCES.items()}}, MORE)
    for name in ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L"):
        assert 70 < result.metrics[name] < 100, name  # one caption of four is empty
    assert result.per_sample["4"] == 0
    assert result.metrics["CIDEr-D"] == pytest.approx(sum(result.per_sample.values()) / 4)
    assert "SPICE" in result.metrics or "CoreNLP" in result.left_out["SPICE"]


@needs_java
def test_strange_line_ends_and_empty_captions_shift_nothing(seed: int) -> None:
    dice = random.Random(seed)
    odd = {
        id: [text.replace(" ", dice.choice(["\r", "\x85", "\u2028", "\x0b", "\n", " "])) for text in texts]
        for id, texts in REFERENCES.items()
    }
    tokens = captions.tokenize({"0": [""], **odd, "4": ["", "Café ‘ok’"], "5": [""]})
    assert tokens == {
        "0": [""],
        "1": ["a red square lies on a table", "there is a red square"],
        "2": ["two dogs play in the snow", "dogs playing in snow"],
        "3": ["a man rides a bicycle down the street", "a man on a bike"],
        "4": ["", "café ok"],
        "5": [""],
    }, f"seed {seed}"


@needs_java
@pytest.mark.parametrize("broken", [False, True])
def test_the_others_are_scored_without_meteor(monkeypatch: pytest.MonkeyPatch, broken: bool, tmp_path: Path) -> None:
    from pycocoevalcap.meteor import meteor

    jar = "gone.jar"
    if broken:
        jar = str(tmp_path / "broken.jar")
        Path(jar).write_bytes(b"no archive")
    monkeypatch.setattr(meteor, "METEOR_JAR", jar)
    found = captions.evaluate({id: texts[0] for id, texts in REFERENCES.items()}, REFERENCES)
    assert "METEOR" not in found.metrics
    assert ("Java program failed" if broken else "gone.jar is not in pycocoevalcap/meteor") in found.left_out["METEOR"]
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr-D"} <= found.metrics.keys()


def test_missing_java_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="no java on the path: install"):
        captions.scores({"1": "a square"}, REFERENCES)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.bleu.bleu", None)
    with pytest.raises(ValueError, match="pip install pycocoevalcap"):
        captions.scores({"1": "a square"}, REFERENCES)


@pytest.mark.parametrize("references", [{}, {"1": []}])
def test_a_caption_without_reference_is_an_error(references: dict[str, list[str]]) -> None:
    with pytest.raises(ValueError, match="1 captions have no reference, the first is '1'"):
        captions.scores({"1": "a square"}, references)
