"""Small encoders of the kinds that WorldRWKV hears with, and a small AST, as transformers builds them."""

from typing import Any

import torch

WAVLM: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32,) * 7,
}
WHISPER: dict[str, Any] = {
    "d_model": 128,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 256,
    "decoder_layers": 1,
    "decoder_attention_heads": 1,
    "decoder_ffn_dim": 8,
}


def wavlm(norm_first: bool) -> Any:
    from transformers import WavLMConfig, WavLMModel

    norm = "layer" if norm_first else "group"
    return WavLMModel(WavLMConfig(**WAVLM, feat_extract_norm=norm, do_stable_layer_norm=norm_first)).eval()


def whisper() -> Any:
    from transformers import WhisperConfig, WhisperModel

    return WhisperModel(WhisperConfig(**WHISPER)).encoder.eval()


def ast(seed: int, classes: int = 3) -> Any:
    """AST with a classifier."""
    from transformers import ASTConfig, ASTForAudioClassification

    torch.manual_seed(seed)
    sizes = ASTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=96, max_length=128,
        time_stride=16, frequency_stride=16, id2label={i: f"sound {i}" for i in range(classes)},
    )  # fmt: skip
    model = ASTForAudioClassification(sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model
