"""A model that hears: sounds as tokens, tags, and conversations about sounds and pictures."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from torch import Tensor

from encoders.ast import ASTConfig
from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig, PromptTemplate
from mm_rwkv7.generate import prefill
from mm_rwkv7.hearing import Hearing, SoundConfig
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline, question_about
from mm_rwkv7.projector import AdapterProjectorConfig, ProjectorConfig
from mm_rwkv7.sounds import KEPT_SECONDS, Sound
from mm_rwkv7.synthetic import soundscapes
from mm_rwkv7.tagger import WINDOWS
from tests.ears import ENCODER, LABELS, RATE, SOUND, SPECTROGRAM, give_ears, make, noise, without_words

GREEN = Image.new("RGB", (30, 30), "green")


@pytest.fixture(scope="module")
def listener(listening_model: MMRWKV7) -> Pipeline:
    """`tiny_model` with ears."""
    return Pipeline(listening_model, "listener")


def windows(hearing: Hearing, waveform: Tensor) -> tuple[Tensor, Tensor]:
    pictures, frames = zip(*hearing.tokens.frontend.windows(iter([waveform])), strict=True)
    return torch.stack(pictures), torch.tensor(frames)


@pytest.mark.parametrize(
    "config",
    [
        SOUND,
        SoundConfig(ENCODER, ProjectorConfig(64, 64)),
        SoundConfig(ENCODER, ProjectorConfig(64, 64, positions=(4, 2)), pool=(4, 2)),
        SoundConfig(ENCODER, AdapterProjectorConfig(64, 32, convolution=True), pool=(8, 1)),
        SoundConfig(ASTConfig(32, 1, 2, 64, 16, SPECTROGRAM), ProjectorConfig(32, 64), pool=(8, 1)),
    ],
    ids=["pooled", "cells", "in time too", "convolution", "AST"],
)
def test_a_sound_of_any_length_gives_as_many_tokens_as_are_counted(config: SoundConfig) -> None:
    hearing = make(config)
    tokens = hearing.tokens
    assert (tokens.moments * tokens.pitches, 128) == tuple(hearing(*windows(hearing, noise(1)))[0].shape)
    for samples in (1, 399, 400, 560, 5_000, 20_000, 20_480, 20_721, 41_000):
        features = hearing.read(*windows(hearing, noise(samples / RATE)))
        assert len(features) == tokens.count(samples), samples
        moments = SPECTROGRAM.count(samples) * tokens.moments / SPECTROGRAM.frames
        assert math.ceil(moments) * tokens.pitches == len(features), samples


def test_what_lies_after_the_sound_changes_no_token() -> None:
    for config in (SOUND, SoundConfig(ENCODER, ProjectorConfig(64, 64), pool=(3, 2), labels=LABELS)):
        hearing = make(config)
        picture, frames = windows(hearing, noise(0.5))
        loud = picture.clone()
        loud[0, int(frames[0]) :] = 5
        count = hearing.tokens.of_window(int(frames[0]))
        silent_from = math.ceil(int(frames[0]) / 16) * 16  # a patch reads what lies in it
        loud[0, int(frames[0]) : silent_from] = 0
        assert torch.allclose(hearing(picture, frames)[0, :count], hearing(loud, frames)[0, :count], atol=1e-5)
        assert torch.allclose(hearing.tag(picture, frames), hearing.tag(loud, frames), atol=1e-5)


def test_pooling_takes_the_mean_of_what_is_heard() -> None:
    hearing = make(SoundConfig(ENCODER, ProjectorConfig(64, 64), pool=(4, 1)))
    picture, frames = windows(hearing, noise(0.75))  # 73 frames are 5 moments of 8: the third token has one and a half
    read: list[Tensor] = []
    hearing.projector.register_forward_pre_hook(lambda _, given: read.append(given[0]))
    hearing(picture, frames)
    cells = hearing.encoder(picture, frames).unflatten(1, hearing.encoder.grid)[0]  # (8, 8, E)
    expected = [cells[0:2].mean((0, 1)), cells[2:4].mean((0, 1)), cells[4].mean(0)]
    assert torch.allclose(read[0][0, :3], torch.stack(expected), atol=1e-5)


def test_a_prompt_has_placeholders_for_its_sound(listener: Pipeline) -> None:
    batch = listener.processor(question_about("a red square", [GREEN], [(noise(2.0).numpy(), RATE)]))
    tokenizer = listener.tokenizer
    assert batch.ids[0].tolist() == [
        *tokenizer.encode("User: "),
        *[tokenizer.image_id] * listener.model.image_tokens,
        *tokenizer.encode("\n"),
        *[tokenizer.audio_id] * 13,  # 198 frames, 16 of them a token
        *tokenizer.encode("\na red square\n\n"),
        *tokenizer.encode("Assistant:"),
    ]
    answer = listener.ask("a red square", [GREEN], [(noise(2.0).numpy(), RATE)])
    assert answer.usage.media_tokens == listener.model.image_tokens + 13
    assert answer.timings.encode_s > 0
    assert answer.timings.prefill_s > 0


def test_a_sound_is_heard_where_it_stands(listener: Pipeline) -> None:
    """The state after a prompt is that of its embedded tokens with the features put in by hand."""
    sound = noise(3.0)
    batch = listener.processor(question_about("a", [], [(sound.numpy(), RATE)]))
    hearing = listener.model.sound
    assert hearing is not None
    features = hearing.read(*windows(hearing, sound))
    x = listener.model.lm.embed(batch.ids.clamp(max=listener.tokenizer.size - 1)).clone()
    x[batch.ids == listener.tokenizer.audio_id] = features
    expected, _ = listener.model.lm.hidden(x)
    state = listener.prefill(question_about("a", [], [(sound.numpy(), RATE)]))
    heard, _ = prefill(listener.model, batch.ids, sounds=iter(features.split(5)))
    assert torch.allclose(heard, expected[:, -1], atol=1e-4)
    assert state.tokens_seen == batch.ids.shape[1] - len(listener.tokenizer.encode("Assistant:"))


def test_questions_follow_a_sound_that_was_read_once(listener: Pipeline) -> None:
    clip = (noise(1.0).numpy(), RATE)
    opened = listener.prefill([{"role": "user", "content": [{"type": "audio", "audio": clip}]}])
    assert opened.open_turn
    assert listener.ask("a red square", state=opened).text == listener.ask("a red square", audio=[clip]).text
    other = (noise(1.0, seed=1).numpy(), RATE)
    one, two = (listener.embed(question_about("a", audio=[sound])) for sound in (clip, other))
    assert not torch.allclose(one, two, atol=1e-3)


def test_placeholders_and_sounds_that_do_not_match_are_refused(listener: Pipeline) -> None:
    ids = torch.full((1, 4), listener.tokenizer.audio_id)
    with pytest.raises(ValueError, match="4 audio placeholders, the sounds have 0 feature tokens"):
        prefill(listener.model, ids)
    with pytest.raises(ValueError, match="2 feature tokens more than the text has audio placeholders"):
        prefill(listener.model, ids, sounds=[torch.zeros(3, 128), torch.zeros(3, 128)])


def test_a_long_sound_is_not_held(listener: Pipeline) -> None:
    """What is asked of the source is never far ahead of what the language model has read."""
    hearing = listener.model.sound
    assert hearing is not None
    ahead: list[int] = []
    read = heard = 0

    def blocks() -> Iterator[Tensor]:
        nonlocal read
        for number in range(40):
            read += RATE
            ahead.append(read - heard)
            yield noise(1.0, number)

    sound = Sound((np.zeros(1), RATE), RATE, 40 * RATE, None)
    object.__setattr__(sound, "blocks", blocks)
    for pictures, frames in listener._windows(sound):
        assert len(pictures) <= WINDOWS
        heard += int(frames.sum()) * SPECTROGRAM.hop
    assert heard == pytest.approx(40 * RATE, rel=0.01)
    assert max(ahead) <= (WINDOWS + 2) * SPECTROGRAM.frames * SPECTROGRAM.hop


def test_a_short_sound_is_kept_and_a_long_one_read_again(tmp_path: Path) -> None:
    for seconds in (1, KEPT_SECONDS + 1):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, noise(seconds).numpy(), RATE, subtype="FLOAT")
        sound = Sound.read(path, RATE)
        assert sound.samples == seconds * RATE
        assert (sound.kept is None) == (seconds > KEPT_SECONDS)
        for _ in range(2):
            assert torch.equal(torch.cat(list(sound.blocks())), noise(seconds))
    soundfile.write(path, noise(KEPT_SECONDS).numpy(), RATE)
    with pytest.raises(ValueError, match=r"61\.wav has changed: 960000 samples, expected 976000"):
        list(sound.blocks())


def test_tags_are_the_likeliest_classes_in_order(listener: Pipeline) -> None:
    clip = (noise(3.0).numpy(), RATE)
    tags = listener.tag(clip)
    assert sorted(label for label, _ in tags) == sorted(LABELS)
    assert [score for _, score in tags] == sorted((score for _, score in tags), reverse=True)
    assert listener.tag(clip, top=2) == tags[:2]
    hearing = listener.model.sound
    assert hearing is not None
    picture, frames = windows(hearing, noise(3.0))
    scores = hearing.tag(picture, frames).sigmoid()
    expected = (scores * frames[:, None]).sum(0) / frames.sum()
    assert dict(tags) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5)


def test_a_sound_heard_once_is_tagged_and_asked_about(
    listener: Pipeline, tiny_model: MMRWKV7, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = (noise(30.0).numpy(), RATE)
    encode, encoded = listener.model.sound.encoder.forward, []
    monkeypatch.setattr(listener.model.sound.encoder, "forward", lambda *w: encoded.append(len(w[0])) or encode(*w))
    heard = listener.hear(clip, top=2)
    assert sum(encoded) == 24  # windows of 1.28 s
    encoded.clear()
    asked = listener.ask("What is it?", audio=[heard])
    twice = listener.ask("What is it?", audio=[heard, heard])
    assert not encoded
    assert heard.tags == listener.tag(clip, top=2)
    assert asked.text == listener.ask("What is it?", audio=[clip]).text
    assert asked.usage.media_tokens == len(heard.tokens) == listener.model.sound.tokens.count(heard.samples)
    assert twice.text == listener.ask("What is it?", audio=[clip, clip]).text
    with pytest.raises(ValueError, match="heard by another model"):
        Pipeline(give_ears(tiny_model)).ask("What is it?", audio=[heard])
    with pytest.raises(ValueError, match="cannot hear"):
        Pipeline(tiny_model, "deaf").hear(clip)


def test_a_sound_is_heard_without_a_tagging_head(listener: Pipeline) -> None:
    clip = (noise(1.0).numpy(), RATE)
    model = MMRWKV7(dataclasses.replace(listener.model.config, sound=dataclasses.replace(SOUND, labels=()))).eval()
    model.load_state_dict(listener.model.state_dict(), strict=False)
    headless = Pipeline(model)
    heard = headless.hear(clip)
    assert heard.tags == []
    assert headless.ask("a", audio=[heard]).text == headless.ask("a", audio=[clip]).text


def test_a_turn_without_words_goes_on_where_the_template_wants_none(listener: Pipeline) -> None:
    clip = (noise(1.0).numpy(), RATE)
    wordless = Pipeline(without_words(listener.model))
    read = wordless.prefill([{"role": "user", "content": [{"type": "audio", "audio": clip}]}])
    assert wordless.ask("", state=read).text == wordless.ask("", audio=[clip]).text
    assert wordless.ask("Why?", state=read).text == wordless.ask("Why?", audio=[clip]).text
    for asked in (lambda: wordless.ask(""), lambda: wordless.prefill([{"role": "user", "content": ""}], read)):
        with pytest.raises(ValueError, match="is empty"):
            asked()
    with pytest.raises(ValueError, match="is empty"):
        listener.ask("", audio=[clip])


def test_a_model_that_does_not_hear_or_tag_says_so(tiny_model: MMRWKV7, listener: Pipeline) -> None:
    deaf = Pipeline(tiny_model, "deaf")
    clip = (noise(0.1).numpy(), RATE)
    with pytest.raises(ValueError, match="cannot hear"):
        deaf.tag(clip)
    with pytest.raises(ValueError, match="cannot hear"):
        deaf.ask("a", audio=[clip])
    with pytest.raises(ValueError, match=r"audio is 'a\.wav', expected a list of sounds"):
        listener.ask("a", audio="a.wav")
    with pytest.raises(ValueError, match="no such file"):
        listener.tag("nowhere.wav")
    model = MMRWKV7(MMConfig(tiny_model.config.lm, vocabulary=tiny_model.config.vocabulary, sound=_headless()))
    with pytest.raises(ValueError, match="no tagging head"):
        Pipeline(model, "headless").tag(clip)


def _headless() -> SoundConfig:
    return SoundConfig(ENCODER, ProjectorConfig(64, 64), pool=(8, 1))


def test_a_checkpoint_hears_what_its_model_hears(listener: Pipeline, tmp_path: Path) -> None:
    checkpoint.save(listener.model, tmp_path / "model", "# ears\n")
    loaded = Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.model.config == listener.model.config
    scape = soundscapes.sample(1)
    assert loaded.tag((scape.waveform, scape.rate)) == listener.tag((scape.waveform, scape.rate))
    half = Pipeline.from_pretrained(tmp_path / "model", dtype="bf16")
    clip = (scape.waveform, scape.rate)
    assert dict(half.tag(clip)) == pytest.approx(dict(listener.tag(clip)), abs=0.05)
    assert half.ask("a", audio=[clip]).usage.media_tokens == listener.ask("a", audio=[clip]).usage.media_tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": (9, 1)}, "grid of 8 x 8 cannot be pooled to 9 x 1"),
        ({"projector": ProjectorConfig(32, 64)}, "projector reads width 32, the birwkv7 encoder gives 64"),
        ({"pool": (8, 1), "projector": ProjectorConfig(64, 64, positions=(4, 1))}, "positions for 4 x 1 cells"),
        ({"pool": (0, 1)}, "expected moments and pitches"),
        ({"projector": ProjectorConfig(64, 64, summary=True)}, "cannot add a summary"),
        ({"labels": ("a", "a")}, "two labels"),
    ],
)
def test_what_cannot_hear_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Hearing(SoundConfig(**{"encoder": ENCODER, "projector": ProjectorConfig(64, 64), **change}), 128)  # type: ignore[arg-type]


def test_what_follows_a_picture_and_a_sound_is_the_same(tiny_model: MMRWKV7) -> None:
    template = PromptTemplate(image="{image}</i>\n")
    with pytest.raises(ValueError, match="other words follow a picture than a sound"):
        MMConfig(tiny_model.config.lm, vocabulary=tiny_model.config.vocabulary, template=template, sound=_headless())
