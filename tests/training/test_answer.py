import copy
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.tiling import Tiling
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline, question_about
from mm_rwkv7.processor import Processor
from mm_rwkv7.synthetic import scenes
from training.answer import IGNORED, AnswerStage
from training.sources import Sample

SAMPLES = [
    Sample(
        scene.image,
        scene.caption,
        tuple((question, answer) for question, answer, _ in scene.qa),
    )
    for scene in (scenes.sample(seed, 64) for seed in (2, 4, 6))
]
DRAWN = [("scenes", sample) for sample in SAMPLES]


@pytest.fixture(scope="module")
def processor(tiny_model: MMRWKV7) -> Processor:
    return Pipeline(tiny_model).processor


def stage(model: MMRWKV7, processor: Processor, **options: Any) -> AnswerStage:
    return AnswerStage(model, processor, **({"questions": 4} | options))


def pairs_of(sample: Sample, processor: Processor) -> set[tuple[str, str]]:
    return {*sample.qa, (processor.template.caption, sample.caption)}


def each_row(batch: dict[str, Any]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(ids (T), targets (T), picture ()) of every row but those that only fill up."""
    for group in batch["groups"]:
        yield from (row for row in zip(*group, strict=True) if (row[1] != IGNORED).any())


def rows(batch: dict[str, Any], processor: Processor) -> list[tuple[int, str, str]]:
    """(picture, question, answer) of every row, read from its tokens."""
    found = []
    for ids, targets, owner in each_row(batch):
        first = int((targets != IGNORED).nonzero()[0]) + 1
        asked = processor.tokenizer.decode(ids[:first].tolist())
        answer = processor.tokenizer.decode(targets[targets != IGNORED].tolist())
        assert asked.startswith("\n")
        assert asked.endswith("\n\nAssistant:")
        assert answer.startswith(" ")
        assert answer.endswith("\n\n")
        found.append((int(owner), asked[1 : -len("\n\nAssistant:")], answer[1:-2]))
    return found


@pytest.mark.parametrize("blind", [False, True])
def test_every_row_asks_about_its_own_picture(tiny_model: MMRWKV7, processor: Processor, blind: bool) -> None:
    batch = stage(tiny_model, processor, blind=blind).collate(DRAWN, random.Random(0))
    assert ("pixels" in batch) is not blind
    found = rows(batch, processor)
    assert {owner for owner, _, _ in found} == {0, 1, 2}
    for owner, question, answer in found:
        assert (question, answer) in pairs_of(SAMPLES[owner], processor)
    assert len(set(found)) == len(found)


def test_targets_are_the_next_tokens_of_the_answer(tiny_model: MMRWKV7, processor: Processor) -> None:
    batch = stage(tiny_model, processor).collate(DRAWN, random.Random(0))
    for ids, targets, _ in each_row(batch):
        known = targets[:-1] != IGNORED
        assert torch.equal(ids[1:][known], targets[:-1][known])
        assert targets[-1] == IGNORED


def test_at_most_so_many_questions_and_now_and_then_a_caption(tiny_model: MMRWKV7, processor: Processor) -> None:
    one = stage(tiny_model, processor, questions=1)
    captions = 0
    for seed in range(120):
        found = rows(one.collate(DRAWN[:1], random.Random(seed)), processor)
        asked = [question for _, question, _ in found if question != processor.template.caption]
        assert len(asked) == 1
        captions += len(found) - 1
    assert 120 * 0.1 < captions < 120 * 0.4


@torch.no_grad()
@pytest.mark.parametrize("blind", [False, True])
def test_the_loss_is_that_of_every_whole_prompt_alone(tiny_model: MMRWKV7, processor: Processor, blind: bool) -> None:
    trained = stage(tiny_model, processor, blind=blind)
    batch = trained.collate(DRAWN, random.Random(1))
    loss, report = trained.loss(batch)
    image = processor.tokenizer.image_id
    losses, right = [], []
    for owner, question, answer in rows(batch, processor):
        asked = question_about(question, [SAMPLES[owner].image])
        prompt = processor(asked)
        whole = processor([*asked, {"role": "assistant", "content": answer}], generate=False).ids
        start = prompt.ids.shape[1]
        pixels = prompt.pixels
        if blind:
            start -= int((whole == image).sum())
            whole, pixels = whole[whole != image][None], None
        logits, _ = tiny_model(whole, pixels=pixels)
        losses.append(F.cross_entropy(logits[0, start - 1 : -1], whole[0, start:], reduction="none"))
        right.append(logits[0, start - 1 : -1].argmax(-1) == whole[0, start:])
    assert float(loss) == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    assert report["token_accuracy"] == pytest.approx(float(torch.cat(right).float().mean()))


@torch.no_grad()
def test_what_follows_an_answer_does_not_matter(tiny_model: MMRWKV7, processor: Processor) -> None:
    trained = stage(tiny_model, processor)
    batch = trained.collate(DRAWN, random.Random(2))
    loss, _ = trained.loss(batch)
    changed = 0
    for ids, targets, _ in each_row(batch):
        after = ids[int((targets != IGNORED).nonzero()[-1]) + 1 :]
        after[1:] = 7
        changed += len(after[1:])
    assert changed
    assert float(trained.loss(batch)[0]) == pytest.approx(float(loss), rel=1e-6)


def test_gradients_reach_the_projector_and_the_language_model_only(tiny_model: MMRWKV7, processor: Processor) -> None:
    model = copy.deepcopy(tiny_model)
    model.tower.requires_grad_(False)
    trained = stage(model, processor)
    loss, _ = trained.loss(trained.collate(DRAWN, random.Random(0)))
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, gradients, strict=True):
        assert not name.startswith("tower."), name
        assert gradient is not None, name
        assert gradient.isfinite().all(), name


def test_a_model_that_cuts_its_pictures_is_refused(tiny_model: MMRWKV7, processor: Processor) -> None:
    model = MMRWKV7(dataclasses.replace(tiny_model.config, tiling=Tiling(32)))
    with pytest.raises(ValueError, match="tiles"):
        stage(model, processor)
