import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from encoders.concat import ConcatTowerConfig
from encoders.tiling import Tiling
from mm_rwkv7 import checkpoint
from mm_rwkv7.generate import prefill
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.interop.parts import Shapes
from mm_rwkv7.interop.siglip import siglip_config
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.projector import LinearProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7
from tests.mm_rwkv7.interop import seeded
from tests.mm_rwkv7.interop.peers import differences, distance, golden, opened, prompt, saved

# A blank line would end the turn: it is taken out, as in the original.
LONG_QUESTION = "What is in this picture?\n\n  \nA cat?"
LARGE = (800, 450)
FP32 = 1e-5
WIDE = {
    "D": 768,
    "dino_width": 1024,
    "siglip_width": 1152,
    "siglip_hidden": 4304,
    "sam_width": 768,
    "ranks": (64, 64, 32, 128),
}


@pytest.fixture(scope="module")
def trio_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(seeded.trio(), tmp_path_factory.mktemp("trio") / "VisualRWKV-v0700.pth")


@pytest.fixture(scope="module")
def trio(trio_file: Path) -> Pipeline:
    return opened(trio_file)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(seeded.siglip_rwkv(compressor=3), tmp_path_factory.mktemp("vtc") / "rwkv-0.pth")


def test_v700_computes_what_the_original_does(trio: Pipeline) -> None:
    expected = golden("v700_small")
    assert torch.equal(prompt(trio, LONG_QUESTION).ids[0], expected["prompt"])
    found = differences(trio, expected, question=LONG_QUESTION)
    assert max(found.values()) < FP32, found


def test_pad_compat_is_the_padding_of_the_original(trio: Pipeline) -> None:
    expected = golden("v700_small")
    batch = prompt(trio, LONG_QUESTION)
    assert batch.pixels is not None
    assert batch.ids.shape[1] % 16
    with torch.no_grad():
        features = trio.model.encode(batch.pixels)
        padded, plain = (
            trio.model.lm.head(prefill(trio.model, batch.ids, None, features, pad_compat=pad)[0])[0, ::256]
            for pad in (True, False)
        )
    assert distance(padded, expected["logits_padded"][-1]) < FP32
    assert distance(plain, expected["logits"][-1]) < FP32
    assert distance(padded, plain) > 100 * FP32


def test_pad_compat_of_a_pipeline_concerns_the_first_prompt_only(trio: Pipeline) -> None:
    padding = Pipeline(trio.model, pad_compat=True)
    messages = [{"role": "user", "content": "Hello"}]
    length = trio.processor(messages, generate=False).ids.shape[1]
    first = padding.prefill(messages)
    assert first.tokens_seen == length + -length % 16
    assert padding.prefill(messages, first).tokens_seen == first.tokens_seen + length


@pytest.mark.slow
def test_v700_at_its_true_widths(tmp_path: Path) -> None:
    wide = opened(saved(seeded.trio(**WIDE), tmp_path / "v0700.pth"))
    found = differences(wide, golden("v700_wide"), question=LONG_QUESTION)
    assert max(found.values()) < FP32, found


@pytest.mark.parametrize("half", ["x_rwkv.pth", "x_visual.pth", ""])
def test_an_exported_pair_opens_by_either_file_or_its_folder(trio: Pipeline, tmp_path: Path, half: str) -> None:
    tensors = seeded.checkpoint(seeded.trio())
    language = {name.removeprefix("rwkv."): t for name, t in tensors.items() if name.startswith("rwkv.")}
    torch.save(language, tmp_path / "x_rwkv.pth")
    torch.save({name: t for name, t in tensors.items() if not name.startswith("rwkv.")}, tmp_path / "x_visual.pth")
    found = checkpoint.load(tmp_path / half).state_dict()
    expected = trio.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    lm = RWKV7.from_pretrained(tmp_path / half, "cpu", "fp32").state_dict()
    assert all(torch.equal(lm[name], expected[f"lm.{name}"]) for name in lm)


def test_half_of_a_pair_names_the_missing_file(tmp_path: Path) -> None:
    path = saved(seeded.under("proj.", seeded.gated(64, 64)), tmp_path / "x_visual.pth")
    with pytest.raises(ValueError, match=r"x_rwkv\.pth is missing"):
        open_checkpoint(path)


def test_every_wrong_tensor_is_named_as_the_file_names_it(tmp_path: Path) -> None:
    shapes = seeded.trio()
    names = ("vit.sam_featurizer.blocks.1.mlp.lin2.bias", "rwkv.blocks.1.att.x_r", "vit.dino_featurizer.norm.weight")
    for name in names:
        del shapes[name]
    shapes |= {"proj.ln_v.bias": (7,), "proj.extra.weight": (3, 3), "stranger": (2,)}
    with pytest.raises(ValueError, match="does not fit") as caught:
        opened(saved(shapes, tmp_path / "x.pth"))
    message = str(caught.value)
    assert set(re.findall(r"missing ([\w.]+)", message)) == set(names)
    assert set(re.findall(r"unexpected ([\w.]+)", message)) == {"proj.extra.weight", "stranger"}
    assert "proj.ln_v.bias has shape (7,), expected (128,)" in message


