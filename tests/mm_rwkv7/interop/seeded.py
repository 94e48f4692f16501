"""Checkpoints of the peers' formats with weights from a formula: the names and shapes of the published files, depth and
width as a test wants them, and values that are the same everywhere and for ever.

Letters: D width, F hidden width, V vocabulary, H heads, N head size, P patch size.
"""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]

VOCABULARY = 65536
# (decay, in-context learning rate, value residual, gate) of a tiny language model.
RANKS = (16, 24, 8, 40)


def noise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers in [-1, 1) from a hash of the name and the place, the same on every machine."""
    x = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(zlib.crc32(name.encode()))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x ^= x >> np.uint32(shift)
        x *= np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x.astype(np.float32) * np.float32(2**-31) - 1).reshape(shape)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor on the scale on which a trained one would be, exact in bf16."""
    u = noise(name, shape)
    last = name.rsplit(".", 1)[-1]
    if last in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g"):
        u = 0.5 + 0.5 * u
    elif last == "w0" or name.endswith("w_lora.lora.2.bias"):
        u = 3 * u - 3
    elif last in ("k_k", "k_a") or (last == "weight" and len(shape) == 1) or last == "gamma":
        u = 1 + 0.2 * u
    elif last in ("r_k", "bias", "in_proj_bias") or len(shape) == 1 or "pos" in last or "position" in name:
        u = 0.2 * u
    elif len(shape) >= 2 and not name.endswith(("emb.weight", "embeddings.weight")):
        low_rank = last in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")
        inputs = shape[0] if low_rank else int(np.prod(shape[1:]))
        u = u * np.float32((3 / inputs) ** 0.5)
    return torch.from_numpy(u.astype(np.float32)).bfloat16()


def checkpoint(shapes: Shapes) -> dict[str, Tensor]:
    return {name: weight(name, shape) for name, shape in shapes.items()}


def picture(width: int = 500, height: int = 333) -> Image.Image:
    """Smooth colours under grain, so that a wrong filter, order or orientation shows."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [np.sin(x / 31 + y / 57), np.cos(x / 83 - y / 19), np.sin((x + 2 * y) / 47)]
    grain = noise("picture", (height, width, 3))
    return Image.fromarray((127 + 90 * np.stack(waves, -1) + 37 * grain).clip(0, 255).astype(np.uint8))


def under(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def layer_norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def blinkdl_blocks(D: int, layers: int, ranks: tuple[int, int, int, int] = RANKS, N: int = 64) -> Shapes:
    shapes: Shapes = {}
    for i in range(layers):
        names = ["ln0", "ln1", "ln2"] if i == 0 else ["ln1", "ln2"]
        block: Shapes = {}
        for name in names:
            block |= layer_norm(name, D)
        block |= {f"att.{name}": (1, 1, D) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "k_k", "k_a")}
        block["att.r_k"] = (D // N, N)
        for letter, rank in zip("wavg", ranks, strict=True):
            if letter == "v" and i == 0:
                continue
            block |= {f"att.{letter}1": (D, rank), f"att.{letter}2": (rank, D)}
            if letter != "g":
                block[f"att.{letter}0"] = (1, 1, D)
        block |= {f"att.{name}.weight": (D, D) for name in ("receptance", "key", "value", "output")}
        block |= layer_norm("att.ln_x", D)
        block |= {"ffn.x_k": (1, 1, D), "ffn.key.weight": (4 * D, D), "ffn.value.weight": (D, 4 * D)}
        shapes |= under(f"blocks.{i}.", block)
    return shapes


def blinkdl(D: int, layers: int, ranks: tuple[int, int, int, int] = RANKS) -> Shapes:
    embedding = (VOCABULARY, D)
    return (
        {"emb.weight": embedding}
        | blinkdl_blocks(D, layers, ranks)
        | layer_norm("ln_out", D)
        | {"head.weight": embedding}
    )


def fla(D: int, layers: int, ranks: tuple[int, int, int, int] = RANKS, N: int = 64) -> Shapes:
    """The body of a flash-linear-attention RWKV-7; the head stands outside of it."""
    shapes: Shapes = {"embeddings.weight": (VOCABULARY, D)}
    for i in range(layers):
        block: Shapes = {}
        for name in ("pre_norm", "attn_norm", "ffn_norm") if i == 0 else ("attn_norm", "ffn_norm"):
            block |= layer_norm(name, D)
        block |= {f"attn.{name}": (1, 1, D) for name in ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g")}
        block |= {"attn.k_k": (D,), "attn.k_a": (D,), "attn.r_k": (D // N, N)}
        for letter, rank in zip("wavg", ranks, strict=True):
            if letter == "v" and i == 0:
                continue
            block |= {f"attn.{letter}_lora.lora.0.weight": (rank, D), f"attn.{letter}_lora.lora.2.weight": (D, rank)}
            if letter != "g":
                block[f"attn.{letter}_lora.lora.2.bias"] = (D,)
        block |= {f"attn.{letter}_proj.weight": (D, D) for letter in "rkvo"}
        block |= layer_norm("attn.g_norm", D)
        block |= {"ffn.x_k": (D,), "ffn.key.weight": (4 * D, D), "ffn.value.weight": (D, 4 * D)}
        shapes |= under(f"layers.{i}.", block)
    return shapes | layer_norm("norm", D)


def dino(D: int, depth: int) -> Shapes:
    """timm's vit_large_patch14_reg4_dinov2 at 448 px."""
    shapes: Shapes = {"cls_token": (1, 1, D), "reg_token": (1, 4, D), "pos_embed": (1, 1024, D)}
    shapes |= {"patch_embed.proj.weight": (D, 3, 14, 14), "patch_embed.proj.bias": (D,)}
    for i in range(depth):
        block = timm_block(D, 4 * D) | {"ls1.gamma": (D,), "ls2.gamma": (D,)}
        shapes |= under(f"blocks.{i}.", block)
    return shapes | layer_norm("norm", D)


