"""TextVQA accuracy by the rule of M4C, which the TextVQA server and LLaVA use.

It differs from VQA's: answers are always normalised, commas and question marks go first, and a possessive 's becomes a
word of its own."""

from collections.abc import Sequence
from functools import lru_cache

from eval.metrics import vqa

ANNOTATORS = 10


@lru_cache(maxsize=1 << 16)  # annotators repeat one another
def normalize(text: str) -> str:
    """What is compared."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return vqa.normalize_words(vqa.strip_punctuation(vqa.one_line(text)))


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy, 0 to 1, of one prediction against the answers of exactly ten annotators."""
    if len(answers) != ANNOTATORS:
        raise ValueError(f"{len(answers)} annotators' answers, expected {ANNOTATORS}")
    return vqa.leave_one_out(normalize(prediction), [normalize(answer) for answer in answers])