def test_a_tower_without_its_first_tensor_is_refused(tmp_path: Path) -> None:
    shapes = seeded.trio()
    del shapes["vit.siglip_featurizer.patch_embed.proj.weight"]
    with pytest.raises(ValueError, match=r"missing vit\.siglip_featurizer\.patch_embed\.proj\.weight"):
        open_checkpoint(saved(shapes, tmp_path / "x.pth"))


@pytest.mark.parametrize(("version", "name"), [("v701", "rwkv-0.pth"), ("v702", "rwkv0b1-v0702.pth")])
def test_v701_and_v702_compute_what_the_originals_do(tmp_path: Path, version: str, name: str) -> None:
    pipeline = opened(saved(seeded.siglip_rwkv(), tmp_path / name))
    expected = golden(version)
    assert torch.equal(prompt(pipeline, size=LARGE).ids[0], expected["prompt"])
    found = differences(pipeline, expected, LARGE)
    assert max(found.values()) < FP32, found


@pytest.mark.parametrize(("version", "tokens"), [(3, 100), (4, 64)])
def test_the_compressor_computes_what_the_originals_do(compressed: Path, version: int, tokens: int) -> None:
    found = open_checkpoint(compressed)
    compressor = found.config.compressor
    assert compressor is not None
    config = replace(found.config, compressor=replace(compressor, tokens=tokens, per_tile=version == 4))
    pipeline = Pipeline(checkpoint.build(replace(found, config=config), torch.float32))
    expected = golden(f"v70{version}")
    assert torch.equal(prompt(pipeline, size=LARGE).ids[0], expected["prompt"])
    result = differences(pipeline, expected, LARGE)
    assert max(result.values()) < FP32, result


def test_pictures_are_compressed_one_by_one(compressed: Path) -> None:
    model = checkpoint.load(compressed)
    pipeline = Pipeline(model)
    sizes = (LARGE, (200, 300))
    pictures = [seeded.picture(*size) for size in sizes]
    parts = [{"type": "image", "image": picture} for picture in pictures]
    batch = pipeline.processor([{"role": "user", "content": [*parts, {"type": "text", "text": "Alike?"}]}])
    assert batch.tiles == (6, 1)
    assert batch.pixels is not None
    with torch.no_grad():
        together = model.encode(batch.pixels, batch.tiles)
        alone = [model.encode(pipeline.processor.pixels(p), (n,)) for p, n in zip(pictures, batch.tiles, strict=True)]
    assert distance(together, torch.cat(alone)) < FP32


@pytest.mark.parametrize(
    ("name", "compressor", "version", "tiling"),
    [
        ("rwkv-1.pth", 0, "7.01", None),
        ("x-v0702.pth", 0, "7.02", Tiling(256)),
        ("x-v0704.pth", 0, "7.01", None),
        ("rwkv-1.pth", 2, "7.03", Tiling(256, closest=True)),
        ("x-v0704.pth", 2, "7.04", Tiling(256, closest=True)),
        ("v0701/v0702/v0704/rwkv-1.pth", 0, "7.02", Tiling(256)),
        ("v0702/v0701.pth", 0, "7.01", None),
    ],
)
def test_the_path_tells_versions_apart_whose_tensors_are_alike(
    tmp_path: Path, name: str, compressor: int, version: str, tiling: Tiling | None
) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    path = saved(seeded.siglip_rwkv(D=64, layers=1, width=64, depth=1, compressor=compressor), tmp_path / name)
    found = open_checkpoint(path)
    assert found.format == f"VisualRWKV {version}"
    assert found.config.tiling == tiling
    assert (found.config.compressor is not None) == bool(compressor)


@pytest.mark.parametrize(("width", "heads"), [(768, 12), (1024, 16), (1152, 16), (1536, 16)])
def test_a_siglip_has_the_heads_of_the_published_one(width: int, heads: int) -> None:
    found = siglip_config(vision_model(width), "", "published-256")
    assert found.vision["num_attention_heads"] == heads


@pytest.mark.parametrize("width", [100, 1280])
def test_a_siglip_of_unknown_heads_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match=f"vision.pth holds a SigLIP of width {width}"):
        siglip_config(vision_model(width), "", "published-256")


def vision_model(width: int) -> Shapes:
    shapes = seeded.siglip_hf(width, depth=1, tokens=256)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    return Shapes(Stored(Path("vision.pth"), tensors, "torch"))


def test_a_linear_projector_is_recognised(tmp_path: Path) -> None:
    shapes = seeded.siglip_rwkv(D=64, layers=1, width=64, depth=1)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("proj.")}
    found = open_checkpoint(saved(shapes | {"proj.weight": (64, 64)}, tmp_path / "x.pth"))
    assert found.config.projector == LinearProjectorConfig(64)
    checkpoint.build(found, torch.float32)


def test_towers_that_the_file_leaves_out_are_the_published_ones(trio_file: Path, tmp_path: Path) -> None:
    shapes = seeded.trio(D=64, layers=1)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(("vit.", "proj."))}
    shapes |= seeded.under("proj.", seeded.gated(3200, 64))
    found = open_checkpoint(saved(shapes, tmp_path / "x.pth"))
    assert found.fetch_tower
    assert isinstance(found.config.tower, ConcatTowerConfig)
    assert [tower.name for tower in found.config.tower.towers] == [
        "vit_large_patch14_reg4_dinov2.lvd142m",
        "vit_so400m_patch14_siglip_384",
        "samvit_base_patch16",
    ]
    assert not open_checkpoint(trio_file).fetch_tower
