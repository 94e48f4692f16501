"""Published taggers. A-RWKV's expected values are of its own code (docs/benchmarks.md), AST's of transformers."""

import csv
import json
from pathlib import Path

import pytest
import torch
from transformers import ASTConfig as Sizes
from transformers import ASTFeatureExtractor, ASTForAudioClassification

from encoders.birwkv7 import SMALL, TINY, BiRWKV7Config
from mm_rwkv7 import audioset
from mm_rwkv7.interop.files import read
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.interop.taggers import open_tagger, tagger_format
from mm_rwkv7.listening import Listener, open_listener
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.tagger import TaggerConfig
from tests.mm_rwkv7.interop import seeded, speech_models
from tests.mm_rwkv7.interop.peers import distance, golden, saved

FP32 = 1e-5


def listener(path: Path) -> Listener:
    found = open_listener(path, "cpu", "fp32")
    assert isinstance(found, Listener)
    return found


@pytest.fixture(scope="module")
def audiorwkv(tmp_path_factory: pytest.TempPathFactory) -> Listener:
    return listener(saved(seeded.audiorwkv(), tmp_path_factory.mktemp("a") / "audio_model.pth"))


@torch.no_grad()
@pytest.mark.parametrize(("length", "samples"), [("short", 52_345), ("long", 330_000)])
def test_a_rwkv_computes_what_the_original_does(audiorwkv: Listener, length: str, samples: int) -> None:
    expected, tagger = golden("audiorwkv"), audiorwkv.tagger
    windows = list(tagger.encoder.frontend.windows(iter([torch.from_numpy(seeded.sound(samples))])))
    assert len(windows) == (1 if length == "short" else 2)  # what the original cuts off is a window of its own
    window, frames = windows[0]
    picture = (window + 4.421761) / 4.32408
    counts = torch.tensor([frames])
    features, logits = tagger.encoder(window[None], counts)[0], tagger(window[None], counts)[0]
    assert distance(picture[::61, ::17], expected[f"{length}_picture"]) < FP32
    assert distance(features[::23, ::7], expected[f"{length}_features"]) < FP32
    assert distance(logits, expected[f"{length}_logits"]) < FP32
    norms = torch.stack([picture.norm(), features.norm(), logits.norm()])
    assert distance(norms, expected[f"{length}_norms"]) < FP32


def test_a_rwkv_names_what_it_hears(audiorwkv: Listener) -> None:
    tags = audiorwkv.tag((seeded.sound(), 32_000), top=3)
    best = golden("audiorwkv")["short_logits"].sigmoid().topk(3)
    assert [label for label, _ in tags] == [audioset.labels(527)[i] for i in best.indices.tolist()]
    assert [score for _, score in tags] == pytest.approx(best.values.tolist(), abs=1e-5)


@pytest.mark.parametrize(("published", "ranks"), [(TINY, (32, 32, 32, 32)), (SMALL, (32, 32, 32, 64))])
def test_a_rwkv_tells_its_sizes(published: BiRWKV7Config, ranks: tuple[int, ...], tmp_path: Path) -> None:
    shapes = seeded.audiorwkv(published.width, 2)
    for name, shape in shapes.items():
        if name.endswith((".g1", ".g2")):
            shapes[name] = (shape[0], ranks[3]) if name.endswith("1") else (ranks[3], shape[1])
    stored = read(saved({f"module.{name}": shape for name, shape in shapes.items()}, tmp_path / "x.pth"))
    format = tagger_format(stored)
    assert format is not None
    config = open_tagger(stored, format).config.encoder
    assert isinstance(config, BiRWKV7Config)
    assert (config.width, config.layers, config.head_size) == (published.width, 2, 64)
    assert (config.decay_rank, config.iclr_rank, config.value_rank, config.gate_rank) == ranks
    assert (config.spectrogram.frames, config.grid) == (992, (62, 8))


def test_a_wrong_tensor_is_named_as_the_file_names_it(tmp_path: Path) -> None:
    shapes = seeded.audiorwkv(layers=1, classes=3)
    del shapes["blocks.0.att.ln_x.bias"], shapes["blocks.0.ffn.time_shift.weight"], shapes["ln_out.weight"]
    shapes["more"] = (2,)
    path = saved(shapes, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="does not fit") as caught:
        listener(path)
    for problem in (
        "missing blocks.0.att.ln_x.bias",
        "missing blocks.0.ffn.time_shift.weight",
        "missing ln_out.weight",
        "unexpected more",
    ):
        assert problem in str(caught.value)


