"""Small encoders of the kinds that WorldRWKV hears with, as transformers builds them."""

from typing import Any

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
