"""Language models under other names than ours: opened, checked, and refused by name."""

import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mm_rwkv7.interop import blinkdl, fla
from mm_rwkv7.interop.convert import convert
from mm_rwkv7.interop.files import read
from mm_rwkv7.interop.language import language_model
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config

Maker = Callable[..., dict[str, Tensor]]
IDS = torch.arange(24)[None] % 80


def logits(path: Path, dtype: str = "fp32") -> Tensor:
    with torch.no_grad():
        found: Tensor = RWKV7.from_pretrained(path, "cpu", dtype)(IDS)[0]
    return found


def as_fla(tensors: dict[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """What flash-linear-attention's converter (utils/convert_from_rwkv7.py) makes of BlinkDL's tensors."""
    names = [
        (r"^emb\.", f"{prefix}embeddings."),
        (r"^ln_out\.", f"{prefix}norm."),
        (r"^head\.", "lm_head."),
        (r"^blocks\.", f"{prefix}layers."),
        (r"\.ln0\.", ".pre_norm."),
        (r"\.ln1\.", ".attn_norm."),
        (r"\.ln2\.", ".ffn_norm."),
        (r"\.att\.ln_x\.", ".attn.g_norm."),
        (r"\.att\.receptance\.", ".attn.r_proj."),
        (r"\.att\.key\.", ".attn.k_proj."),
        (r"\.att\.value\.", ".attn.v_proj."),
        (r"\.att\.output\.", ".attn.o_proj."),
        (r"\.att\.([wavg])0$", r".attn.\1_lora.lora.2.bias"),
        (r"\.att\.([wavg])1$", r".attn.\1_lora.lora.0.weight"),
        (r"\.att\.([wavg])2$", r".attn.\1_lora.lora.2.weight"),
        (r"\.att\.", ".attn."),
    ]
    found = {}
    for name, tensor in tensors.items():
        transposed = re.search(r"\.att\.[wavg][12]$", name)
        mix = re.search(r"\.att\.x_.$", name)
        for pattern, theirs in names:
            name = re.sub(pattern, theirs, name)
        flat = tensor.flatten() if tensor.ndim == 3 and not mix else tensor
        found[name] = (flat.t() if transposed else flat).contiguous()
    return found


def write_ggmf(path: Path, tensors: dict[str, Tensor], kind: int = 0, version: int = 101) -> None:
    """What rwkv.cpp's converter (python/convert_pytorch_to_ggml.py) makes of BlinkDL's tensors."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if mix := re.fullmatch(r"(.*\.att\.)x_[rwkvag]", name):
            before = joined.get(f"{mix[1]}x_rwkvag")
            joined[f"{mix[1]}x_rwkvag"] = tensor if before is None else torch.cat([before, tensor])
        else:
            joined[name] = tensor.t() if re.search(r"\.att\.[wavg][12]$", name) else tensor
    rows, width = tensors["emb.weight"].shape
    layers = sum(name.endswith(".ln1.weight") for name in tensors)
    data = struct.pack("<6i", 0x67676D66, version, rows, width, layers, kind)
    for name, tensor in joined.items():
        half = kind == 1 and name.endswith(".weight") and tensor.ndim > 1
        values = tensor.float().numpy().astype("<f2" if half else "<f4")
        data += struct.pack(f"<3i{tensor.ndim}i", tensor.ndim, len(name), int(half), *reversed(tensor.shape))
        data += name.encode() + values.tobytes()
    path.write_bytes(data)


def test_names_translate_both_ways_without_a_bit_lost(make_blinkdl: Maker) -> None:
    his = make_blinkdl(dtype=torch.bfloat16)
    ours = blinkdl.ours(his)
    back = blinkdl.theirs(ours)
    assert back.keys() == his.keys()
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in his.items())
    assert {blinkdl.spell(name) for name in ours} == his.keys()
    assert {fla.spell(name) for name in ours} == as_fla(his).keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sizes_come_from_the_tensors(make_blinkdl: Maker, tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save(make_blinkdl(96, 3, 50304, 32, (5, 6, 7, 11), dtype), tmp_path / "m.pth")
    opened = open_checkpoint(tmp_path / "m.pth")
    assert opened.config.lm == RWKV7Config(50304, 96, 3, 32, 5, 6, 7, 11)
    assert opened.config.tokenizer == "pile"
    assert opened.format == "BlinkDL RWKV-7 (torch)"
    assert {tensor.dtype for tensor in opened.tensors.values()} == {dtype}


@pytest.mark.parametrize(("rows", "tokenizer"), [(65536, "world"), (50277, "pile"), (50304, "pile"), (80, None)])
def test_rows_tell_the_tokenizer(make_blinkdl: Maker, tmp_path: Path, rows: int, tokenizer: str | None) -> None:
    torch.save(make_blinkdl(16, 1, rows), tmp_path / "m.pth")
    assert open_checkpoint(tmp_path / "m.pth").config.tokenizer == tokenizer


def test_a_model_of_unknown_vocabulary_is_for_ids_only(blinkdl_file: Path) -> None:
    with pytest.raises(ValueError, match="80 embedding rows, which belong to no tokenizer"):
        Pipeline.from_pretrained(blinkdl_file, "cpu")


def test_unused_tensors_of_the_first_block_are_ignored(make_blinkdl: Maker, blinkdl_file: Path, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    extra = {f"blocks.0.att.v{i}": tensors[f"blocks.1.att.v{i}"] for i in range(3)}
    torch.save(tensors | extra, tmp_path / "with.pth")
    assert torch.equal(logits(tmp_path / "with.pth"), logits(blinkdl_file))


def test_the_same_weights_in_every_container_give_the_same_logits(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    torch.save(tensors, tmp_path / "zip.pth")
    torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    save_file(tensors, tmp_path / "his.safetensors")
    save_file(as_fla(tensors), tmp_path / "fla.safetensors")
    torch.save(as_fla(tensors, "model.llm."), tmp_path / "inside.pth")
    early = as_fla(tensors)
    for i in range(2):
        mixes = [early.pop(f"model.layers.{i}.attn.x_{c}").flatten() for c in "rwkvag"]
        early[f"model.layers.{i}.attn.x_x"] = torch.stack(mixes)
    torch.save(early, tmp_path / "early.pth")
    convert(tmp_path / "early.pth", tmp_path / "native")
    torch.save({f"rwkv.{name}": t for name, t in tensors.items()} | {"vit.x": torch.ones(2)}, tmp_path / "sees.pth")
    write_ggmf(tmp_path / "rwkv.cpp.bin", tensors)
    expected = logits(tmp_path / "zip.pth")
    for name in (
        "old.pth",
        "his.safetensors",
        "fla.safetensors",
        "inside.pth",
        "early.pth",
        "native",
        "sees.pth",
        "rwkv.cpp.bin",
    ):
        assert torch.equal(logits(tmp_path / name), expected), name


def test_half_precision_ggmf_rounds_matrices_only(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    write_ggmf(tmp_path / "half.bin", tensors, kind=1)
    found = read(tmp_path / "half.bin").tensors
    assert torch.equal(found["head.weight"], tensors["head.weight"].half())
    assert torch.equal(found["blocks.1.att.w1"], tensors["blocks.1.att.w1"])
    assert torch.equal(found["blocks.1.att.x_v"], tensors["blocks.1.att.x_v"])


@pytest.mark.parametrize(("kind", "name"), [(2, "Q4_0"), (7, "Q5_0"), (9, "Q8_0"), (99, "type 99")])
def test_quantised_ggmf_is_refused_by_name(make_blinkdl: Maker, tmp_path: Path, kind: int, name: str) -> None:
    write_ggmf(tmp_path / "q.bin", make_blinkdl(), kind=kind)
    with pytest.raises(ValueError, match=f"stored as {name}, expected FP32 or FP16"):
        read(tmp_path / "q.bin")


def test_every_cut_of_a_ggmf_file_is_refused(make_blinkdl: Maker, tmp_path: Path) -> None:
    whole = tmp_path / "whole.bin"
    write_ggmf(whole, make_blinkdl(16, 1, 20))
    data = whole.read_bytes()
    for end in np.linspace(4, len(data) - 1, 60).astype(int):
        (tmp_path / "cut.bin").write_bytes(data[:end])
        with pytest.raises(ValueError, match=r"cut\.bin"):
            RWKV7.from_pretrained(tmp_path / "cut.bin", "cpu")


def test_all_that_is_wrong_is_listed_under_the_names_of_the_file(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    del tensors["blocks.1.att.w2"], tensors["ln_out.bias"]
    tensors["blocks.0.ffn.key.weight"] = tensors["blocks.0.ffn.key.weight"].t().contiguous()
    tensors["blocks.1.att.x_r"] = tensors["blocks.1.att.x_r"].view(-1, 1, 1)
    tensors["blocks.7.extra"] = tensors["surplus"] = torch.ones(3)
    tensors["emb.weight"] = tensors["emb.weight"].to(torch.int8)
    torch.save({f"rwkv.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"m\.pth does not fit") as raised:
        RWKV7.from_pretrained(tmp_path / "m.pth", "cpu")
    for part in (
        "missing rwkv.blocks.1.att.w2",
        "missing rwkv.ln_out.bias",
        "unexpected rwkv.blocks.7.extra",
        "rwkv.blocks.1.att.x_r has shape (64, 1, 1), expected (64,)",
        "rwkv.blocks.0.ffn.key.weight has shape (64, 256), expected",
        "rwkv.emb.weight holds torch.int8",
    ):
        assert part in str(raised.value)


def test_tensors_beside_a_language_model_are_unexpected(make_blinkdl: Maker, tmp_path: Path) -> None:
    torch.save(make_blinkdl() | {"surplus.weight": torch.ones(3)}, tmp_path / "m.pth")
    from mm_rwkv7 import checkpoint

    with pytest.raises(ValueError, match=r"unexpected surplus\.weight"):
        checkpoint.load(tmp_path / "m.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_tensor_that_is_not_finite_is_named(make_blinkdl: Maker, tmp_path: Path, value: float) -> None:
    tensors = make_blinkdl(dtype=torch.bfloat16)
    tensors["blocks.1.att.key.weight"][3, 5] = value
    torch.save(tensors, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"blocks\.1\.att\.key\.weight holds NaN or infinity"):
        logits(tmp_path / "m.pth")


def test_numbers_that_fp16_cannot_hold_are_refused(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    tensors["ln_out.weight"][0] = 1e5
    torch.save(tensors, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"ln_out\.weight does not fit into torch\.float16"):
        logits(tmp_path / "m.pth", "fp16")


def test_a_file_without_its_sizes_says_which(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    del tensors["blocks.0.att.g1"], tensors["blocks.1.att.g1"]
    torch.save(tensors, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"does not tell the sizes.*missing blocks\.1\.att\.g1"):
        logits(tmp_path / "m.pth")


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["blocks.0.att.time_first", "blocks.0.att.time_decay", "blocks.0.att.time_mix_k"], "RWKV-4"),
        (["blocks.0.att.time_faaaa", "blocks.0.att.time_mix_g", "blocks.0.att.ln_x.weight"], "RWKV-5"),
        (["blocks.0.att.time_maa_x", "blocks.0.att.time_faaaa"], "RWKV-6.*--warm-start"),
        (["rwkv.blocks.0.attention.time_maa_x"], "RWKV-6"),
        (["blocks.0.att.r_k", "blocks.0.ffn.s_emb.weight", "blocks.0.ffn.s1"], "RWKV-7a.*DeepEmbed"),
        (["blocks.0.att.r_k", "blocks.0.ffn.s_emb.weight", "blocks.0.qkv.qq.weight"], "RWKV-7b.*DeepEmbed"),
        (["blocks.0.att.r_k", "blocks.0.ffn.enn.weight"], "RWKV-8.*DeepEmbed"),
        (["blocks.0.att.r_k", "blocks.0.qkv.qq.weight", "blocks.0.qkv.ennk.weight"], "RWKV-8 hybrid"),
        (["emb.weight", "blocks.0.rosa.emb", "blocks.0.ffn.key.weight"], "ROSA"),
        (["blocks.0.att.time_state", "blocks.1.att.time_state"], "initial state"),
        (["model.layers.0.self_attn.q_proj.weight"], r"no RWKV-7 that is known here.*q_proj"),
    ],
)
def test_variants_are_refused_by_name(tmp_path: Path, names: list[str], variant: str) -> None:
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "m.pth")
    for opened in (open_checkpoint, RWKV7.from_pretrained):
        with pytest.raises(ValueError, match=f"m.pth.*{variant}"):
            opened(tmp_path / "m.pth")


def test_a_tower_is_no_variant(make_blinkdl: Maker, tmp_path: Path) -> None:
    tower = {"vit.dino_featurizer.blocks.0.attn.qkv.weight": torch.ones(2, 2)}
    torch.save({f"rwkv.{name}": t for name, t in make_blinkdl().items()} | tower, tmp_path / "m.pth")
    assert language_model(read(tmp_path / "m.pth")).format == "BlinkDL"


def test_a_block_number_of_a_billion_costs_nothing(make_blinkdl: Maker, tmp_path: Path) -> None:
    torch.save(make_blinkdl() | {"blocks.999999999.ln1.weight": torch.ones(64)}, tmp_path / "m.pth")
    with pytest.raises(ValueError, match=r"unexpected blocks\.999999999\.ln1\.weight"):
        logits(tmp_path / "m.pth")
