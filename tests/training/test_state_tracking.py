"""Word problems against composition by another's rule; a study that learns, and goes on where it stopped."""

import json
import secrets
from dataclasses import replace
from itertools import permutations
from math import factorial
from pathlib import Path

import pytest
import torch
from sympy.combinatorics import Permutation

from training.__main__ import main
from training.config import load_any, load_recipe
from training.state_tracking import at, build_model, count, evaluate, run_study, train
from training.study import StudyConfig, Task
from training.word_problems import WordProblem

TINY = StudyConfig(
    run="",
    tasks=(Task("parity", "all", 1, 3, 2, 2), Task("s3", "swaps", 2, 2, 1, 3)),
    seeds=(2,),
    width=16,
    head_size=8,
    rank=4,
    trained_length=6,
    tested_length=16,
    batch=4,
    learning_rate=0.003,
    attention_learning_rate=0.001,
    tested_words=32,
)


@pytest.mark.parametrize(("name", "degree"), [("parity", 2), ("s3", 3), ("s5", 5)])
@pytest.mark.parametrize("alphabet", ["all", "swaps"])
def test_products_are_those_of_sympy(name: str, degree: int, alphabet: str) -> None:
    seed = secrets.randbits(32)
    problem = WordProblem.of(name, alphabet)
    elements = [Permutation(list(element)) for element in permutations(range(degree))]
    letters = [e for e in elements if alphabet == "all" or e.is_Identity or [len(c) for c in e.cyclic_form] == [2]]
    assert problem.table.shape == (len(letters), factorial(degree))
    words, products = problem.sample(5, 40, seed)
    for word, told in zip(words.tolist(), products.tolist(), strict=True):
        reached = Permutation(degree - 1)
        for letter, product in zip(word, told, strict=True):
            reached *= letters[letter]  # sympy applies the left one first
            assert elements[product] == reached, f"seed {seed}"
    assert len(set(words.flatten().tolist())) == len(letters) or len(letters) > 20, f"seed {seed}"


def test_parity_is_parity() -> None:
    seed = secrets.randbits(32)
    letters, products = WordProblem.of("parity").sample(8, 50, seed)
    assert products.equal(letters.cumsum(1) % 2), f"seed {seed}"
    assert not letters.equal(WordProblem.of("parity").sample(8, 50, seed + 1)[0])


def test_unknown_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="no word problem 's4' over 'all', expected one of parity, s3, s5 over"):
        WordProblem.of("s4")


@pytest.mark.parametrize("task", TINY.tasks)
def test_models_have_one_size_and_see_no_future(task: Task) -> None:
    problem = WordProblem.of(task.name, task.alphabet)
    config = replace(TINY, width=64, head_size=32, rank=16)
    models = {name: build_model(name, task, config).eval() for name in config.models}
    sizes = {name: count(model) for name, model in models.items()}
    attention = sizes.pop("attention")
    assert len(set(sizes.values())) == 1, sizes
    assert attention >= sizes["rwkv7 x1"], "the baseline is not the smaller one"
    assert attention < 1.01 * sizes["rwkv7 x1"], f"{attention}, {sizes}"
    letters, _ = problem.sample(2, 12, 0)
    other = letters.clone()
    other[:, 7:] = (other[:, 7:] + 1) % len(problem.letters)
    for name, model in models.items():
        with torch.no_grad():
            torch.nn.init.normal_(model.get_parameter("lm.head.weight" if "x" in name else "head.weight"))
            one, two = model(letters), model(other)
        assert one.shape == (2, 12, problem.table.shape[1])
        torch.testing.assert_close(one[:, :7], two[:, :7], msg=name)


def test_a_small_model_learns_parity_beyond_its_lengths() -> None:
    """Guessing is right in half of the cases; 256 words at four times the trained length cannot be luck."""
    task = Task("parity", "all", 1, 250, 1, 1)
    config = replace(TINY, width=32, head_size=16, rank=8, batch=32, trained_length=12, tested_length=48)
    config = replace(config, tested_words=256)
    torch.manual_seed(0)
    problem = WordProblem.of("parity")
    model = build_model("rwkv7 x2", task, config)
    losses = [record["loss"] for record in train(model, problem, task, config, seed=0)]
    accuracy = evaluate(model, problem, config)
    assert at(accuracy, 12) > 0.97, (losses[::25], accuracy)
    assert at(accuracy, 48) > 0.9, (losses[::25], accuracy)


def test_a_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = replace(TINY, run=str(tmp_path / "study"))
    table = run_study(config)
    path = tmp_path / "study" / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 * 3
    assert (tmp_path / "study" / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert table.count("\n") == 1 + 2 * 3
    assert "-" not in table.splitlines()[-1].replace("---", "")

    torn = lines[-1][: lines[-1].index("}") + 1]  # by a kill, where it looks whole
    path.write_text("".join(line + "\n" for line in lines[:-1]) + torn, encoding="utf-8")
    assert run_study(config) == table
    again = path.read_text(encoding="utf-8").splitlines()
    assert again[:-1] == lines[:-1]
    one, other = json.loads(lines[-1]), json.loads(again[-1])
    assert {**one, "seconds": 0} == {**other, "seconds": 0}, "the same seed gives the same run"

    run_study(replace(config, batch=3))
    assert len(path.read_text(encoding="utf-8").splitlines()) == len(again) + 6, "other settings are other runs"


def test_the_recipe_is_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = load_any("state_tracking", ["tasks.s5.steps=7"])
    assert isinstance(found, StudyConfig)
    assert {task.name: task.steps for task in found.tasks}["s5"] == 7
    assert main(["state_tracking", "--dry-run"]) == 0
    assert "study: state_tracking" in capsys.readouterr().out
    small = [f"run={tmp_path}", "width=16", "head_size=8", "trained_length=4", "tested_length=8", "batch=2"]
    small += [
        "tested_words=32",
        "seeds=[3]",
        *(f"tasks.{name}.{of}=1" for name in ("parity", "s3", "s5") for of in ("steps", "attention_steps")),
    ]
    assert main(["state_tracking", *(part for change in small for part in ("--set", change))]) == 0
    assert capsys.readouterr().out.startswith("| task | model | 4 | 8 |")
    with pytest.raises(ValueError, match="is the study 'state_tracking', expected a recipe with stages"):
        load_recipe("state_tracking")
    assert main(["state_tracking", "--set", "models=[lstm]"]) == 2
    assert "models are ['lstm'], expected some of" in capsys.readouterr().err