def timm_block(D: int, F: int) -> Shapes:
    return (
        layer_norm("norm1", D)
        | linear("attn.qkv", D, 3 * D)
        | linear("attn.proj", D, D)
        | layer_norm("norm2", D)
        | linear("mlp.fc1", D, F)
        | linear("mlp.fc2", F, D)
    )


def siglip_timm(D: int, F: int, depth: int) -> Shapes:
    """timm's vit_so400m_patch14_siglip_384 at 448 px."""
    shapes: Shapes = {
        "pos_embed": (1, 1024, D),
        "patch_embed.proj.weight": (D, 3, 14, 14),
        "patch_embed.proj.bias": (D,),
    }
    for i in range(depth):
        shapes |= under(f"blocks.{i}.", timm_block(D, F))
    shapes |= layer_norm("norm", D)
    pool = {"latent": (1, 1, D)} | linear("q", D, D) | linear("kv", D, 2 * D) | linear("proj", D, D)
    pool |= layer_norm("norm", D) | linear("mlp.fc1", D, F) | linear("mlp.fc2", F, D)
    return shapes | under("attn_pool.", pool)


def sam(D: int, depth: int, neck: int = 256, N: int = 64) -> Shapes:
    """SAM's picture encoder at 1024 px: every third block sees the whole picture, the others windows of 14."""
    shapes: Shapes = {
        "pos_embed": (1, 64, 64, D),
        "patch_embed.proj.weight": (D, 3, 16, 16),
        "patch_embed.proj.bias": (D,),
    }
    for i in range(depth):
        positions = 127 if i % 3 == 2 else 27
        block = layer_norm("norm1", D) | linear("attn.qkv", D, 3 * D) | linear("attn.proj", D, D)
        block |= {"attn.rel_pos_h": (positions, N), "attn.rel_pos_w": (positions, N)}
        block |= layer_norm("norm2", D) | linear("mlp.lin1", D, 4 * D) | linear("mlp.lin2", 4 * D, D)
        shapes |= under(f"blocks.{i}.", block)
    shapes |= {"neck.0.weight": (neck, D, 1, 1), "neck.2.weight": (neck, neck, 3, 3)}
    return shapes | layer_norm("neck.1", neck) | layer_norm("neck.3", neck)


def siglip_hf(D: int, depth: int, tokens: int, P: int = 16) -> Shapes:
    """The vision model of a SigLIP2 base as transformers saves it."""
    shapes: Shapes = {
        "embeddings.patch_embedding.weight": (D, 3, P, P),
        "embeddings.patch_embedding.bias": (D,),
        "embeddings.position_embedding.weight": (tokens, D),
    }
    for i in range(depth):
        block = layer_norm("layer_norm1", D) | layer_norm("layer_norm2", D)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            block |= linear(f"self_attn.{name}", D, D)
        block |= linear("mlp.fc1", D, 4 * D) | linear("mlp.fc2", 4 * D, D)
        shapes |= under(f"encoder.layers.{i}.", block)
    head: Shapes = {"probe": (1, 1, D), "attention.in_proj_weight": (3 * D, D), "attention.in_proj_bias": (3 * D,)}
    head |= linear("attention.out_proj", D, D) | layer_norm("layernorm", D)
    head |= linear("mlp.fc1", D, 4 * D) | linear("mlp.fc2", 4 * D, D)
    return shapes | layer_norm("post_layernorm", D) | under("head.", head)


def gated(inputs: int, D: int) -> Shapes:
    """VisualRWKV's projector."""
    return {"gate.weight": (inputs, inputs), "o_proj.weight": (D, inputs)} | layer_norm("ln_v", D)


def trio(
    D: int = 128,
    layers: int = 2,
    dino_width: int = 128,
    siglip_width: int = 144,
    siglip_hidden: int = 160,
    sam_width: int = 128,
    depth: int = 3,
    ranks: tuple[int, int, int, int] = RANKS,
) -> Shapes:
    """VisualRWKV v7.00."""
    inputs = dino_width + siglip_width + 1024
    return (
        under("rwkv.", blinkdl(D, layers, ranks))
        | under("vit.dino_featurizer.", dino(dino_width, depth))
        | under("vit.siglip_featurizer.", siglip_timm(siglip_width, siglip_hidden, depth))
        | under("vit.sam_featurizer.", sam(sam_width, depth))
        | under("proj.", gated(inputs, D))
    )


