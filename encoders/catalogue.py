"""The towers and sound encoders that this project names, ready to put into a config. Any other of the towers' libraries
works as well."""

from dataclasses import dataclass

from encoders.ast import ASTConfig
from encoders.birwkv7 import PUBLISHED_SPECTROGRAM, BiRWKV7Config
from encoders.build import SoundEncoderConfig, TowerConfig
from encoders.concat import ConcatTowerConfig
from encoders.protocol import Preprocess
from encoders.sam import SamTowerConfig
from encoders.timm_tower import TimmTowerConfig
from encoders.transformers_tower import TransformersTowerConfig
from encoders.wavlm import WavLMConfig
from encoders.whisper import WhisperConfig

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, std
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

SIGLIP2_BASE = {"model_type": "siglip_vision_model", "patch_size": 16}
CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "patch_size": 14,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}
SAM_BASE = SamTowerConfig(Preprocess(1024, *IMAGENET))


@dataclass(frozen=True)
class Entry:
    """An encoder with what it gives for a picture or a whole window of sound, and the licence of its published
    weights."""

    name: str
    library: str
    config: TowerConfig | SoundEncoderConfig
    width: int
    tokens: int
    licence: str


CATALOGUE = (
    Entry("resnet10t-96", "timm", TimmTowerConfig("resnet10t", 96, {"output_stride": 16}), 512, 36, "apache-2.0"),
    Entry(
        "siglip-so400m-384",
        "timm",
        TimmTowerConfig("vit_so400m_patch14_siglip_384.webli", 384),
        1152,
        729,
        "apache-2.0",
    ),
    Entry(
        "siglip2-base-384",
        "transformers",
        TransformersTowerConfig(
            SIGLIP2_BASE, Preprocess(384, *HALF, "bilinear"), name="google/siglip2-base-patch16-384"
        ),
        768,
        576,
        "apache-2.0",
    ),
    Entry(
        "dinov2-large-reg-518",
        "timm",
        TimmTowerConfig("vit_large_patch14_reg4_dinov2.lvd142m", 518),
        1024,
        1369,
        "apache-2.0",
    ),
    Entry(
        "dinov3-large-256",
        "timm",
        TimmTowerConfig("vit_large_patch16_dinov3.lvd1689m", 256),
        1024,
        256,
        "dinov3-license",
    ),
    Entry(
        "clip-large-336",  # as WorldRWKV reads it, with the class token
        "transformers",
        TransformersTowerConfig(
            CLIP_LARGE, Preprocess(336, *CLIP), norm=False, class_token=True, name="openai/clip-vit-large-patch14-336"
        ),
        1024,
        577,
        "mit",
    ),
    Entry("sam-base-1024", "timm", SAM_BASE, 1024, 1024, "apache-2.0"),
    Entry(
        "visualrwkv-trio",
        "timm",
        ConcatTowerConfig(
            (
                TimmTowerConfig("vit_large_patch14_reg4_dinov2.lvd142m", 448, layer=-2, norm=False),
                TimmTowerConfig("vit_so400m_patch14_siglip_384.webli", 448, layer=-2, norm=False),
                SAM_BASE,
            )
        ),
        3200,
        1024,
        "apache-2.0",
    ),
)


WHISPER_SMALL = WhisperConfig(name="openai/whisper-small")
WHISPER_MEDIUM = WhisperConfig(1024, 24, 16, 4096, name="openai/whisper-medium")
WAVLM_BASE = WavLMConfig(768, 12, 12, 3072, norm_first=False, name="microsoft/wavlm-base-plus")
WAVLM_LARGE = WavLMConfig(name="microsoft/wavlm-large")
A_RWKV_TINY = BiRWKV7Config(spectrogram=PUBLISHED_SPECTROGRAM, norm=False, hears_padding=True)
A_RWKV_SMALL = BiRWKV7Config(384, gate_rank=64, spectrogram=PUBLISHED_SPECTROGRAM, norm=False, hears_padding=True)
A_RWKV_BASE = BiRWKV7Config(
    768,
    decay_rank=64,
    iclr_rank=64,
    gate_rank=128,
    spectrogram=PUBLISHED_SPECTROGRAM,
    norm=False,
    hears_padding=True,
)

SOUNDS = (
    Entry("whisper-small", "transformers", WHISPER_SMALL, 768, 1500, "mit"),
    Entry("whisper-medium", "transformers", WHISPER_MEDIUM, 1024, 1500, "mit"),
    Entry("wavlm-base-plus", "transformers", WAVLM_BASE, 768, 1999, "cc-by-sa-3.0"),
    Entry("wavlm-large", "transformers", WAVLM_LARGE, 1024, 1999, "cc-by-sa-3.0"),
    Entry("ast", "transformers", ASTConfig(), 768, 1212, "bsd-3-clause"),
    Entry("a-rwkv-tiny", "mm-rwkv7", A_RWKV_TINY, 192, 496, "bsd-3-clause"),
    Entry("a-rwkv-small", "mm-rwkv7", A_RWKV_SMALL, 384, 496, "bsd-3-clause"),
    Entry("a-rwkv-base", "mm-rwkv7", A_RWKV_BASE, 768, 496, "bsd-3-clause"),
)
