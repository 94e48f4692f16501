"""ClothoAQA and MMAU: the official tables, and the rules by which answers count."""

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from eval.tasks.clothoaqa import ClothoAQA
from eval.tasks.mmau import Mmau, MmauLikelihood, matches
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from tests.eval.clips import write, write_sounds

ANSWERS = {  # twenty rows and one: seven questions, three people each
    ("rain, roof.wav", "Is it raining?"): ("yes", "yes", "yes"),
    ("rain, roof.wav", "Is anybody talking?"): ("no", "Yes", "no"),
    ("rain, roof.wav", "What falls?"): ("rain", "Water", "rain"),
    ("train.wav", "Is it raining?"): ("no", "no", "no"),
    ("train.wav", "What passes?"): ("train", "train", "train"),
    ("train.wav", "Where is it?"): ("station", "platform", "outside"),
    ("train.wav", "How many are there?"): ("one", "one", "two"),
}


@pytest.fixture(scope="module")
def clotho(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clothoaqa")
    rows = [
        f'"{sound}",{question},{answer},{"yes" if number else "maybe"}\n'
        for (sound, question), answers in ANSWERS.items()
        for number, answer in enumerate(answers)
    ]
    write(folder / "clotho_aqa_test.csv", "file_name,QuestionText,answer,confidence\n" + "".join(rows))
    write_sounds(folder / "audio_files", ["rain, roof.wav", "train.wav"])
    return folder


def test_clothoaqa_asks_each_question_once(clotho: Path) -> None:
    samples = ClothoAQA().samples(clotho)
    assert [sample.id for sample in samples] == [f"{sound}: {question}" for sound, question in ANSWERS]
    assert samples[2].question == "What falls?\nAnswer the question using a single word or phrase."
    assert (samples[2].expected, samples[2].cluster) == ("rain", "rain, roof.wav")
    assert all(sample.sounds[0].is_file() for sample in samples)


def test_clothoaqa_by_hand(clotho: Path) -> None:
    said = ("Yes.", "yes", " Rain", "no", "a train", "outside!", "two")
    predictions = {sample.id: answer for sample, answer in zip(ClothoAQA().samples(clotho), said, strict=True)}
    scores = ClothoAQA().score(clotho, predictions)
    shares = (3 / 3, 1 / 3, 2 / 3, 3 / 3, 0, 1 / 3, 1 / 3)
    assert list(scores.per_sample.values()) == pytest.approx([100 * share for share in shares])
    assert scores.metrics["accuracy"] == pytest.approx(100 * sum(shares) / 7)
    expected = {
        "all answers": 11 / 21,
        "all majority": 3 / 6,  # nobody agrees where it is
        "all unanimous": 2 / 3,
        "yes/no answers": 7 / 9,
        "yes/no majority": 2 / 3,
        "yes/no unanimous": 2 / 2,
        "single word answers": 4 / 12,
        "single word majority": 1 / 3,
        "single word unanimous": 0 / 1,
    }
    assert {name: scores.metrics[name] for name in expected} == pytest.approx({n: 100 * v for n, v in expected.items()})
    assert scores.breakdown["all"]["unanimous (n)"] == 3


def test_clothoaqa_refuses_what_is_no_table(clotho: Path, tmp_path: Path) -> None:
    text = (clotho / "clotho_aqa_test.csv").read_text("utf-8")
    for old, new, expected in (
        (",no,", ", ,", "line 5: the answer is empty"),
        ("QuestionText", "question", "line 2: there is no 'QuestionText'"),
        (",maybe", "", "line 2: there are 3 fields, expected 4"),
    ):
        write(tmp_path / "clotho_aqa_test.csv", text.replace(old, new, 1))
        with pytest.raises(ValueError, match=expected):
            ClothoAQA().samples(tmp_path)


def record(number: int) -> dict[str, Any]:
    choices = ["A red bus", "A blue bus", "Two dogs", "Nothing"]
    return {
        "id": f"question-{number}",
        "audio_id": f"./test-mini-audios/{number}.wav",
        "question": "What is heard?",
        "choices": choices[: 2 + number % 3],
        "answer": choices[number % 2],
        "dataset": "made up",
        "task": ("sound", "speech", "music")[number % 3],
        "split": "test-mini",
        "category": ["Reasoning"] if number == 4 else "Reasoning",  # as in the official file
        "sub-category": "Sources",
        "difficulty": ("easy", "hard")[number % 2],
    }


@pytest.fixture(scope="module")
def mmau(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmau")
    write(folder / "mmau-test-mini.json", json.dumps([record(number) for number in range(20)]))
    write_sounds(folder / "test-mini-audios", [f"{number}.wav" for number in range(20)])
    return folder


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("A red bus", True),
        ("the bus is RED, a bus.", True),
        ("a red bus and dogs", False),  # a word that only a wrong choice has
        ("a red", False),  # a word of the answer is missing
        ("a red bus, of course", True),  # words of no choice do no harm
        ("a bus", False),
        ("", False),
        ("A_red bus", False),  # an underscore is a letter of \\w
    ],
)
def test_mmau_matches_words(prediction: str, expected: bool) -> None:
    assert matches("A red bus", prediction, ["A red bus", "A blue bus", "Two dogs"]) is expected


