"""BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE of captions by pycocoevalcap, the official COCO code, after its tokenizer.

The tokenizer, METEOR and SPICE are Java programs. Where Java or the package is missing there are no scores: another
tokenizer gives other numbers under the same names.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


@dataclass(frozen=True)
class CaptionScores:
    """`metrics` by name, in percent as papers print them (a CIDEr-D of 1.2 is 120); `per_sample`: CIDEr-D of each
    caption, its mean is the metric; `left_out`: the metrics that could not be computed, and why."""

    metrics: dict[str, float]
    per_sample: dict[str, float]
    left_out: dict[str, str]


def scores(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """`evaluate(...).metrics`."""
    return evaluate(predictions, references).metrics


def evaluate(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Score one caption each against its references, both by id.

    CIDEr-D weighs words by how many of *these* ids' references use them: its value for a part of a data set says
    nothing about the whole. ValueError where an id has no reference, or where Java or the package is missing.
    """
    if not predictions:
        raise ValueError("no captions to score")
    if lacking := [id for id in predictions if not references.get(id)]:
        raise ValueError(f"{len(lacking)} captions have no reference, the first is {lacking[0]!r}")
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ValueError(
            f"captions are scored by pycocoevalcap, which is not here ({error}): pip install pycocoevalcap"
        ) from error
    if shutil.which("java") is None:
        raise ValueError(
            "captions are scored by Java programs (tokenizer, METEOR), and there is no java on the path: "
            "install a Java runtime, version 8 or later (Debian: apt-get install default-jre-headless)"
        )
    written = tokenize({id: [text] for id, text in predictions.items()})
    known = tokenize({id: references[id] for id in predictions})

    bleu, _ = Bleu(4).compute_score(known, written, verbose=0)
    cider, each = Cider().compute_score(known, written)
    found: dict[str, float | str] = {f"BLEU-{n}": value for n, value in enumerate(bleu, start=1)}
    meteor, spice = _meteor(known, written), _spice(known, written)
    found |= {"METEOR": meteor, "ROUGE-L": Rouge().compute_score(known, written)[0], "CIDEr-D": cider, "SPICE": spice}
    left_out = {name: value for name, value in found.items() if isinstance(value, str)}
    return CaptionScores(
        metrics={name: 100 * float(value) for name, value in found.items() if name not in left_out},
        per_sample={id: 100 * float(value) for id, value in zip(predictions, each, strict=True)},
        left_out=left_out,
    )


def tokenize(captions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Captions by id as the official tokenizer writes them: lower case, without punctuation."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # The tokenizer works by lines, and more ends a line in Java than in Python: a stray "\r" would shift all captions
    # that follow. Tokens are the same with any white space between them.
    lines = {id: [{"caption": " ".join(text.split())} for text in texts] for id, texts in captions.items()}
    try:
        tokenized: dict[str, list[str]] = PTBTokenizer().tokenize(lines)
    except PermissionError as error:
        raise ValueError(f"pycocoevalcap writes a file beside its tokenizer and may not: {error}") from error
    if any(len(tokenized.get(id, ())) != len(texts) for id, texts in captions.items()):
        raise ValueError("the tokenizer of pycocoevalcap, a Java program, stopped too early; its message stands above")
    return tokenized


def _meteor(references: Mapping[str, list[str]], predictions: Mapping[str, list[str]]) -> float | str:
    """The score, 0 to 1, or why there is none."""
    from pycocoevalcap.meteor import meteor

    if not (Path(meteor.__file__).parent / meteor.METEOR_JAR).is_file():
        return (
            f"{meteor.METEOR_JAR} is not in pycocoevalcap/meteor; pip install --force-reinstall pycocoevalcap brings it"
        )
    scorer = meteor.Meteor()
    try:
        return float(scorer.compute_score(references, predictions)[0])
    except (OSError, ValueError) as error:  # the pipe to a program that ended, or what it said instead of a number
        scorer.lock.release()  # its __del__ waits for the lock, and closes what cannot be flushed any more
        with suppress(OSError):
            scorer.meteor_p.stdin.close()
        return f"its Java program failed: {error}"


def _spice(references: Mapping[str, list[str]], predictions: Mapping[str, list[str]]) -> float | str:
    """The score, 0 to 1, or why there is none. pycocoevalcap would download the models itself; evaluation stays off the
    network."""
    from pycocoevalcap.spice import spice

    folder = Path(spice.__file__).parent
    if lacking := [name for name in SPICE_MODELS if not (folder / "lib" / name).is_file()]:
        return (
            f"{' and '.join(lacking)} (Stanford CoreNLP 3.6.0) not in pycocoevalcap/spice/lib; "
            "python -m pycocoevalcap.spice.get_stanford_models downloads them"
        )
    try:
        return float(spice.Spice().compute_score(references, predictions)[0])
    except (subprocess.CalledProcessError, OSError, ValueError) as error:
        return f"its Java program failed: {error}"
