import random
from typing import Any

import pytest
import torch
from open_clip.loss import SigLipLoss
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.synthetic import scenes
from mm_rwkv7.tokenizer import Tokenizer
from training.singles.sources import Sample
from training.tower import FIELDS, IGNORED, GroupedSigLip, TowerStage


class Named:
    """A source of which only the classes are looked at."""

    def __init__(self, *labels: str) -> None:
        self.labels = labels


SOURCES: dict[str, Any] = {"scenes": Named(*scenes.COLOURS), "flowers": Named("rose", "tulip"), "nlvr": Named()}


def sample(seed: int) -> Sample:
    scene = scenes.sample(seed, 64)
    return Sample(scene.image, scene.caption, (("a", "b"),), scene.objects, scene.background)


ROSE = Sample(sample(100).image, "a photo of rose", (("a", "b"),), label="rose")
BOXES = Sample(sample(102).image, "three boxes", (("a", "b"),))


@pytest.fixture
def stage(tiny_model: MMRWKV7) -> TowerStage:
    torch.manual_seed(0)
    return TowerStage(tiny_model, SOURCES, Tokenizer(tiny_model.config.vocabulary))


def vectors(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_without_equal_captions_the_loss_is_siglip_s() -> None:
    picture, caption = vectors(6, 0), vectors(6, 1)
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    found = GroupedSigLip(torch.tensor([5, 0, 3, 1, 2, 4]))(picture, caption, scale, bias)
    assert torch.allclose(found, SigLipLoss()(picture, caption, scale, bias))


def test_equal_captions_are_positives_of_each_other() -> None:
    picture, caption = vectors(4, 0), vectors(4, 1)
    groups = torch.tensor([0, 1, 0, 2])
    scale, bias = torch.tensor(7.0), torch.tensor(-3.0)
    found = GroupedSigLip(groups)(picture, caption, scale, bias)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            logit = scale * picture[i] @ caption[j] + bias
            expected -= float(F.logsigmoid(logit if groups[i] == groups[j] else -logit)) / 4
    assert float(found) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 5)])
def test_every_object_is_in_its_cell_and_no_other_cell_has_one(stage: TowerStage, rows: int, columns: int) -> None:
    stage.rows, stage.columns = rows, columns
    samples = [sample(seed) for seed in range(0, 40, 2)]
    batch = stage.collate([("scenes", one) for one in samples], random.Random(0))
    assert batch["cells"].shape == (20, rows * columns, 3 + len(FIELDS))
    for one, cells in zip(samples, batch["cells"].unflatten(1, (rows, columns)), strict=True):
        for row in range(rows):
            for column in range(columns):
                inside = [
                    item
                    for item in one.objects
                    if row / rows <= item.y < (row + 1) / rows and column / columns <= item.x < (column + 1) / columns
                ]
                presence, right, down, *fields = cells[row, column].tolist()
                assert presence == bool(inside)
                if len(inside) != 1:
                    continue
                (item,) = inside
                assert (column + 0.5 + right) / columns == pytest.approx(item.x, abs=1e-6)
                assert (row + 0.5 + down) / rows == pytest.approx(item.y, abs=1e-6)
                for value, (field, values) in zip(fields, FIELDS.items(), strict=True):
                    if value != IGNORED:
                        assert values[int(value)] == getattr(item, field)
                    else:
                        assert item.text is not None or field == "text"


def test_of_a_picture_without_known_objects_no_cell_is_judged(stage: TowerStage) -> None:
    batch = stage.collate([("scenes", sample(2)), ("flowers", ROSE)], random.Random(0))
    assert not batch["cells"][0, :, 0].isnan().any()
    assert batch["cells"][1, :, 0].isnan().all()
    assert (batch["cells"][1, :, 1:] == IGNORED).all()


def test_labels_are_judged_within_their_own_source(stage: TowerStage) -> None:
    batch = stage.collate([("scenes", sample(2)), ("flowers", ROSE), ("nlvr", BOXES)], random.Random(0))
    background = scenes.COLOURS.index(sample(2).label or "")
    labels = {name: targets.tolist() for name, targets in batch["labels"].items()}
    assert labels == {"scenes": [background, IGNORED, IGNORED], "flowers": [IGNORED, 0, IGNORED]}


def test_equal_captions_share_a_group(stage: TowerStage) -> None:
    drawn = [("flowers", ROSE), ("scenes", sample(2)), ("flowers", ROSE)]
    batch = stage.collate(drawn, random.Random(0))
    assert batch["groups"].tolist() == [0, 1, 0]
    ends = [*batch["starts"].tolist()[1:], len(batch["ids"])]
    captions = [
        stage.tokenizer.decode(batch["ids"][start:end].tolist())
        for start, end in zip(batch["starts"].tolist(), ends, strict=True)
    ]
    assert captions == [one.caption for _, one in drawn]


def test_gradients_reach_the_tower_and_every_head(stage: TowerStage) -> None:
    drawn = [("scenes", sample(seed)) for seed in range(0, 20, 2)] + [("flowers", ROSE)]
    loss, report = stage.loss(stage.collate(drawn, random.Random(0)))
    parameters = dict(stage.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        if not name.startswith(("model.lm", "model.projector")):
            assert gradient is not None, name
            assert gradient.isfinite().all(), name
    assert {"siglip", "offset", "kind", "colour", "scenes", "flowers"} <= report.keys()


@pytest.mark.parametrize("drawn", [[("flowers", ROSE)], [("nlvr", BOXES), ("flowers", ROSE)]])
def test_a_batch_without_generated_scenes_has_a_finite_loss(stage: TowerStage, drawn: list[tuple[str, Sample]]) -> None:
    loss, report = stage.loss(stage.collate(drawn, random.Random(0)))
    assert loss.isfinite()
    assert all(value == value for value in report.values())
