import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from encoders.concat import ConcatTowerConfig
from encoders.open_clip_tower import OpenClipTowerConfig
from encoders.protocol import Preprocess
from encoders.sam import SamTowerConfig
from encoders.tiling import Tiling
from encoders.timm_tower import TimmTowerConfig
from encoders.transformers_tower import TransformersTowerConfig
from mm_rwkv7.config import MMConfig, PromptTemplate
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import IMAGE_TOKEN

FULL = MMConfig(
    RWKV7Config(3, 128, 2, head_size=32, ffn_width=100, iclr_multiplier=2.0),
    TimmTowerConfig("resnet10t", 96, {"output_stride": 16}),
    ProjectorConfig(512, 64, positions=(6, 6), summary=True),
    (0, 9, IMAGE_TOKEN),
    PromptTemplate(system="Σ: ", stop=("\n\n", "###")),
    max_new_tokens=7,
)


GREY = Preprocess(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear")
TOWERS = (
    TimmTowerConfig("test_vit", 64, {"depth": 3}, layer=-2, norm=False, preprocess=GREY),
    TransformersTowerConfig({"model_type": "clip_vision_model", "hidden_size": 32}, GREY, class_token=True),
    OpenClipTowerConfig("hf-hub:somebody/something", GREY, {"embed_dim": 8, "vision_cfg": {"width": 32}}),
    SamTowerConfig(GREY, unshuffle=4),
)
SEEING = [
    dataclasses.replace(FULL, tower=tower, pool=(4, 4), tiling=Tiling(256, most=6))
    for tower in (*TOWERS, ConcatTowerConfig(TOWERS))
]


@pytest.mark.parametrize("config", [FULL, MMConfig(RWKV7Config(65536, 64, 1)), *SEEING])
def test_a_config_comes_back_from_its_file(tmp_path: Path, config: MMConfig) -> None:
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    assert MMConfig.load(tmp_path / "config.json") == config


def test_a_tower_without_a_kind_is_timm_s(tmp_path: Path) -> None:
    """As it was before there were others."""
    fields = json.loads(FULL.to_json())
    fields["tower"] = {"name": "resnet10t", "image_size": 96, "options": {"output_stride": 16}}
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    assert MMConfig.load(tmp_path / "config.json") == FULL


def test_what_needs_a_tower_is_refused_without_one() -> None:
    for field in ({"pool": (1, 1)}, {"tiling": Tiling(64)}):
        with pytest.raises(ValueError, match="without a tower"):
            MMConfig(RWKV7Config(65536, 64, 1), **field)


def test_the_image_placeholder_is_found_in_a_trimmed_vocabulary() -> None:
    assert FULL.image_id == 2
    assert MMConfig(RWKV7Config(65536, 64, 1)).image_id == IMAGE_TOKEN


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), 1, "colour"),
        (("lm", "depth"), 1, "lm.*depth"),
        (("lm", "width"), "128", r"lm\.width.*'128'.*int"),
        (("lm", "layers"), True, r"lm\.layers"),
        (("lm", "width"), 100, "width 100"),
        (("projector", "hidden_width"), 0, "hidden_width is 0"),
        (("lm", "decay_rank"), 0, "decay_rank is 0"),
        (("lm", "value_rank"), -1, "value_rank is -1"),
        (("lm", "ffn_width"), 0, "ffn_width is 0"),
        (("lm", "ffn_width"), 1.5, r"lm\.ffn_width"),
        (("template", "stop"), "\n\n", r"template\.stop"),
        (("template", "stop"), [1], r"template\.stop\[0\]"),
        (("vocabulary",), [0, "9", 1], r"vocabulary\[1\]"),
        (("vocabulary",), [0, 9], "2 ids.*3 rows"),
        (("tower",), None, "projector needs a tower"),
        (("tower", "kind"), "radar", "'radar'.*'concat'.*'timm'"),
        (("tower", "preprocess"), {"size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}, "image size is 96.*64"),
        (("pool",), [3], "pool"),
        (("pool",), [0, 3], "pool"),
        (("tiling",), {"side": 0}, "side 0"),
        (("tower", "options"), 3, r"tower\.options"),
        (("lm",), [], r"lm.*RWKV7Config"),
        (("template", "stop"), [""], "empty stop text"),
        (("template", "image"), "picture", r"\{image\} in it once"),
        (("max_new_tokens",), -3, "max_new_tokens is -3"),
        (("projector", "hidden_width"), -1, "hidden_width is -1"),
        (("projector", "positions"), [-6, -6], r"positions are \[-6, -6\]"),
        (("format",), "mm-rwkv7/99", "format"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, path: tuple[str, ...], value: Any, message: str) -> None:
    fields = json.loads(FULL.to_json())
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    file = tmp_path / "config.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as raised:
        MMConfig.load(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("path", [("lm",), ("lm", "width"), ("tower", "name"), ("format",)])
def test_a_missing_field_is_named_with_its_file(tmp_path: Path, path: tuple[str, ...]) -> None:
    fields = json.loads(FULL.to_json())
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=path[-1]) as raised:
        MMConfig.load(file)
    assert str(file) in str(raised.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"3", b"null"])
def test_what_is_no_config_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json"):
        MMConfig.load(file)
