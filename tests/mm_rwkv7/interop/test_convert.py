"""Conversions keep every bit, are whole or not there, and replace nothing that is somebody else's."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mm_rwkv7 import checkpoint
from mm_rwkv7.interop.convert import convert
from mm_rwkv7.interop.files import read
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config

Maker = Callable[..., dict[str, Tensor]]


def assert_equal(found: Any, expected: Any) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blinkdl_to_native_and_back_keeps_every_bit(make_blinkdl: Maker, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = make_blinkdl(dtype=dtype)
    torch.save(tensors, tmp_path / "a.pth")
    there = convert(tmp_path / "a.pth", tmp_path / "native")
    assert there.format == "BlinkDL RWKV-7 (torch)"
    assert there.parameters == sum(tensor.numel() for tensor in tensors.values())
    convert(tmp_path / "native", tmp_path / "b.pth", to="blinkdl")
    assert_equal(torch.load(tmp_path / "b.pth", weights_only=True), tensors)


def test_native_to_blinkdl_and_back_keeps_the_language_model(
    tiny_model: MMRWKV7, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    done = convert(tiny_checkpoint, tmp_path / "lm.pth", to="blinkdl")
    assert done.parameters == sum(parameter.numel() for parameter in tiny_model.lm.parameters())
    convert(tmp_path / "lm.pth", tmp_path / "native")
    expected = {f"lm.{name}": tensor for name, tensor in tiny_model.lm.state_dict().items()}
    assert_equal(read(tmp_path / "native").tensors, expected)
    assert (tmp_path / "lm.pth").stat().st_size < 1.1 * sum(p.nbytes for p in tiny_model.lm.parameters()) + 1e5


def test_a_trained_ggmf_model_converts_and_answers_alike(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "rwkv7/tiny-rwkv-7v0-834K-FP32.bin"
    assert convert(source, tmp_path / "native").format == "BlinkDL RWKV-7 (ggmf)"
    ids = torch.tensor([list(b'"in')])
    with torch.no_grad():
        found, expected = (RWKV7.from_pretrained(path, "cpu")(ids)[0] for path in (tmp_path / "native", source))
    assert torch.equal(found, expected)


def test_the_tokenizer_of_a_pile_model_goes_along(make_blinkdl: Maker, tmp_path: Path) -> None:
    torch.save(make_blinkdl(16, 1, 50277), tmp_path / "a.pth")
    (tmp_path / "20B_tokenizer.json").write_text("{}")
    convert(tmp_path / "a.pth", tmp_path / "native")
    assert (tmp_path / "native/20B_tokenizer.json").read_text() == "{}"
    assert open_checkpoint(tmp_path / "native").config.tokenizer == "pile"


def test_tensors_that_share_memory_are_written_each(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    tensors["head.weight"] = tensors["emb.weight"]
    tensors["ln_out.weight"], tensors["ln_out.bias"] = torch.rand(2, 64)
    torch.save(tensors, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "b.pth", to="blinkdl")
    assert_equal(torch.load(tmp_path / "b.pth", weights_only=True), tensors)


def test_what_blinkdl_s_names_cannot_say_is_refused_or_told(
    tiny_model: MMRWKV7, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert convert(tiny_checkpoint, tmp_path / "native").lost is None
    lost = convert(tiny_checkpoint, tmp_path / "a.pth", to="blinkdl").lost
    assert lost is not None
    assert f"which {tiny_model.config.lm.vocab_size} World ids" in lost
    config = tmp_path / "native/config.json"
    config.write_text(config.read_text().replace('"iclr_multiplier": 1.0', '"iclr_multiplier": 2.0'))
    with pytest.raises(ValueError, match=r"iclr_multiplier 2\.0"):
        convert(tmp_path / "native", tmp_path / "b.pth", to="blinkdl")


def test_the_place_is_checked_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/thesis.tex").touch()
    for to in ("native", "blinkdl", "hf"):
        with pytest.raises(ValueError, match="thesis"):
            convert(tmp_path / "absent.pth", tmp_path / "thesis", to=to)


def test_a_folder_s_name_keeps_its_dots(blinkdl_file: Path, tmp_path: Path) -> None:
    convert(blinkdl_file, tmp_path / "m-1.5B")
    convert(tmp_path / "m-1.5B", tmp_path / "again")
    assert (tmp_path / "again/README.md").read_text().startswith("# m-1.5B\n")


def test_only_our_own_folders_are_replaced(blinkdl_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(blinkdl_file, out)
    convert(blinkdl_file, out)
    (out / "thesis.tex").touch()
    with pytest.raises(ValueError, match="out exists and is not"):
        convert(blinkdl_file, out)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file exists and is not"):
        convert(blinkdl_file, tmp_path / "file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="other exists and is not"):
        convert(blinkdl_file, tmp_path / "other")
    with pytest.raises(ValueError, match="would replace what it is made from"):
        convert(blinkdl_file, blinkdl_file, to="blinkdl")
    with pytest.raises(ValueError, match=r"file does not end in \.pth"):
        convert(blinkdl_file, tmp_path / "file", to="blinkdl")
    (tmp_path / "x.pth").touch()
    with pytest.raises(ValueError, match=r"x\.pth exists"):
        convert(blinkdl_file, tmp_path / "x.pth", to="blinkdl")
    with pytest.raises(ValueError, match="out exists"):
        convert(blinkdl_file, out, to="hf")
    with pytest.raises(ValueError, match="expected one of native, blinkdl, hf"):
        convert(blinkdl_file, tmp_path / "y", to="onnx")


def test_a_folder_for_transformers_comes_back_bit_for_bit(tiny_checkpoint: Path, tmp_path: Path) -> None:
    convert(tiny_checkpoint, tmp_path / "hf", to="hf")
    assert convert(tmp_path / "hf", tmp_path / "back").format == "mm-rwkv7 (transformers)"
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "back" / name).read_bytes() == (tiny_checkpoint / name).read_bytes()


def test_the_language_model_of_a_folder_for_transformers_opens_alone(
    tiny_model: MMRWKV7, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny_model)
    config = replace(model.config.lm, iclr_multiplier=2.0)  # which no shape tells
    model.config = replace(model.config, lm=config)
    checkpoint.save(model, tmp_path / "native", "")
    convert(tmp_path / "native", tmp_path / "hf", "hf")
    for file in ("", "model.safetensors"):
        found = RWKV7.from_pretrained(tmp_path / "hf" / file, "cpu", "fp32")
        assert found.config == config
        assert_equal(found.state_dict(), model.lm.state_dict())


@pytest.mark.parametrize("to", ["native", "hf"])
def test_a_config_of_a_billion_blocks_costs_nothing(tiny_checkpoint: Path, tmp_path: Path, to: str) -> None:
    convert(tiny_checkpoint, tmp_path / "x", to)
    path = tmp_path / "x" / "config.json"
    fields = json.loads(path.read_text())
    (fields if to == "native" else fields["native"])["lm"]["layers"] = 10**9
    path.write_text(json.dumps(fields))
    for load in (checkpoint.load, RWKV7.from_pretrained):
        with pytest.raises(ValueError, match="holds 2 blocks, its config 1000000000"):
            load(tmp_path / "x")


@pytest.mark.parametrize("to", ["native", "blinkdl"])
def test_an_interrupted_conversion_leaves_nothing(
    blinkdl_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("huggingface_hub.save_torch_state_dict", interrupt)
    monkeypatch.setattr("torch.save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(blinkdl_file, tmp_path / "out.pth", to=to)
    assert list(tmp_path.iterdir()) == [blinkdl_file]


def test_nothing_is_written_from_a_file_that_does_not_load(make_blinkdl: Maker, tmp_path: Path) -> None:
    tensors = make_blinkdl()
    tensors["head.weight"][0, 0] = torch.nan
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"head\.weight holds NaN"):
        convert(tmp_path / "a.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def rwkv6(width: int = 64, layers: int = 2, rows: int = 80, head: int = 16) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of RWKV-6 (RWKV-LM/RWKV-v5/src/model.py, x060)."""
    generator = torch.Generator().manual_seed(0)
    hidden = int(width * 3.5)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    norms = [f"blocks.{i}.{name}" for i in range(layers) for name in ("ln1", "ln2", "att.ln_x")]
    tensors = {f"{n}.{kind}": random(width) for n in [*norms, "blocks.0.ln0", "ln_out"] for kind in ("weight", "bias")}
    for i in range(layers):
        att, ffn = f"blocks.{i}.att.", f"blocks.{i}.ffn."
        tensors |= {f"{att}time_maa_{c}": random(1, 1, width) for c in "xrwkvg"}
        tensors |= {f"{att}time_maa_w1": random(width, 160), f"{att}time_maa_w2": random(5, 32, width)}
        tensors |= {f"{att}time_decay_w1": random(width, 64), f"{att}time_decay_w2": random(64, width)}
        tensors |= {f"{att}time_decay": random(1, 1, width), f"{att}time_faaaa": random(width // head, head)}
        names = ("receptance", "key", "value", "output", "gate")
        tensors |= {f"{att}{name}.weight": random(width, width) for name in names}
        tensors |= {f"{ffn}time_maa_k": random(1, 1, width), f"{ffn}time_maa_r": random(1, 1, width)}
        tensors |= {f"{ffn}key.weight": random(hidden, width), f"{ffn}value.weight": random(width, hidden)}
        tensors |= {f"{ffn}receptance.weight": random(width, width)}
    return tensors | {"emb.weight": random(rows, width), "head.weight": random(rows, width)}


def test_a_warm_start_carries_over_what_has_an_equal(tmp_path: Path) -> None:
    old = rwkv6()
    torch.save(old, tmp_path / "v6.pth")
    start = convert(tmp_path / "v6.pth", tmp_path / "out", warm=True).start
    assert open_checkpoint(tmp_path / "out").config.lm == RWKV7Config(80, 64, 2, 16, 32, 32, 32, 32, 224)
    new = read(tmp_path / "out").tensors
    for theirs, ours in (
        ("emb.weight", "lm.emb.weight"),
        ("blocks.0.ln0.bias", "lm.ln0.bias"),
        ("blocks.1.att.receptance.weight", "lm.blocks.1.time_mix.receptance.weight"),
        ("blocks.1.att.output.weight", "lm.blocks.1.time_mix.output.weight"),
        ("blocks.0.att.ln_x.weight", "lm.blocks.0.time_mix.ln_x.weight"),
        ("blocks.1.ffn.key.weight", "lm.blocks.1.channel_mix.key.weight"),
        ("blocks.1.ffn.time_maa_k", "lm.blocks.1.channel_mix.x_k"),
        ("head.weight", "lm.head.weight"),
    ):
        assert torch.equal(new[ours], old[theirs].flatten() if old[theirs].ndim == 3 else old[theirs]), ours
    assert start is not None
    assert {"blocks.*.time_mix.w0", "blocks.*.time_mix.g1", "blocks.*.time_mix.x_r"} <= set(start.initialised)
    assert not set(start.initialised) & set(start.carried)
    assert {"blocks.*.ffn.receptance.weight", "blocks.*.att.time_faaaa"} <= set(start.dropped)
    card = (tmp_path / "out/README.md").read_text()
    assert "needs training" in card
    assert all(f"`{name}`" in card for name in (*start.carried, *start.initialised, *start.dropped))
    logits, _ = RWKV7.from_pretrained(tmp_path / "out", "cpu")(torch.arange(20)[None])
    logits.logsumexp(-1).mean().backward()
    assert logits.isfinite().all()


def test_a_warm_start_takes_the_language_half_of_an_export(tmp_path: Path) -> None:
    torch.save(rwkv6(), tmp_path / "x_rwkv.pth")
    torch.save({"proj.weight": torch.ones(2, 2)}, tmp_path / "x_visual.pth")
    assert convert(tmp_path / "x_rwkv.pth", tmp_path / "out", warm=True).format == "RWKV-7 begun from RWKV-6"


def test_a_warm_start_is_the_same_each_time(tmp_path: Path) -> None:
    torch.save(rwkv6(), tmp_path / "v6.pth")
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        convert(tmp_path / "v6.pth", tmp_path / name, warm=True)
    assert_equal(load_file(tmp_path / "a/model.safetensors"), load_file(tmp_path / "b/model.safetensors"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blocks.0.att.time_state": torch.ones(4, 16, 16)}, "a state of RWKV-6 has no equal in RWKV-7"),
        ({"blocks.0.att.gate_w1": torch.ones(4)}, "not plain RWKV-6: unexpected blocks.0.att.gate_w1"),
        ({"blocks.1.att.key.weight": None}, "missing blocks.1.att.key.weight"),
        ({"blocks.0.att.time_faaaa": None}, "missing blocks.0.att.time_faaaa"),
        ({"head.weight": torch.ones(3, 3)}, "head.weight has shape"),
    ],
)
def test_what_is_not_plain_rwkv6_is_refused(tmp_path: Path, change: dict[str, Tensor | None], reason: str) -> None:
    tensors = {name: tensor for name, tensor in (rwkv6() | change).items() if tensor is not None}
    torch.save(tensors, tmp_path / "v6.pth")
    with pytest.raises(ValueError, match=rf"v6\.pth.*{reason}"):
        convert(tmp_path / "v6.pth", tmp_path / "out", warm=True)
    assert not (tmp_path / "out").exists()


def test_warm_starts_are_for_rwkv6_alone(blinkdl_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no RWKV-6, a warm start needs RWKV-6"):
        convert(blinkdl_file, tmp_path / "out", warm=True)
    save_file({"blocks.0.att.time_state": torch.ones(4, 16, 16)}, tmp_path / "state.safetensors")
    with pytest.raises(ValueError, match="initial state"):
        convert(tmp_path / "state.safetensors", tmp_path / "out", warm=True)
    torch.save(rwkv6(), tmp_path / "v6.pth")
    with pytest.raises(ValueError, match="--warm-start"):
        convert(tmp_path / "v6.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()
