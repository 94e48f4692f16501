"""AST through our wrapper, against transformers' model and feature extractor, and against timm's blocks."""

import re

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from torch import Tensor
from torch.nn import functional as F
from transformers import ASTConfig as Sizes
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from encoders.ast import AST, ASTConfig, own_tensors
from encoders.spectrogram import Spectrogram

CONFIG = ASTConfig(width=32, layers=2, heads=4, hidden=64, spectrogram=Spectrogram(frames=128))


def shaken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights at which every part has a say: norms, biases and special tokens begin at one or nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def ours(tensors: dict[str, Tensor]) -> AST:
    encoder = AST(CONFIG).eval()
    encoder.load_state_dict(own_tensors(tensors), strict=True)
    return encoder


def old_name(name: str) -> str:
    """The name that transformers gave a tensor before version 5."""
    name = re.sub(r"\.layers\.", ".encoder.layer.", name)
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
        name = name.replace(f".attention.{letter}_proj.", f".attention.attention.{word}.")
    name = name.replace(".attention.o_proj.", ".attention.output.dense.").replace(".mlp.fc1.", ".intermediate.dense.")
    return name.replace(".mlp.fc2.", ".output.dense.")


@torch.no_grad()
@pytest.mark.parametrize("naming", ["new", "old"])
def test_equals_transformers(naming: str, seed: int) -> None:
    sizes = Sizes(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_length=128, num_labels=3
    )
    model = shaken(ASTForAudioClassification(sizes), seed)
    waveform = 0.3 * torch.randn(20_000, generator=torch.Generator().manual_seed(seed))
    inputs = ASTFeatureExtractor(max_length=128)(waveform.numpy(), sampling_rate=16_000, return_tensors="pt")
    expected = model.audio_spectrogram_transformer(**inputs).last_hidden_state[:, 2:]
    tensors = {name if naming == "new" else old_name(name): tensor for name, tensor in model.state_dict().items()}
    encoder = ours(tensors)
    ((window, frames),) = encoder.frontend.windows(iter([waveform]))
    found = encoder(window[None], torch.tensor([frames]))
    moments, bins = encoder.grid
    assert found.shape == (1, moments * bins, 32) == (1, encoder.tokens, encoder.width)
    by_bin = found.unflatten(1, (moments, bins)).transpose(1, 2).flatten(1, 2)
    assert (by_bin - expected).norm() / expected.norm() < 1e-5, f"seed {seed}"


@torch.no_grad()
def test_equals_the_original_on_timms_blocks(seed: int) -> None:
    body = VisionTransformerDistilled(
        img_size=32, patch_size=16, in_chans=1, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2
    )
    moments, bins = CONFIG.grid
    body.pos_embed = torch.nn.Parameter(torch.zeros(1, moments * bins + 2, 32))
    shaken(body, seed)
    window = torch.randn(128, 128, generator=torch.Generator().manual_seed(seed))
    picture = CONFIG.spectrogram.normalise(window).T[None, None]
    x = F.conv2d(picture, body.patch_embed.proj.weight, body.patch_embed.proj.bias, stride=10).flatten(2).mT
    x = torch.cat([body.cls_token, body.dist_token, x], dim=1) + body.pos_embed
    for block in body.blocks:
        x = block(x)
    expected = body.norm(x)[0, 2:]
    tensors = {f"module.v.{name}": tensor for name, tensor in body.state_dict().items()}
    tensors["module.mlp_head.1.weight"] = torch.zeros(527, 32)
    found = ours(tensors)(window[None], torch.tensor([128]))[0]
    by_bin = found.unflatten(0, (moments, bins)).transpose(0, 1).flatten(0, 1)
    assert (by_bin - expected).norm() / expected.norm() < 1e-5, f"seed {seed}"


def test_published_sizes() -> None:
    with torch.device("meta"):
        encoder = AST(ASTConfig())
    assert encoder.grid == (101, 12)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6) == 86


def test_sizes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="width 30, heads 4"):
        ASTConfig(width=30, heads=4)
    with pytest.raises(ValueError, match="smaller than a patch"):
        ASTConfig(spectrogram=Spectrogram(bins=8))
