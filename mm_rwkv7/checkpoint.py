"""The native checkpoint: a folder with `config.json`, `model.safetensors` and `README.md` (the model card)."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from encoders.build import build_sound, build_tower
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.ops import wkv7
from mm_rwkv7.weights import load_strictly
from mm_rwkv7.whole import replacing

SHARD = 5 * 10**9  # bytes; larger models are split, with an index


def save(
    model: MMRWKV7,
    folder: str | os.PathLike[str],
    card: str,
    dtype: torch.dtype | None = None,
    beside: Iterable[Path] = (),
) -> None:
    """Write `model` as a native checkpoint, with copies of the files `beside` it (a tokenizer's), replacing `folder`
    only when all of it is written.

    With `dtype`, matrices are stored in it; vectors keep their own type, because decay, norms and running
    statistics are few and lose most by rounding.
    """
    from huggingface_hub import save_torch_state_dict

    def stored(tensor: Tensor) -> Tensor:
        narrow = dtype is not None and tensor.ndim >= 2 and tensor.is_floating_point()
        return (tensor.to(dtype) if narrow else tensor).contiguous()

    with replacing(Path(folder)) as draft:
        (draft / "config.json").write_text(model.config.to_json() + "\n", encoding="utf-8")
        (draft / "README.md").write_text(card, encoding="utf-8")
        tensors = {name: stored(tensor) for name, tensor in model.state_dict().items()}
        save_torch_state_dict(tensors, draft, max_shard_size=SHARD)
        for file in beside:
            shutil.copyfile(file, draft / file.name)


def load(path: str | os.PathLike[str], dtype: torch.dtype = torch.float32) -> MMRWKV7:
    """Read a checkpoint of any known format onto the CPU, in `dtype` but for the decay's offsets. A ValueError lists
    what does not fit."""
    return build(open_checkpoint(Path(path)), dtype)


def build(opened: Checkpoint, dtype: torch.dtype | None) -> MMRWKV7:
    """The model of an opened checkpoint, on the CPU, in `dtype` or, with None, in the types that it is stored in.
    Tensors that need no cast stay memory-mapped."""
    model = without_weights(opened)
    tensors = dict(opened.tensors)
    config = opened.config
    if opened.fetch_tower and (tower := config.tower) is not None:
        tensors |= _fetched(opened, "tower", lambda: build_tower(tower, pretrained=True))
    if opened.fetch_sound and (sound := config.sound) is not None:
        tensors |= _fetched(opened, "sound.encoder", lambda: build_sound(sound.encoder, wkv7, pretrained=True))
    load_strictly(model, tensors, opened.path, dtype, spell=opened.spell)
    return model.eval()


def without_weights(opened: Checkpoint) -> MMRWKV7:
    """The model of an opened checkpoint on the meta device. A ValueError names the file whose config describes none."""
    try:
        with torch.device("meta"):
            return MMRWKV7(opened.config)
    except ValueError as error:
        raise ValueError(f"{opened.path}: {error}") from error


def _fetched(opened: Checkpoint, part: str, build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The published weights of a `part` that the file leaves out, under their names in the model."""
    try:
        return {f"{part}.{name}": tensor for name, tensor in build().state_dict().items()}
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{opened.path} leaves out its {part}, whose published weights cannot be fetched: {reason}"
        ) from error


class Fingerprint:
    """`str` of it is the model's fingerprint, which is computed the first time that somebody wants it."""

    def __init__(self, compute: Callable[[], str]) -> None:
        self._compute = compute
        self._known: str | None = None

    def __str__(self) -> str:
        if self._known is None:
            self._known = self._compute()
        return self._known

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Copies and pickles take the fingerprint along, not the model."""
        return str, (str(self),)


def fingerprint(config: str, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """sha256 over the config, as JSON, and every tensor's name, shape and bytes as stored: equal if two models answer
    alike, whatever device and precision they are loaded to."""
    digest = hashlib.sha256(config.encode())
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
