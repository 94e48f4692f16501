from pathlib import Path
from typing import Any

import pytest
import yaml

from training.config import load_recipe
from training.run import continued_model

RECIPE: dict[str, Any] = {
    "run": "runs/x",
    "tower": {"name": "test_resnet", "image_size": 64},
    "lm": {"width": 64, "layers": 1},
    "projector": {"hidden_width": 16},
    "stages": [
        {
            "name": "first",
            "kind": "tower",
            "train": ["tower"],
            "data": {"scenes": 1},
            "steps": 5,
            "batch": 2,
            "learning_rate": 0.001,
        },
        {
            "name": "second",
            "kind": "answer",
            "train": ["projector", "lm"],
            "data": {"scenes": 1},
            "steps": 7,
            "batch": 3,
            "learning_rate": 0.002,
        },
    ],
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def test_a_recipe_becomes_a_typed_run(recipe: Path) -> None:
    run = load_recipe(str(recipe))
    assert (run.tower.name, run.projector_config(96).input_width) == ("test_resnet", 96)
    assert [stage.name for stage in run.stages] == ["first", "second"]
    assert run.stages[0].data == {"scenes": 1}
    assert run.lm_config(50).vocab_size == 50


def test_changes_reach_every_depth(recipe: Path) -> None:
    run = load_recipe(
        str(recipe),
        [
            "run=elsewhere",
            "lm.width=128",
            "tower.options.output_stride=16",
            "stages.second.steps=9",
            "stages.first.data={flowers: 0.5}",
            "stages.second.blind=true",
            "stages.second.train=[lm]",
            "data=/some/where=odd",
            "lm.width=192",
        ],
    )
    assert run.run == "elsewhere"
    assert run.lm_config(1).width == 192
    assert run.tower.options == {"output_stride": 16}
    assert [(stage.steps, stage.blind) for stage in run.stages] == [(5, False), (9, True)]
    assert run.stages[0].data == {"flowers": 0.5}
    assert run.data == "/some/where=odd"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run", "not key=value"),
        ("stages.third.steps=1", r"no stage 'third', expected one of \['first', 'second'\]"),
        ("stages.first.colour=1", "colour"),
        ("stages.first.steps=many", r"stages\[0\]\.steps"),
        ("stages.first.kind=dream", "kind 'dream'"),
        ("stages.first.train=[eyes]", "eyes"),
        ("stages.first.data=3", "data"),
        ("stages.first=3", "recipe.yaml"),
        ("stages.second.name=first", "same name"),
        ("lm.width=100", "width 100"),
        ("lm.colour=3", "colour"),
        ("projector.colour=3", "colour"),
        ("stages.first.batch=0", "batch"),
        ("stages.second.train=[]", "learns nothing"),
        ("stages.second.blind=true", "learns nothing"),
        ("stages.first.train=[lm]", "lm"),
        ("precision=fp7", "fp7"),
        ("run.deep.er=1", "run"),
        ("run=[", "recipe.yaml"),
    ],
)
def test_a_wrong_change_is_refused(recipe: Path, change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(str(recipe), [change])


@pytest.mark.parametrize("content", ["", "3", "[", "run: x", "- a"])
def test_what_is_no_recipe_is_refused(recipe: Path, content: str) -> None:
    recipe.write_text(content)
    with pytest.raises(ValueError, match=r"recipe.yaml"):
        load_recipe(str(recipe))


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no recipe 'nine'.*nano"):
        load_recipe("nine")


@pytest.mark.parametrize(("name", "kind"), [("nano", "tower"), ("smoke", "tower"), ("sound_captions", "answer")])
def test_the_recipes_here_can_be_read(name: str, kind: str) -> None:
    assert load_recipe(name).stages[0].kind == kind


def test_sound_captions_begins_with_the_bundled_model() -> None:
    model, _ = continued_model(load_recipe("sound_captions"))
    assert model.config.sound is not None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the recipe is None, expected settings"),
        ("- run\n- stages\n", r"the recipe is \['run', 'stages'\], expected settings"),
        ("run: [1\n", "while parsing a flow sequence .* line 1, column 6"),
        ("run: a\n", r"recipe lacks \['stages'\]"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
