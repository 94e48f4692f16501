import json
from pathlib import Path
from typing import Any

import pytest

from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.config import MMConfig, PromptTemplate
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import IMAGE_TOKEN

FULL = MMConfig(
    RWKV7Config(3, 128, 2, head_size=32, ffn_width=100, iclr_multiplier=2.0),
    TimmTowerConfig("resnet10t", 96, {"output_stride": 16}),
    ProjectorConfig(512, 64, positions=36, summary=True),
    (0, 9, IMAGE_TOKEN),
    PromptTemplate(system="Σ: ", stop=("\n\n", "###")),
    max_new_tokens=7,
)


@pytest.mark.parametrize("config", [FULL, MMConfig(RWKV7Config(65536, 64, 1))])
def test_a_config_comes_back_from_its_file(tmp_path: Path, config: MMConfig) -> None:
    (tmp_path / "config.json").write_text(config.to_json(), encoding="utf-8")
    assert MMConfig.load(tmp_path / "config.json") == config


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
        (("lm", "ffn_width"), 1.5, r"lm\.ffn_width"),
        (("template", "stop"), "\n\n", r"template\.stop"),
        (("template", "stop"), [1], r"template\.stop\[0\]"),
        (("vocabulary",), [0, "9", 1], r"vocabulary\[1\]"),
        (("vocabulary",), [0, 9], "2 ids.*3 rows"),
        (("tower",), None, "projector needs a tower"),
        (("tower", "options"), 3, r"tower\.options"),
        (("lm",), [], r"lm.*RWKV7Config"),
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
