"""Figures that others have published, to stand beside ours with their source and whether they may be compared.

They are their authors' own and were not measured again here.
"""

from dataclasses import dataclass

VISUAL = "README of howard-hou/VisualRWKV, v7.00"
WORLD = "README of WorldRWKV, SigLIP 2"
LLAVA = "LLaVA 1.5, as its authors report it"

_YES = "yes"
_OTHER_SPLIT = "no: papers report test-dev, which only EvalAI scores; this is val"
_NO_SPLIT = "unclear: the source names no split"
_OCR = "unclear: the source does not say whether OCR tokens were in the prompt"
_WITH_OCR = "no: OCR tokens were in its prompt"
_WITHOUT_OCR = "no: no OCR tokens were in its prompt"
_GQA = "if it is testdev_balanced, which the source does not say"


@dataclass(frozen=True)
class Figure:
    """A score of a model, in percent; `comparable` is "yes", or says why not."""

    model: str
    value: float
    source: str
    comparable: str


def _series(comparable: str, visual: tuple[float, ...], world: tuple[float, ...]) -> tuple[Figure, ...]:
    names = [f"VisualRWKV-7 {size}" for size in ("0.1B", "0.4B", "1.5B")]
    found = [Figure(name, value, VISUAL, comparable) for name, value in zip(names, visual, strict=bool(visual))]
    names = [f"WorldRWKV {size}" for size in ("0.4B", "1.5B", "3B")]
    return (*found, *(Figure(name, value, WORLD, comparable) for name, value in zip(names, world, strict=True)))


def figures(task: str) -> tuple[Figure, ...]:
    """What is known of a task; empty for most."""
    vqav2 = (75.22, 77.85, 79.84), (72.04, 76.95, 78.30)
    textvqa = (37.90, 41.05, 49.49), (38.75, 44.96, 51.09)
    match task:
        case "vqav2":
            return (*_series(_OTHER_SPLIT, *vqav2), Figure("LLaVA-1.5 13B", 80.0, LLAVA, _OTHER_SPLIT))
        case "vqav2_test_dev":
            return (*_series(_NO_SPLIT, *vqav2), Figure("LLaVA-1.5 13B", 80.0, LLAVA, _YES))
        case "textvqa":
            llava = Figure("LLaVA-1.5 13B", 48.7, "lmms-eval issues 6 and 51", _YES)
            return (*_series(_OCR, *textvqa), llava, Figure("LLaVA-1.5 13B, OCR", 61.3, LLAVA, _WITH_OCR))
        case "textvqa_ocr":
            llava = Figure("LLaVA-1.5 13B, no OCR", 48.7, "lmms-eval issues 6 and 51", _WITHOUT_OCR)
            return (*_series(_OCR, *textvqa), Figure("LLaVA-1.5 13B", 61.3, LLAVA, _YES), llava)
        case "gqa":
            series = _series(_GQA, (59.92, 62.30, 63.20), (55.52, 58.88, 60.75))
            return (*series, Figure("LLaVA-1.5 13B", 63.3, LLAVA, _YES))
        case "scienceqa":
            return _series("yes: IMG, the questions with a picture", (50.62, 54.98, 59.74), (43.32, 63.10, 70.93))
        case "pope":
            series = _series("if it is the mean F1, which the source does not say", (), (86.6, 86.7, 87.1))
            source = "computed from the answers that LLaVA 1.5's authors published"
            return (*series, Figure("LLaVA-1.5 13B", 85.95, source, "yes: mean F1, random with 2,910 rows"))
    return ()
