"""Many files in one command: what is about one of them, and what is about all."""

import pytest

from app.each import answer_each


def test_what_is_about_the_model_is_raised_whatever_the_files_are_called() -> None:
    def deaf(model: str, file: str) -> None:
        raise ValueError("this model has no sound encoder")

    with pytest.raises(ValueError, match="no sound encoder"):
        answer_each(["sound", "other"], lambda file: None, lambda: "model", deaf)


def test_a_file_that_went_meanwhile_is_a_line_and_the_others_are_answered(capsys: pytest.CaptureFixture[str]) -> None:
    there, answered = {"a", "b", "c"}, []

    def check(file: str) -> None:
        if file not in there:
            raise ValueError(f"{file}: there is no such file")

    def answer(model: str, file: str) -> None:
        there.discard("b")
        check(file)
        answered.append(file)

    assert answer_each(["a", "b", "c", "d"], check, lambda: "model", answer) == 1
    assert answered == ["a", "c"]
    told = ["error: d: there is no such file", "error: b: there is no such file"]
    assert capsys.readouterr().err.splitlines() == told


def test_numbers_that_are_none_are_about_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(model: str, file: str) -> None:
        raise FloatingPointError("the greatest logit is nan")

    assert answer_each(["a", "b"], lambda file: None, lambda: "model", answer) == 2
    told = [f"error: {file}: the greatest logit is nan" for file in "ab"]
    assert capsys.readouterr().err.splitlines() == told
