from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from encoders.build import build_tower
from encoders.protocol import Encoder
from encoders.transformers_tower import TransformersTowerConfig
from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.pipeline import Pipeline
from tests.mm_rwkv7.interop import seeded
from tests.mm_rwkv7.interop.peers import QUESTION, differences, distance, golden, opened, prompt, saved

FP32 = 1e-5
WIDE = {"D": 1024, "width": 768, "ranks": (64, 64, 32, 128)}
THEIR_PLACEHOLDER = 65532


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return opened(saved(seeded.world_1(), tmp_path_factory.mktemp("world") / "rwkv-0.pth"))


def written(pipeline: Pipeline) -> torch.Tensor:
    """The prompt without the placeholders."""
    ids = prompt(pipeline).ids[0]
    return ids[ids != pipeline.model.config.image_id]


def test_the_first_generation_computes_what_the_original_does(first: Pipeline) -> None:
    expected = golden("world1")
    ids = prompt(first).ids[0]
    assert (ids[:576] == first.model.config.image_id).all()
    assert torch.equal(ids[576:], expected["prompt"])
    found = differences(first, expected)
    assert max(found.values()) < FP32, found


def test_the_other_prompt_of_the_first_generation_is_a_template_away(first: Pipeline) -> None:
    expected = golden("world1")
    config = first.model.config
    template = replace(config.template, assistant="\x16Assistant:")
    other = Pipeline(first.model)
    other.processor.template = template
    assert torch.equal(written(other), expected["prompt_masked"])
    found = differences(other, {**expected, "logits": expected["logits_masked"]})
    assert max(found.values()) < FP32, found


@pytest.mark.slow
def test_the_first_generation_at_its_true_widths(tmp_path: Path) -> None:
    wide = opened(saved(seeded.world_1(**WIDE), tmp_path / "rwkv-0.pth"))
    found = differences(wide, golden("world1_wide"))
    assert max(found.values()) < FP32, found


def test_the_second_generation_computes_what_the_original_does(tmp_path: Path) -> None:
    pipeline = opened(saved(seeded.world_2(), tmp_path / "rwkv-0.pth"))
    expected = golden("world2")
    ids = prompt(pipeline).ids[0]
    assert torch.equal(ids.masked_fill(ids == pipeline.model.config.image_id, THEIR_PLACEHOLDER), expected["prompt"])
    found = differences(pipeline, expected)
    assert max(found.values()) < FP32, found


def test_the_convolution_halves_the_tokens(tmp_path: Path) -> None:
    pipeline = opened(saved(seeded.world_2(convolution=True), tmp_path / "rwkv-0.pth"))
    batch = prompt(pipeline)
    assert batch.pixels is not None
    assert int((batch.ids == pipeline.model.config.image_id).sum()) == 287
    with torch.no_grad():
        tokens = pipeline.model.encode(batch.pixels)[0]
    assert distance(tokens[::61, ::3], golden("world2_convolution")["tokens"]) < FP32


def test_the_third_generation_computes_what_the_original_does(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "rwkv7_vl"}')
    save_file(seeded.checkpoint(seeded.world_3()), tmp_path / "model.safetensors")
    pipeline = opened(tmp_path)
    expected = golden("world3")
    ids = prompt(pipeline).ids[0]
    assert torch.equal(ids.masked_fill(ids == pipeline.model.config.image_id, THEIR_PLACEHOLDER), expected["prompt"])
    found = differences(pipeline, expected)
    assert max(found.values()) < FP32, found


@pytest.mark.parametrize("shapes", [seeded.world_1, seeded.world_2, seeded.world_3])
def test_every_wrong_tensor_is_named_as_the_file_names_it(tmp_path: Path, shapes: Callable[..., seeded.Shapes]) -> None:
    wrong = shapes(D=64, layers=1, width=64, depth=1)
    ends = ("ln_x.bias", "g_norm.bias", "pre_norm.bias", "layer_norm2.weight", "2.bias")
    missing = {name for name in wrong if name.endswith(ends) and "lora" not in name and ".ffn" not in name}
    with pytest.raises(ValueError, match="does not fit") as caught:
        opened(saved({name: shape for name, shape in wrong.items() if name not in missing}, tmp_path / "x.pth"))
    assert len(missing) >= 4
    assert all(f"missing {name}" in str(caught.value) for name in missing), (missing, str(caught.value))


