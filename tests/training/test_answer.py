import copy
import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from encoders.birwkv7 import BiRWKV7Config
from encoders.spectrogram import Spectrogram
from encoders.tiling import Tiling
from mm_rwkv7.hearing import SoundConfig
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Processor
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.synthetic import scenes, soundscapes
from training.answer import IGNORED, AnswerStage
from training.singles.hearing import SoundSample
from training.singles.named import AnySample, open_turn
from training.singles.sources import Sample

SAMPLES = [
    Sample(
        scene.image,
        scene.caption,
        tuple((question, answer) for question, answer, _ in scene.qa),
    )
    for scene in (scenes.sample(seed, 64) for seed in (2, 4, 6))
]
DRAWN = [("scenes", sample) for sample in SAMPLES]
HEARD = [
    (
        "as it is",
        SoundSample(
            scape.waveform[:length].astype(np.float32) / 32768,
            scape.caption,
            tuple((question, answer) for question, answer, _ in scape.qa),
            (),
        ),
    )
    for length, scape in ((length, soundscapes.sample(length)) for length in (300, 20_000, 50_000))
]


@pytest.fixture(scope="module")
def processor(tiny_model: MMRWKV7) -> Processor:
    return Pipeline(tiny_model).processor


@pytest.fixture(scope="module")
def listener(tiny_model: MMRWKV7) -> MMRWKV7:
    """`tiny_model` with ears: windows of 1.28 s."""
    encoder = BiRWKV7Config(width=64, layers=1, spectrogram=Spectrogram(frames=128))
    sound = SoundConfig(encoder, ProjectorConfig(64, 64), pool=(8, 1))
    model = MMRWKV7(dataclasses.replace(tiny_model.config, sound=sound)).eval()
    model.load_state_dict(tiny_model.state_dict(), strict=False)
    return model


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
@pytest.mark.parametrize("drawn", [DRAWN, HEARD, [HEARD[0], *DRAWN, *HEARD[1:]]], ids=["pictures", "sounds", "both"])
def test_the_loss_is_that_of_every_whole_prompt_alone(
    listener: MMRWKV7, drawn: list[tuple[str, AnySample]], blind: bool
) -> None:
    processor = Pipeline(listener).processor
    trained = stage(listener, processor, blind=blind)
    batch = trained.collate(drawn, random.Random(1))
    loss, report = trained.loss(batch)
    samples = sorted((sample for _, sample in drawn), key=lambda sample: isinstance(sample, SoundSample))
    placeholders = torch.tensor([listener.config.image_id, listener.config.audio_id])
    losses, right = [], []
    for owner, question, answer in rows(batch, processor):
        (shown,) = open_turn(samples[owner])
        asked = [{"role": "user", "content": [*shown["content"], {"type": "text", "text": question}]}]
        prompt = processor(asked)
        whole = processor([*asked, {"role": "assistant", "content": answer}], generate=False).ids
        start = prompt.ids.shape[1]
        media: dict[str, Any] = {"pixels": prompt.pixels}
        for sound in prompt.sounds:
            assert processor.sound_tokens is not None
            windows, frames = zip(*processor.sound_tokens.frontend.windows(sound.blocks()), strict=True)
            media |= {"windows": torch.stack(windows), "frames": torch.tensor(frames)}
        if blind:
            start -= int(torch.isin(whole, placeholders).sum())
            whole, media = whole[~torch.isin(whole, placeholders)][None], {}
        logits, _ = listener(whole, **media)
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
