"""WavLM through our wrapper, against transformers' model and feature extractor on one sound at a time."""

import pytest
import torch
from torch import nn
from transformers import Wav2Vec2FeatureExtractor, WavLMModel
from transformers import WavLMConfig as Sizes

from encoders.waveform import Waveform
from encoders.wavlm import WavLM, WavLMConfig, own_name

FRONTEND = Waveform(frames=32_000)


def noise(samples: int, seed: int) -> torch.Tensor:
    return 0.1 + 0.3 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def pair(norm_first: bool, normalise: bool, seed: int, old_names: bool = False) -> tuple[WavLMModel, WavLM]:
    """transformers' model and ours with its weights, at which every part has a say."""
    torch.manual_seed(seed)
    sizes = Sizes(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=(16,) * 7,
        feat_extract_norm="layer" if norm_first else "group",
        do_stable_layer_norm=norm_first,
    )
    model = WavLMModel(sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    config = WavLMConfig(32, 2, 4, 64, 16, norm_first, normalise, FRONTEND)
    encoder = WavLM(config).eval()
    for name, tensor in model.state_dict().items():
        if old_names:
            name = name.replace("parametrizations.weight.original0", "weight_g")
            name = name.replace("parametrizations.weight.original1", "weight_v")
        encoder.get_parameter(own_name(name)).data.copy_(tensor)
    return model, encoder


@torch.no_grad()
@pytest.mark.parametrize(("norm_first", "normalise"), [(True, True), (False, True), (False, False)])
def test_equals_transformers(norm_first: bool, normalise: bool, seed: int) -> None:
    model, encoder = pair(norm_first, normalise, seed, old_names=not norm_first)
    read = Wav2Vec2FeatureExtractor(do_normalize=normalise)
    windows, counts, expected = [], [], []
    for samples in (400, 719, 720, 12_345, 32_000, 12_345):
        waveform = noise(samples, seed + len(counts))
        values = read(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")["input_values"]
        expected.append(model(values).last_hidden_state[0])
        ((window, count),) = encoder.frontend.windows(iter([waveform]))
        windows.append(window)
        counts.append(count)
    frames = torch.tensor(counts)
    found = encoder(torch.stack(windows), frames)
    assert found.shape == (6, encoder.tokens, 32)
    for row, wanted, moments, count in zip(found, expected, encoder.moments(frames).tolist(), counts, strict=True):
        assert moments == len(wanted) == encoder.moments(count)
        assert (row[:moments] - wanted).norm() / wanted.norm() < 1e-5, f"seed {seed}"
        assert not row[moments:].any()


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 399])
def test_a_sound_shorter_than_a_token_gives_one(samples: int, seed: int) -> None:
    _, encoder = pair(True, True, seed)
    ((window, frames),) = encoder.frontend.windows(iter([noise(samples, seed)]))
    found = encoder(window[None], torch.tensor([frames]))[0]
    assert frames == samples
    assert encoder.moments(frames) == 1
    assert found.isfinite().all()
    assert found[0].any()
    assert not found[1:].any()


def every_shape(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_published_sizes() -> None:
    with torch.device("meta"):
        large, base = WavLM(WavLMConfig()), WavLM(WavLMConfig(768, 12, 12, 3072, norm_first=False))
        theirs = WavLMModel(Sizes())
    assert round(sum(p.numel() for p in large.parameters()) / 1e6) == 315
    assert every_shape(base) == {f"body.{name}": shape for name, shape in every_shape(theirs).items()}
    assert large.grid == (1999, 1)


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="width 24 is not a multiple of heads 4 and of 16"):
        WavLMConfig(24, heads=4)
    with pytest.raises(ValueError, match="399 samples, expected at least 400"):
        WavLMConfig(frontend=Waveform(frames=399))
