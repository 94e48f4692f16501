"""VQA accuracy as the VQA challenge's server computes it (Python 3), its quirks included.

An answer is compared with those of ten annotators after both were normalised. The rules below are the official ones
even where they look like slips, because a score is comparable only if they are kept.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from eval.metrics.mean import mean, mean_by

_DIGITS = "zero one two three four five six seven eight nine ten"
NUMBERS = {"none": "0"} | {word: str(digit) for digit, word in enumerate(_DIGITS.split())}
ARTICLES = {"a", "an", "the"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # the official pattern means to look behind, too, but does not
MOST_PERIODS = 32  # the official call hands re.UNICODE (32) to `count`

_CONTRACTED = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't it'd
it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't somebody'll
somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd they'll
they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd who'll
who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'd've y'all'll you'd've
"""
# A contraction that lost one of its apostrophes gets it back.
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED.split()
    for place, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"


def one_line(text: str) -> str:
    """`text` with line feeds and tabs as spaces, stripped."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """Each mark becomes a space, or nothing if it stands beside a space anywhere in `text` or if `text` holds a number
    with a comma; periods go unless a digit follows, the first 32 of them."""
    number = COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        gone = number or mark + " " in text or " " + mark in text
        out = out.replace(mark, "" if gone else " ")
    return PERIOD.sub("", out, count=MOST_PERIODS)


def normalize_words(text: str) -> str:
    """Lower case, number words up to ten as digits ("none" is 0), no articles, apostrophes back in contractions."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)  # annotators repeat one another
def normalize(text: str) -> str:
    """What is compared when annotators disagree (see `accuracy`)."""
    return normalize_words(strip_punctuation(one_line(text)))


def accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The official accuracy, 0 to 1, of one prediction against the annotators' answers (ten in the official files).

    Where all annotators gave the same string, prediction and answers are compared as they are, capitals and punctuation
    included; else normalised.
    """
    prediction, answers = one_line(prediction), [one_line(answer) for answer in answers]
    if len(set(answers)) > 1:
        prediction, answers = normalize(prediction), [normalize(answer) for answer in answers]
    return leave_one_out(prediction, answers)


def leave_one_out(prediction: str, answers: Sequence[str]) -> float:
    """Mean over annotators of min(1, matches among the others / 3)."""
    if not answers:
        raise ValueError("no annotators' answers: VQA accuracy needs at least one")
    same = [answer == prediction for answer in answers]
    matches = sum(same)
    return sum(min(1.0, (matches - own) / 3) for own in same) / len(same)


def percent(scores: Iterable[float]) -> float:
    """100 times the mean, rounded to two decimals as the official tables are."""
    return round(100 * mean(scores), 2)


def percent_by(scores: Iterable[float], groups: Sequence[str]) -> dict[str, float]:
    """`percent` per group (question type, answer type), groups in sorted order."""
    return {group: round(100 * value, 2) for group, value in mean_by(scores, groups).items()}
