"""Whisper through our wrapper, against transformers' model and feature extractor as WorldRWKV uses them."""

from typing import Any

import pytest
import torch
from transformers import WhisperConfig as Sizes
from transformers import WhisperFeatureExtractor, WhisperModel

from encoders.logmel import LogMel
from encoders.whisper import Whisper, WhisperConfig, own_name

SMALL: dict[str, Any] = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64}


def noise(samples: int, seed: int) -> torch.Tensor:
    """Louder and louder, so that the loudest bin is not everywhere the same."""
    loudness = torch.linspace(1e-4, 0.5, samples)
    return loudness * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bins", [80, 128])
@pytest.mark.parametrize("samples", [1, 399, 20_000, 480_000])
def test_a_window_is_what_whisper_reads(bins: int, samples: int, seed: int) -> None:
    waveform = noise(samples, seed)
    read = WhisperFeatureExtractor(bins)(
        waveform.numpy(), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    frontend = LogMel(bins)
    ((window, frames),) = frontend.windows(iter([waveform]))
    torch.testing.assert_close(window.T[None], read["input_features"], rtol=0, atol=1e-5, msg=f"seed {seed}")
    assert frames == frontend.count(samples) == read["attention_mask"].sum()


@torch.no_grad()
def test_equals_transformers(seed: int) -> None:
    torch.manual_seed(seed)
    model = WhisperModel(Sizes(**SMALL, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=8)).eval()
    for parameter in model.encoder.parameters():
        parameter += 0.2 * torch.randn_like(parameter)
    encoder = Whisper(WhisperConfig(width=32, layers=2, heads=4, hidden=64)).eval()
    names = {name: own_name(f"model.{name}") for name in model.state_dict()}
    encoder.load_state_dict({own: model.state_dict()[name] for name, own in names.items() if own})
    windows, counts, expected = [], [], []
    for samples in (161, 50_000, 480_000):
        waveform = noise(samples, seed)
        read = WhisperFeatureExtractor()(
            waveform.numpy(), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
        )
        kept = int(read["attention_mask"].sum()) // 2 + 1
        expected.append(model.encoder(read["input_features"]).last_hidden_state[0, :kept])
        ((window, count),) = encoder.frontend.windows(iter([waveform]))
        windows.append(window)
        counts.append(count)
    frames = torch.tensor(counts)
    found = encoder(torch.stack(windows), frames)
    assert found.shape == (3, 1500, 32) == (3, encoder.tokens, encoder.width)
    for row, wanted, moments in zip(found, expected, encoder.moments(frames).tolist(), strict=True):
        assert moments == len(wanted) == encoder.moments(counts.pop(0))
        assert (row[:moments] - wanted).norm() / wanted.norm() < 1e-5, f"seed {seed}"
        assert not row[moments:].any()


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder = Whisper(WhisperConfig())
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6) == 88


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="3 frames, expected an even number"):
        WhisperConfig(frontend=LogMel(frames=3))
    with pytest.raises(ValueError, match="width 30 and heads 4"):
        WhisperConfig(width=30, heads=4)