def test_a_picture_read_before_its_question_gives_the_same_answer(first: Pipeline) -> None:
    picture = {"type": "image", "image": seeded.picture()}
    whole = [{"role": "user", "content": [picture, {"type": "text", "text": QUESTION}]}]
    seen = first.processor([{"role": "user", "content": [picture]}], generate=False)
    asked = first.processor([{"role": "user", "content": QUESTION}], open_turn=seen.open_turn)
    assert seen.open_turn
    assert torch.equal(torch.cat([seen.ids, asked.ids], dim=1), first.processor(whole).ids)


def test_an_answer_is_written_back_as_it_was_trained(first: Pipeline) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    ids = first.processor(messages, generate=False).ids[0].tolist()
    assert first.tokenizer.decode(ids) == "\x16User: Hi\x17Assistant: Hello.\x17"


@pytest.mark.parametrize("shapes", [seeded.world_1, seeded.world_2])
def test_a_converted_checkpoint_is_the_same(tmp_path: Path, shapes: Callable[..., seeded.Shapes]) -> None:
    found = open_checkpoint(saved(shapes(D=64, layers=1, width=64, depth=1), tmp_path / "rwkv-0.pth"))
    model = checkpoint.build(found, None)
    checkpoint.save(model, tmp_path / "native", "# x\n")
    assert MMConfig.load(tmp_path / "native" / "config.json") == found.config
    again = checkpoint.build(open_checkpoint(tmp_path / "native"), None).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again[name]), name
        assert tensor.dtype == again[name].dtype, name


def test_a_file_without_a_siglip_says_so(tmp_path: Path) -> None:
    shapes = seeded.blinkdl(64, 1) | seeded.under(
        "modality.world_encoder.adapter.", seeded.adapter(1024, 64, 128, "proj")
    )
    with pytest.raises(ValueError, match="leaves out an encoder of width 1024"):
        open_checkpoint(saved(shapes, tmp_path / "rwkv-0.pth"))


@pytest.mark.parametrize("kind", [OSError, RuntimeError, LocalEntryNotFoundError])
def test_a_tower_that_cannot_be_fetched_is_told_in_one_line(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(config: object, pretrained: bool = False) -> Encoder:
        raise kind("We cannot connect.\n\nCheck your connection.")

    shapes = seeded.under("llm.", seeded.blinkdl(64, 1)) | seeded.under("proj.", seeded.adapter(768, 64, 256, "mlp"))
    found = open_checkpoint(saved(shapes, tmp_path / "rwkv-0.pth"))
    monkeypatch.setattr(checkpoint, "build_tower", fail)
    with pytest.raises(ValueError, match=r"rwkv-0\.pth .*published weights cannot be fetched: We cannot") as raised:
        checkpoint.build(found, torch.float32)
    assert "\n" not in str(raised.value)


def test_a_tower_that_was_not_trained_is_fetched_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = seeded.under("llm.", seeded.blinkdl(64, 1)) | seeded.under("proj.", seeded.adapter(768, 64, 256, "mlp"))
    found = open_checkpoint(saved(shapes, tmp_path / "rwkv-0.pth"))
    assert isinstance(found.config.tower, TransformersTowerConfig)
    assert found.config.tower.name == "google/siglip2-base-patch16-384"
    published = build_tower(found.config.tower)

    def fetch(config: object, pretrained: bool = False) -> Encoder:
        assert (config, pretrained) == (found.config.tower, True)
        return published

    monkeypatch.setattr(checkpoint, "build_tower", fetch)
    tower = checkpoint.build(found, torch.float32).tower
    assert tower is not None
    assert all(torch.equal(tensor, published.state_dict()[name]) for name, tensor in tower.state_dict().items())
