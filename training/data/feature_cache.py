"""What frozen encoders tell of pictures and sounds, kept on disk: each is computed once, and neither decoded nor
encoded again.

Letters: I pictures (or tiles), W windows of sounds, M tokens of each, E width of the encoder.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.whole import replacing_file


class FeatureCache:
    """Features of pictures and sounds under `folder`, in a folder of their own for each encoder: named after its
    weights, its config and all that happens before and after it (size, tiling, spectrogram, pooling). A picture or a
    sound is known by its content. With `pictures` False those are not kept, as of a tower that is trained.

    Files are written whole or not at all, so any number of processes may share a cache. `dtype` is what is kept, by
    default what the encoder gives: features that come back are bit for bit those that went in. `half` says that
    products run in bf16: their features lie apart from those of fp32.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: MMRWKV7,
        dtype: torch.dtype | None = None,
        pictures: bool = True,
        half: bool = False,
    ) -> None:
        self.pictures = self.sounds = None
        config, how = model.config, [str(dtype), *(["bf16"] if half else [])]
        if pictures and model.tower is not None:
            said: list[Any] = [config.tower, model.tower.preprocess, config.tiling, config.pool, *how]
            self.pictures = Store(Path(folder) / _fingerprint(model.tower, said), dtype)
        if model.sound is not None and config.sound is not None:
            said = [config.sound.encoder, config.sound.pool, *how]
            self.sounds = Store(Path(folder) / _fingerprint(model.sound.encoder, said), dtype)
        if self.pictures is None and self.sounds is None:
            raise ValueError("the model has no tower that is frozen and no sound encoder: there is nothing to keep")

    def size(self) -> tuple[int, int]:
        """How many pictures and sounds are kept, and how many bytes they take."""
        sizes = [store.size() for store in (self.pictures, self.sounds) if store is not None]
        return sum(count for count, _ in sizes), sum(taken for _, taken in sizes)

    def see(self, model: MMRWKV7, batch: Mapping[str, Any]) -> Tensor | None:
        """Features (I, M, E) of all pictures of a batch that a `Mixture` with this cache gave, None without pictures;
        what was not known is kept. `model.project` makes tokens of them."""
        known: list[Tensor | None] = batch["features"]
        if not known:
            return None
        fresh: list[Tensor] = []
        if batch["pixels"] is not None:
            missing = [tiles for tiles, features in zip(batch["tiles"], known, strict=True) if features is None]
            with torch.no_grad():
                fresh = list(model.see(batch["pixels"]).split(missing))
        assert self.pictures is not None
        return self.pictures.complete(known, fresh, batch["keys"], next(model.parameters()).device)

    def hear(self, model: MMRWKV7, batch: Mapping[str, Any]) -> Tensor | None:
        """The same of all sounds: features (W, M, E) of their windows, of which `model.sound.project` makes tokens."""
        known: list[Tensor | None] = batch["sound_features"]
        if not known:
            return None
        fresh: list[Tensor] = []
        if batch["windows"] is not None:
            frames = batch["frames"].split(list(batch["spans"]))
            missing = [part for part, features in zip(frames, known, strict=True) if features is None]
            assert model.sound is not None
            with torch.no_grad():
                features = model.sound.features(batch["windows"], torch.cat(missing))
            fresh = list(features.split([len(part) for part in missing]))
        assert self.sounds is not None
        return self.sounds.complete(known, fresh, batch["sound_keys"], next(model.parameters()).device)


class Store:
    """Features in one folder, each in a file of the name that its content gives it."""

    def __init__(self, folder: Path, dtype: torch.dtype | None) -> None:
        self.folder, self.dtype = folder, dtype

    def key(self, source: Any) -> str:
        """The name of a picture or a sound: a digest of its file's content, of a PIL image's pixels, or of a waveform
        and its rate."""
        digest = blake2b(digest_size=20)
        if isinstance(source, Image.Image):
            digest.update(f"{source.mode} {source.size}".encode())
            digest.update(source.tobytes())
        elif isinstance(source, tuple):
            waveform = np.ascontiguousarray(source[0])
            digest.update(f"{waveform.dtype} {waveform.shape} {source[1]}".encode())
            digest.update(waveform.tobytes())
        else:
            digest.update(source)
        return digest.hexdigest()

    def get(self, key: str) -> Tensor | None:
        """Features of a picture or a sound, or None where they are not known, or their file is broken."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self._path(key).read_bytes())["features"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def put(self, key: str, features: Tensor) -> None:
        """Keep features of a picture or a sound."""
        from safetensors.torch import save

        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = features.detach().to("cpu", self.dtype or features.dtype).contiguous()
        with replacing_file(path) as draft:
            draft.write_bytes(save({"features": kept}))

    def complete(
        self, known: Sequence[Tensor | None], fresh: Sequence[Tensor], keys: Sequence[str], device: torch.device
    ) -> Tensor:
        """All features in their order: those `known`, and `fresh` ones, which are kept, where they are not."""
        waiting = iter(fresh)
        found = []
        for key, features in zip(keys, known, strict=True):
            if features is None:
                features = next(waiting)
                self.put(key, features)
                if self.dtype is not None:
                    features = features.to(self.dtype)
            found.append(features.to(device))
        return torch.cat(found)

    def size(self) -> tuple[int, int]:
        """How many are kept, and how many bytes they take."""
        sizes = [file.stat().st_size for file in self.folder.glob("*/*.safetensors")]
        return len(sizes), sum(sizes)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.safetensors"


def _fingerprint(encoder: nn.Module, said: Sequence[Any]) -> str:
    """Of an encoder's weights and of what is said of it and around it."""
    told = [dataclasses.asdict(part) if dataclasses.is_dataclass(part) else part for part in said]  # type: ignore[arg-type]
    digest = blake2b(json.dumps(told, default=str).encode(), digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
