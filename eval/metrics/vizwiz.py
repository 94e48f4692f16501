"""VizWiz by the rule of its own evaluation code, a descendant of VQA's.

The prediction is always normalised, the annotators' answers stand as they were published, and an annotator is left out
by position (answers have no ids here, and VQA's code would leave out all that are equal)."""

from collections.abc import Sequence

from eval.metrics import vqa

UNANSWERABLE = "unanswerable"


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy, 0 to 1, of one prediction."""
    return vqa.leave_one_out(vqa.normalize(prediction), answers)


def answerability(predictions: Sequence[str], answerable: Sequence[bool]) -> dict[str, float]:
    """How well "unanswerable" as the answer tells the questions that are: average precision and F1, 0 to 1, as the
    official code has them of an answerability that is 0 for this answer and 1 for all others."""
    said = [vqa.normalize(text) == UNANSWERABLE for text in predictions]
    both = sum(claim and not possible for claim, possible in zip(said, answerable, strict=True))
    claimed, true = sum(said), len(said) - sum(answerable)
    if not true:
        return {}
    precision, recall = both / claimed if claimed else 0.0, both / true
    return {
        # Two thresholds: only what was called unanswerable, then everything.
        "average_precision": recall * precision + (1 - recall) * true / len(said),
        "f1": 2 * both / (claimed + true),
    }