def siglip_rwkv(D: int = 128, layers: int = 2, width: int = 128, depth: int = 3, compressor: int = 0) -> Shapes:
    """VisualRWKV v7.01 and v7.02; v7.03 and v7.04 with a compressor of so many blocks."""
    shapes = under("rwkv.", blinkdl(D, layers)) | under("vit.vision_model.", siglip_hf(width, depth, tokens=256))
    shapes |= under("proj.", gated(width, D))
    if compressor:
        shapes |= under("vtc.", blinkdl_blocks(D, compressor) | layer_norm("ln_out", D))
    return shapes


def adapter(width: int, D: int, hidden: int, body: str, convolution: bool = False) -> Shapes:
    """WorldRWKV's projector; generation 1 calls its perceptron `proj`, the later ones `mlp`."""
    shapes = layer_norm("pre_norm", D) | linear(f"{body}.0", width, hidden) | linear(f"{body}.2", hidden, D)
    return shapes | ({"conv.weight": (width, width, 3)} if convolution else {})


def world_1(
    D: int = 128, layers: int = 2, width: int = 128, depth: int = 3, ranks: tuple[int, int, int, int] = RANKS
) -> Shapes:
    """WorldRWKV's first generation, its encoder trained too."""
    encoder = "modality.world_encoder."
    return (
        blinkdl(D, layers, ranks)
        | under(f"{encoder}model.", siglip_hf(width, depth, tokens=576))
        | under(f"{encoder}adapter.", adapter(width, D, 2 * D, "proj"))
    )


def world_2(D: int = 128, layers: int = 2, width: int = 128, depth: int = 3, convolution: bool = False) -> Shapes:
    return (
        under("llm.", blinkdl(D, layers))
        | under("encoder.model.", siglip_hf(width, depth, tokens=576))
        | under("proj.", adapter(width, D, 4 * D, "mlp", convolution))
    )


def world_3(D: int = 128, layers: int = 2, width: int = 128, depth: int = 3) -> Shapes:
    """WorldRWKV as Hugging Face transformers saves it."""
    return (
        under("model.encoder.model.", siglip_hf(width, depth, tokens=576))
        | under("model.proj.", adapter(width, D, 4 * D, "mlp"))
        | under("model.llm.", fla(D, layers))
        | {"lm_head.weight": (VOCABULARY, D)}
    )


def sound(samples: int = 52_345) -> np.ndarray:
    """A chirp that fades, over noise that grows, at 16 kHz."""
    t = np.arange(samples, dtype=np.float64) / 16_000
    chirp = np.sin(2 * np.pi * (200 + 900 * t) * t) * np.exp(-t)
    return (0.4 * chirp + 0.02 * t * noise("sound", (samples,)) + 0.01).astype(np.float32)


def speech_adapter(width: int, D: int) -> Shapes:
    """WorldRWKV's projector of sounds."""
    hidden = 2 * D
    convolution: Shapes = {"conv.weight": (hidden, width, 3), "conv.bias": (hidden,)}
    return convolution | linear("proj.0", hidden, hidden) | linear("proj.2", hidden, D)


def world_1_hearing(encoder: Mapping[str, tuple[int, ...]], width: int, D: int = 128, layers: int = 1) -> Shapes:
    """WorldRWKV's first generation that hears, its encoder trained too where shapes of one are given."""
    behind = "modality.world_encoder."
    return blinkdl(D, layers) | under(f"{behind}adapter.", speech_adapter(width, D)) | under(f"{behind}model.", encoder)


def parameters(model: torch.nn.Module) -> Shapes:
    """What a library's model is saved as."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def audiorwkv(D: int = 128, layers: int = 2, tokens: int = 496, classes: int = 527, rank: int = 32) -> Shapes:
    """A-RWKV, whose first layer has parameters for a value residual that it does not use."""
    shapes: Shapes = {"emb.weight": (D, 1, 16, 16), "emb.bias": (D,), "pos_embed": (1, tokens, D)}
    for i in range(layers):
        block = layer_norm("ln1", D) | layer_norm("ln2", D) | layer_norm("att.ln_x", D)
        vectors = ("x_r", "x_w", "x_k", "x_v", "x_a", "x_g", "w0", "a0", "v0", "k_k", "k_a")
        block |= {f"att.{name}": (1, 1, D) for name in vectors}
        for letter in "wavg":
            block |= {f"att.{letter}1": (D, rank), f"att.{letter}2": (rank, D)}
        block |= {"att.r_k": (D // 64, 64), "att.gate.weight": (D // 64, 64, 1)}
        block |= {f"att.{name}.weight": (D, D) for name in ("receptance", "key", "value", "output")}
        block |= {f"{part}.time_shift.weight": (D, 1, 3, 3) for part in ("att", "ffn")}
        block |= {"ffn.x_k": (1, 1, D)} | linear("ffn.key", D, 4 * D) | linear("ffn.value", 4 * D, D)
        shapes |= under(f"blocks.{i}.", block)
    return shapes | layer_norm("ln_out", D) | {"head.weight": (classes, D)}