def test_mmau_by_an_independent_rule(mmau: Path, seed: int) -> None:
    rng = random.Random(seed)
    samples = Mmau().samples(mmau)
    pool = ["a", "red", "blue", "bus", "two", "dogs", "nothing", "hums"]
    predictions = {sample.id: " ".join(rng.choices(pool, k=rng.randrange(6))) for sample in samples}

    def right(sample: Any) -> bool:
        said = re.findall("[a-z]+", predictions[sample.id])
        wanted = sample.expected.lower().split()
        foreign = [word for choice in sample.choices for word in choice.lower().split() if word not in wanted]
        return all(word in said for word in wanted) and not any(word in foreign for word in said)

    expected = {sample.id: 100.0 * right(sample) for sample in samples}
    scores = Mmau().score(mmau, predictions)
    assert scores.per_sample == expected, seed
    assert scores.metrics == {"accuracy": sum(expected.values()) / 20}
    hard = [value for name, value in expected.items() if int(name.partition("-")[2]) % 2]
    assert scores.breakdown["difficulty"]["hard"] == sum(hard) / len(hard)
    assert hashlib.sha256((mmau / "mmau-test-mini.json").read_bytes()).hexdigest() in scores.notes[0]


def test_mmau_samples_and_submission(mmau: Path) -> None:
    samples = Mmau().samples(mmau)
    assert samples[1].question == "What is heard?\nAnswer with one of: A red bus / A blue bus / Two dogs"
    assert all(sample.sounds[0].is_file() for sample in samples)
    name, text = Mmau().submission(mmau, {sample.id: f"said {sample.id}" for sample in samples}) or ("", "")
    rows = json.loads(text)
    assert name == "mmau-test-mini.json"
    assert [row["id"] for row in rows] == [sample.id for sample in samples]
    assert all(row["model_output"] == row["model_prediction"] == f"said {row['id']}" for row in rows)


def test_mmau_by_likelihood(mmau: Path, listening_model: MMRWKV7) -> None:
    pipe = Pipeline(listening_model, "ears")
    samples = MmauLikelihood().samples(mmau)[:4]
    predictions = {s.id: row for s, row in zip(samples, MmauLikelihood().predict(pipe, samples), strict=True)}
    scores = MmauLikelihood().score(mmau, predictions)
    for sample in samples:
        row = predictions[sample.id]
        assert len(row) == len(sample.choices)
        right = sample.choices[row.index(max(row))] == sample.expected
        assert scores.per_sample[sample.id] == 100 * right
    assert MmauLikelihood().submission(mmau, predictions) is None
    with pytest.raises(ValueError, match=r"\[0\]: the prediction has 1 numbers, there are 2 choices"):
        MmauLikelihood().score(mmau, {"question-0": [0.5]})


def test_mmau_refuses_what_is_no_list_of_questions(mmau: Path, tmp_path: Path) -> None:
    rows = [record(number) for number in range(3)]
    for change, expected in (
        ({"answer": "A train"}, r"mmau-test-mini.json\[1\]: the answer 'A train' is not among the choices"),
        ({"choices": ["A", 2]}, r"\[1\].choices\[1\]: expected a text, got 2"),
        ({"id": "question-0"}, r"\[1\]: 'question-0' was there before"),
        ({"audio_id": None}, r"\[1\].audio_id: expected a text, got None"),
    ):
        write(tmp_path / "mmau-test-mini.json", json.dumps([rows[0], {**rows[1], **change}, rows[2]]))
        with pytest.raises(ValueError, match=expected):
            Mmau().samples(tmp_path)
