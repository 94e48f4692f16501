"""WorldRWKV's models that hear. The expected values are of the project's own encoder modules (docs/benchmarks.md)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.build import build_sound
from encoders.sound import SoundEncoder
from encoders.wavlm import WavLM, WavLMConfig
from encoders.whisper import WhisperConfig
from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop import worldrwkv_sound
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.ops import wkv7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling
from tests.mm_rwkv7.interop import seeded, speech_models
from tests.mm_rwkv7.interop.peers import distance, golden, opened, saved

ADAPTER, ENCODER = "modality.world_encoder.adapter.", "modality.world_encoder.model."
CLIP = (seeded.sound(), 16_000)


def body(kind: str) -> Any:
    return speech_models.whisper() if kind == "whisper" else speech_models.wavlm(kind == "large")


def shapes(kind: str) -> seeded.Shapes:
    return seeded.world_1_hearing(seeded.parameters(body(kind)), 128 if kind == "whisper" else 64)


@pytest.fixture(scope="module", params=["large", "base", "whisper"])
def listener(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Pipeline]:
    return request.param, opened(saved(shapes(request.param), tmp_path_factory.mktemp("world") / "rwkv-0.pth"))


def heard_alone() -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "audio", "audio": CLIP}]}]


@torch.no_grad()
def test_it_hears_what_the_original_does(listener: tuple[str, Pipeline]) -> None:
    kind, pipeline = listener
    expected, hearing = golden("world1_hearing"), pipeline.model.sound
    assert hearing is not None
    ((window, frames),) = hearing.tokens.frontend.windows(iter([torch.from_numpy(CLIP[0])]))
    features = hearing.encoder(window[None], torch.tensor([frames]))[0, : hearing.encoder.moments(frames)]
    tokens = hearing.read(window[None], torch.tensor([frames]))
    assert distance(features[::7, ::5], expected[f"{kind}_features"]) < 1e-5
    assert distance(tokens[::5, ::3], expected[f"{kind}_tokens"]) < 1e-5
    norms = torch.stack([features.norm(), tokens.norm()])
    assert distance(norms, expected[f"{kind}_norms"]) < 1e-5
    assert len(tokens) == hearing.tokens.count(len(CLIP[0])) == (84 if kind == "whisper" else 83)


def test_a_sound_alone_is_a_question(listener: tuple[str, Pipeline]) -> None:
    _, pipeline = listener
    sound = pipeline.processor.sound_placeholders(len(CLIP[0]))
    said = pipeline.tokenizer.encode
    assert pipeline.processor(heard_alone()).ids[0].tolist() == [*sound, *said("\x16Assistant:")]
    answered = [*heard_alone(), {"role": "assistant", "content": "one two"}]
    written = pipeline.processor(answered, generate=False).ids[0].tolist()
    assert written == [*sound, *said("\x16Assistant:"), *said(" one two\x17")]
    asked = pipeline.processor([{"role": "user", "content": [*heard_alone()[0]["content"], _words("Who?")]}])
    assert asked.ids[0].tolist() == [*sound, *said("\x16User: Who?\x17"), *said("\x16Assistant:")]


def _words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def test_it_answers(listener: tuple[str, Pipeline]) -> None:
    _, pipeline = listener
    answer = pipeline.ask("", audio=[CLIP], sampling=Sampling(max_new_tokens=2))
    assert answer.usage.media_tokens in (83, 84)


def test_sizes_come_from_the_file(listener: tuple[str, Pipeline]) -> None:
    kind, pipeline = listener
    config = pipeline.model.config.sound
    assert config is not None
    if kind == "whisper":
        assert config.encoder == WhisperConfig(128, 2, 2, 256)
    else:
        assert config.encoder == WavLMConfig(64, 2, 4, 128, 32, norm_first=kind == "large")
    assert config.projector.kind == "speech"


def test_a_converted_checkpoint_is_the_same(listener: tuple[str, Pipeline], tmp_path: Path) -> None:
    _, pipeline = listener
    checkpoint.save(pipeline.model, tmp_path / "native", "# x\n")
    assert MMConfig.load(tmp_path / "native" / "config.json") == pipeline.model.config
    again = checkpoint.load(tmp_path / "native").state_dict()
    for name, tensor in pipeline.model.state_dict().items():
        assert torch.equal(tensor, again[name]), name


@pytest.mark.parametrize("kind", ["large", "whisper"])
def test_every_wrong_tensor_is_named_as_the_file_names_it(kind: str, tmp_path: Path) -> None:
    wrong = shapes(kind)
    missing = {name for name in wrong if name.endswith(("adapter.proj.2.bias", "layer_norm.bias"))}
    with pytest.raises(ValueError, match="does not fit") as caught:
        opened(saved({name: shape for name, shape in wrong.items() if name not in missing}, tmp_path / "x.pth"))
    assert len(missing) >= 2
    assert all(f"missing {name}" in str(caught.value) for name in missing), (missing, str(caught.value))


def test_an_encoder_that_was_not_trained_is_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published = {1024: "microsoft/wavlm-large", 768: "microsoft/wavlm-base-plus"}
    for width, name in published.items():
        found = open_checkpoint(saved(seeded.world_1_hearing({}, width), tmp_path / f"{width}.pth"))
        assert found.fetch_sound
        assert found.config.sound is not None
        assert isinstance(found.config.sound.encoder, WavLMConfig)
        assert found.config.sound.encoder.name == name
        with torch.device("meta"):
            encoder = WavLM(found.config.sound.encoder)
        assert encoder.width == width
    for width, name in {1024: "openai/whisper-medium", 768: "openai/whisper-small"}.items():
        found = open_checkpoint(saved(seeded.world_1_hearing({}, width), tmp_path / f"rwkv7-Whisper-{width}.pth"))
        assert found.config.sound is not None
        assert isinstance(found.config.sound.encoder, WhisperConfig)
        assert (found.config.sound.encoder.name, found.config.sound.encoder.width) == (name, width)
    small = WavLMConfig(64, 1, 4, 64, 16, name="somewhere/small")
    monkeypatch.setitem(worldrwkv_sound.PUBLISHED["wavlm"], 64, small)
    trained = build_sound(replace(small, name=""), wkv7)

    def fetch(config: object, scan: object, pretrained: bool = False) -> SoundEncoder:
        assert (config, pretrained) == (small, True)
        return trained

    monkeypatch.setattr(checkpoint, "build_sound", fetch)
    sound = checkpoint.load(saved(seeded.world_1_hearing({}, 64), tmp_path / "small.pth")).sound
    assert sound is not None
    assert all(torch.equal(tensor, trained.state_dict()[name]) for name, tensor in sound.encoder.state_dict().items())


def test_an_encoder_that_cannot_be_fetched_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config: object, scan: object, pretrained: bool = False) -> SoundEncoder:
        raise OSError("We cannot connect.\n\nCheck your connection.")

    found = open_checkpoint(saved(seeded.world_1_hearing({}, 768), tmp_path / "rwkv-0.pth"))
    monkeypatch.setattr(checkpoint, "build_sound", fail)
    with pytest.raises(
        ValueError, match=r"rwkv-0\.pth leaves out its sound\.encoder, .*be fetched: We cannot"
    ) as raised:
        checkpoint.build(found, torch.float32)
    assert "\n" not in str(raised.value)


def test_an_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"leaves out a sound encoder of width 512, expected \[768, 1024\]"):
        open_checkpoint(saved(seeded.world_1_hearing({}, 512), tmp_path / "rwkv-0.pth"))
