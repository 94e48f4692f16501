"""GQA's official scores: accuracy by kind of question, validity, plausibility, consistency and distribution.

Grounding, the seventh official score, is about attention maps, which a recurrent model has none of.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from eval.metrics.mean import mean, mean_by

COMMON = (
    "color",
    "material",
    "shape",
)  # what is valid and plausible where the question is what two things have in common


@dataclass(frozen=True)
class Question:
    """What the scores look at. `structural`, `semantic` and `detailed` are its types, `steps` and `words` its lengths,
    `group` the global group of the distribution (None: in none), `entailed` the ids of what its answer implies."""

    answer: str
    balanced: bool
    structural: str
    semantic: str
    detailed: str
    steps: int
    words: int
    group: str | None
    entailed: tuple[str, ...]


@dataclass(frozen=True)
class Choices:
    """The answers that make sense to a question, and those that are likely in the world."""

    valid: Collection[str]
    plausible: Collection[str]


def convert(prediction: str, variant: str) -> str:
    """What is compared. "raw": the text as it came, which is what the official script does; "llava": without final
    periods and in lower case, as LLaVA and those after it prepare their files."""
    if variant == "raw":
        return prediction
    if variant == "llava":
        return prediction.rstrip(".").lower()
    raise ValueError(f'variant is {variant!r}, expected "raw" or "llava"')


def correct(prediction: str, answer: str, variant: str = "raw") -> bool:
    """Whether the prediction is the answer, letter by letter, after `convert`."""
    return convert(prediction, variant) == answer


def steps(operations: Iterable[tuple[str, str]]) -> int:
    """How many reasoning steps (operation, argument) a question takes; the last, which asks for the answer, is none."""
    final = ("exist", "query: name", "choose name")
    return sum(not any(name in f"{operation}: {argument}" for name in final) for operation, argument in operations)


def scores(
    questions: Mapping[str, Question], predictions: Mapping[str, str], choices: Mapping[str, Choices] | None = None
) -> dict[str, float]:
    """The official numbers over the balanced questions that have a prediction, in percent, and `distribution`.

    `predictions` were converted before. `validity` and `plausibility` need `choices`; what there is no question for is
    left out. Consistency is a function of its own.
    """
    asked = {id: question for id, question in questions.items() if question.balanced and id in predictions}
    right = {id: predictions[id] == question.answer for id, question in asked.items()}
    kinds: dict[str, list[bool]] = {"binary": [], "open": []}
    for id, question in asked.items():
        kinds["open" if question.structural == "query" else "binary"].append(right[id])
    found = {"accuracy": list(right.values()), **kinds}
    if choices is not None:
        found["validity"] = [_belongs(predictions[id], q, choices[id].valid) for id, q in asked.items()]
        found["plausibility"] = [_belongs(predictions[id], q, choices[id].plausible) for id, q in asked.items()]
    metrics = {name: 100 * mean(values) for name, values in found.items() if values}
    if any(question.group is not None for question in asked.values()):
        metrics["distribution"] = distribution(asked, predictions)
    return metrics


def tables(questions: Mapping[str, Question], predictions: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """The official tables: accuracy in percent by structural and semantic type, number of steps and of words."""
    asked = [(id, question) for id, question in questions.items() if question.balanced and id in predictions]
    right = [100.0 * (predictions[id] == question.answer) for id, question in asked]
    lengths = {
        "steps": mean_by(right, [question.steps for _, question in asked]),
        "words": mean_by(right, [question.words for _, question in asked]),
    }
    return {
        "structural type": mean_by(right, [question.structural for _, question in asked]),
        "semantic type": mean_by(right, [question.semantic for _, question in asked]),
        **{name: {str(length): value for length, value in table.items()} for name, table in lengths.items()},
    }


def consistency(questions: Mapping[str, Question], predictions: Mapping[str, str]) -> float | None:
    """For each balanced question answered rightly: the share of right answers to the other questions that its answer
    implies; the mean in percent. None where there is no such question. Every question needs a prediction, and so does
    what a balanced one implies: a ValueError names what is missing, where the official script ends with a KeyError."""
    shares = []
    for id, question in questions.items():
        if not question.balanced:
            continue
        implied = [other for other in question.entailed if other != id]
        for other in (id, *implied):
            if other not in questions or other not in predictions:
                what = "prediction" if other in questions else "question"
                raise ValueError(
                    f"consistency of question {id!r}: there is no {what} {other!r}, expected all of a split"
                )
        if implied and predictions[id] == question.answer:
            shares.append(mean(predictions[other] == questions[other].answer for other in implied))
    return 100 * mean(shares) if shares else None


def distribution(questions: Mapping[str, Question], predictions: Mapping[str, str]) -> float:
    """Chi-square distance of the predicted answers' frequencies from the right ones', by global group, mean over groups
    weighted by size, divided by 100; lower is better. Predicted answers that are right nowhere in a group count not."""
    gold: dict[str, Counter[str]] = {}
    predicted: dict[str, Counter[str]] = {}
    for id, question in questions.items():
        if question.group is not None:
            gold.setdefault(question.group, Counter())[question.answer] += 1
            predicted.setdefault(question.group, Counter())[predictions[id]] += 1
    weighted, size = 0.0, 0
    for group, expected in gold.items():
        distance = sum((predicted[group][answer] - count) ** 2 / count for answer, count in expected.items())
        weighted += distance * expected.total()
        size += expected.total()
    return weighted / size / 100


def _belongs(prediction: str, question: Question, group: Collection[str]) -> bool:
    return prediction in (COMMON if "Common" in question.detailed else group)