@torch.no_grad()
def test_an_ast_of_hugging_face_tags_as_transformers_does(tmp_path: Path, seed: int) -> None:
    model = speech_models.ast(seed)
    model.save_pretrained(tmp_path)
    extractor = ASTFeatureExtractor(max_length=128, mean=-6.8, std=5.5)
    extractor.save_pretrained(tmp_path)
    sound = seeded.sound(15_000)
    logits = model(**extractor(sound, sampling_rate=16_000, return_tensors="pt")).logits[0]
    tags = listener(tmp_path).tag((sound, 16_000))
    expected = {f"sound {i}": score for i, score in enumerate(logits.sigmoid().tolist())}
    assert dict(tags) == pytest.approx(expected, abs=1e-5), f"seed {seed}"
    assert [score for _, score in tags] == sorted((score for _, score in tags), reverse=True)


def original(model: ASTForAudioClassification) -> dict[str, torch.Tensor]:
    """Its weights as the original saves them: query, key and value are one matrix, and heads lie beside it that
    nothing reads."""
    found: dict[str, torch.Tensor] = {"v.head.weight": torch.zeros(5, 64), "v.head_dist.weight": torch.zeros(5, 64)}
    qkv: dict[str, list[torch.Tensor]] = {}
    renamed = {
        "embeddings.cls_token": "cls_token", "embeddings.distillation_token": "dist_token",
        "embeddings.position_embeddings": "pos_embed", "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layers.": "blocks.", "attention.o_proj": "attn.proj", "mlp.fc": "mlp.fc",
        "layernorm_before": "norm1", "layernorm_after": "norm2", "layernorm": "norm",
    }  # fmt: skip
    for name, tensor in model.state_dict().items():
        if name.startswith("classifier."):
            found[name.replace("classifier.layernorm", "mlp_head.0").replace("classifier.dense", "mlp_head.1")] = tensor
            continue
        name = "v." + name.removeprefix("audio_spectrogram_transformer.")
        for ours, theirs in renamed.items():
            name = name.replace(ours, theirs)
        if "attention." in name:
            stem, letter = name.split(".attention.")
            qkv.setdefault(f"{stem}.attn.qkv.{letter.rpartition('.')[2]}", []).append(tensor)
        else:
            found[name] = tensor
    return {f"module.{name}": t for name, t in (found | {n: torch.cat(parts) for n, parts in qkv.items()}).items()}


@torch.no_grad()
def test_an_original_ast_is_the_same_model(tmp_path: Path, seed: int) -> None:
    """Windows of 10.24 s; how far patches lie apart is told by their number."""
    torch.manual_seed(seed)
    sizes = Sizes(
        hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=96, time_stride=16,
        frequency_stride=16, num_labels=527,
    )  # fmt: skip
    model = ASTForAudioClassification(sizes).eval()
    torch.save(original(model), tmp_path / "audio_model.pth")
    sound = seeded.sound(20_000)
    logits = model(**ASTFeatureExtractor()(sound, sampling_rate=16_000, return_tensors="pt")).logits[0]
    tags = dict(listener(tmp_path / "audio_model.pth").tag((sound, 16_000), top=527))
    expected = dict(zip(audioset.labels(527), logits.sigmoid().tolist(), strict=True))
    assert tags == pytest.approx(expected, abs=1e-5), f"seed {seed}"


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    model = speech_models.ast(0)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"id2label": {"0": "a", "1": "b"}}, "tells 3 classes apart, its config names 2"),
        ({"id2label": {"0": "a", "2": "b", "3": "c"}}, "id2label in config.json names no class '1'"),
        ({"time_stride": 10}, "64 patches, which do not cover 128 x 128 at one stride"),
        ({"max_length": 256}, "64 patches, which do not cover 256 x 128 at one stride"),
        ({"max_length": "long"}, "max_length in config.json is 'long'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            open_listener(tmp_path)
    with pytest.raises(ValueError, match="labels, each of them once"):
        TaggerConfig(TINY, ("a", "a"))


def test_a_tagger_is_no_language_model(tmp_path: Path) -> None:
    path = saved(seeded.audiorwkv(layers=1, classes=3), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth is a tagger of sounds \(A-RWKV\), `mm-rwkv7 tag` is for it"):
        open_checkpoint(path)


def test_anything_else_is_opened_as_a_whole_model(tiny_checkpoint: Path) -> None:
    found = open_listener(tiny_checkpoint, "cpu", "fp32")
    assert isinstance(found, Pipeline)
    with pytest.raises(ValueError, match="cannot hear"):
        found.tag((seeded.sound(), 16_000))


def test_names_of_other_classes_are_numbers() -> None:
    assert audioset.labels(2) == ("class 0", "class 1")


def test_the_names_are_audiosets(data_dir: Path) -> None:
    with (data_dir / "audioset/class_labels_indices.csv").open(newline="") as file:
        assert audioset.labels(527) == tuple(row["display_name"] for row in csv.DictReader(file))
