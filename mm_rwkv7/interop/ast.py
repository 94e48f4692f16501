"""AST's taggers: as Hugging Face saves them, with the classes and the sizes of the spectrogram beside, and as the
original does (github.com/YuanGongND/ast), with AudioSet's 527 classes and windows of 10.24 s."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders.ast import PATCH, ASTConfig, own_tensors
from encoders.spectrogram import Spectrogram
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.naming import read_object
from mm_rwkv7.interop.parts import Shapes
from mm_rwkv7.tagger import TaggerConfig

FORMAT = "AST"
HEAD_SIZE = 64
ANCHORS = ("v.cls_token", "module.v.cls_token", "audio_spectrogram_transformer.embeddings.cls_token")
HEADS = {
    "classifier.layernorm": "head.0",
    "classifier.dense": "head.1",
    "mlp_head.0": "head.0",
    "mlp_head.1": "head.1",
}


def recognises(stored: Stored) -> bool:
    return any(anchor in stored.tensors for anchor in ANCHORS)


def config(stored: Stored, labels: tuple[str, ...]) -> TaggerConfig:
    shapes = Shapes(replace(stored, tensors=own_tensors(dict(stored.tensors))))
    *_, width = shapes.of("body.embeddings.cls_token", 3)
    _, positions, _ = shapes.of("body.embeddings.position_embeddings", 3)
    hidden, _ = shapes.of("body.layers.0.mlp.fc1.weight", 2)
    frames, bins = (_said(stored, name, usual) for name, usual in (("max_length", 1024), ("num_mel_bins", 128)))
    usual = Spectrogram()
    mean, deviation = _normalisation(stored, usual.mean, usual.scale / 2)
    encoder = ASTConfig(
        width=width,
        layers=shapes.depth("body.layers."),
        heads=width // HEAD_SIZE,
        hidden=hidden,
        stride=_stride(stored, frames, bins, positions - 2),
        spectrogram=Spectrogram(frames=frames, bins=bins, mean=mean, scale=2 * deviation),
    )
    return TaggerConfig(encoder, labels)


def classes(stored: Stored) -> int:
    shapes = Shapes(stored)
    for name in ("classifier.dense", "mlp_head.1", "module.mlp_head.1"):
        if f"{name}.weight" in stored.tensors:
            return shapes.of(f"{name}.weight", 2)[0]
    raise ValueError(f"{stored.path} is an AST without a classifier, expected one that tells classes apart")


def labels(stored: Stored) -> tuple[str, ...] | None:
    """The classes in Hugging Face's config, where there is one."""
    named = stored.config.get("id2label")
    if not isinstance(named, dict):
        return None
    try:
        return tuple(str(named[str(i)]) for i in range(len(named)))
    except KeyError as error:
        raise ValueError(f"{stored.path}: id2label in config.json names no class {error}") from error


def tensors(stored: Stored) -> dict[str, Tensor]:
    """Under the names of `Tagger`."""
    found = {f"encoder.{name}": tensor for name, tensor in own_tensors(dict(stored.tensors)).items()}
    for name, tensor in stored.tensors.items():
        stem, _, last = name.removeprefix("module.").rpartition(".")
        if stem in HEADS:
            found[f"{HEADS[stem]}.{last}"] = tensor
    return found


def spell(name: str) -> str:
    """The name that transformers has for one of `Tagger`'s parameters."""
    name = name.replace("head.0", "classifier.layernorm").replace("head.1", "classifier.dense")
    return name.replace("encoder.body.", "audio_spectrogram_transformer.")


def _said(stored: Stored, name: str, usual: int) -> int:
    value = stored.config.get(name, usual)
    if not isinstance(value, int):
        raise ValueError(f"{stored.path}: {name} in config.json is {value!r}, expected a number")
    return value


def _stride(stored: Stored, frames: int, bins: int, patches: int) -> int:
    """How far the patches lie apart: as the config says, or as their number tells."""
    strides = {_said(stored, name, 0) for name in ("time_stride", "frequency_stride")} - {0}
    for stride in strides or range(1, PATCH + 1):
        if ((frames - PATCH) // stride + 1) * ((bins - PATCH) // stride + 1) == patches and len(strides) < 2:
            return stride
    raise ValueError(f"{stored.path} has {patches} patches, which do not cover {frames} x {bins} at one stride")


def _normalisation(stored: Stored, mean: float, deviation: float) -> tuple[float, float]:
    folder: Path = stored.path if stored.path.is_dir() else stored.path.parent
    beside = folder / "preprocessor_config.json"
    said: dict[str, Any] = read_object(beside) if stored.config and beside.is_file() else {}
    mean, deviation = said.get("mean", mean), said.get("std", deviation)
    if not isinstance(mean, int | float) or not isinstance(deviation, int | float):
        raise ValueError(f"{beside}: mean and std are {mean!r} and {deviation!r}, expected numbers")
    return float(mean), float(deviation)
