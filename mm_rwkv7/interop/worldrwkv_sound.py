"""WorldRWKV's models that hear: the first generation with a convolution in its adapter (`SpeechAdapter`).

Sounds of 16 kHz go through WavLM or Whisper, the adapter halves the tokens, and these stand before the text. All of it
was trained on `\\x16Assistant: ANSWER\\x17`: the sound is the whole question (speech to be written down, or a question
that is spoken). Sources: github.com/JL-er/WorldRWKV at f15e179, world/encoder/*.py, world/dataset.py, web/audio_web.py.

Published are models that leave out WavLM large. The project has results with WavLM base+, Whisper small and medium as
well, and a width of 768 or 1024 does not tell which is left out: `whisper` anywhere in the path does.
"""

from dataclasses import replace

from encoders import wavlm, whisper
from encoders.catalogue import WAVLM_BASE, WAVLM_LARGE, WHISPER_MEDIUM, WHISPER_SMALL
from encoders.logmel import LogMel
from encoders.wavlm import WavLMConfig
from encoders.whisper import WhisperConfig
from mm_rwkv7.config import PromptTemplate
from mm_rwkv7.hearing import SoundConfig
from mm_rwkv7.interop.parts import Part, Shapes, renamed_part
from mm_rwkv7.projector import SpeechProjectorConfig

PUBLISHED: dict[str, dict[int, WavLMConfig | WhisperConfig]] = {
    "wavlm": {config.width: config for config in (WAVLM_BASE, WAVLM_LARGE)},
    "whisper": {config.width: config for config in (WHISPER_SMALL, WHISPER_MEDIUM)},
}
WHISPER_HEAD = 64  # of all sizes


def hears(shapes: Shapes, adapter: str) -> bool:
    return shapes.holds(f"{adapter}conv.") and shapes.holds(f"{adapter}proj.")


def template(seeing: PromptTemplate) -> PromptTemplate:
    """What the models that see are asked with, as those that hear are."""
    return replace(seeing, assistant="\x16Assistant:", wordless=True)


def sound_config(shapes: Shapes, adapter: str, encoder: str) -> SoundConfig:
    """Of an adapter and an encoder behind these prefixes."""
    hidden, width, _ = shapes.of(f"{adapter}conv.weight", 3)
    return SoundConfig(_encoder_config(shapes, encoder, width), SpeechProjectorConfig(width, hidden))


def sound_parts(shapes: Shapes, adapter: str, encoder: str) -> list[Part]:
    """Their tensors as those of `MMRWKV7.sound`."""
    own = whisper.own_name if _is_whisper(shapes, encoder) else wavlm.own_name
    theirs = {own(inside): inside for name in shapes.stored.tensors if (inside := name.removeprefix(encoder)) != name}
    return [
        renamed_part(
            shapes.stored.tensors,
            adapter,
            "sound.projector.",
            lambda name: name.replace("proj.", "mlp."),
            lambda name: name.replace("mlp.", "proj."),
        ),
        renamed_part(
            shapes.stored.tensors,
            encoder,
            "sound.encoder.",
            own,
            lambda name: theirs.get(name, name.removeprefix("body.")),
        ),
    ]


def _is_whisper(shapes: Shapes, encoder: str) -> bool:
    return shapes.holds(f"{encoder}embed_positions.")


def _encoder_config(shapes: Shapes, encoder: str, width: int) -> WavLMConfig | WhisperConfig:
    if not shapes.holds(encoder):
        path = shapes.stored.path
        published = PUBLISHED["whisper" if "whisper" in str(path).lower() else "wavlm"]
        if width not in published:
            raise ValueError(f"{path} leaves out a sound encoder of width {width}, expected {sorted(published)}")
        return published[width]
    if _is_whisper(shapes, encoder):
        width, bins, _ = shapes.of(f"{encoder}conv1.weight", 3)
        tokens, _ = shapes.of(f"{encoder}embed_positions.weight", 2)
        hidden, _ = shapes.of(f"{encoder}layers.0.fc1.weight", 2)
        layers = shapes.depth(f"{encoder}layers.")
        return WhisperConfig(width, layers, width // WHISPER_HEAD, hidden, LogMel(bins, 2 * tokens))
    width, channels = shapes.of(f"{encoder}feature_projection.projection.weight", 2)
    _, head = shapes.of(f"{encoder}encoder.layers.0.attention.gru_rel_pos_linear.weight", 2)
    hidden, _ = shapes.of(f"{encoder}encoder.layers.0.feed_forward.intermediate_dense.weight", 2)
    layers = shapes.depth(f"{encoder}encoder.layers.")
    norm_first = shapes.holds(f"{encoder}feature_extractor.conv_layers.1.layer_norm.")
    return WavLMConfig(width, layers, width // head, hidden, channels, norm_first)
