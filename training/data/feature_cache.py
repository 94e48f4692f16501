"""What a frozen tower tells of a picture, kept on disk: it is computed once, and neither decoded nor encoded again.

Letters: I pictures (or tiles), M tokens of each, E width of the tower.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mm_rwkv7.model import MMRWKV7


class FeatureCache:
    """Features of pictures under `folder`, in a folder of their own for each tower: named after its weights, its config
    and all that happens to a picture before and after it (size, tiling, pooling). A picture is known by its content.

    Files are written whole or not at all, so any number of processes may share a cache. `dtype` is what is kept, by
    default what the tower gives: features that come back are bit for bit those that went in.
    """

    def __init__(self, folder: str | os.PathLike[str], model: MMRWKV7, dtype: torch.dtype | None = None) -> None:
        if model.tower is None:
            raise ValueError("the model has no tower, there are no features to keep")
        self.folder = Path(folder) / _fingerprint(model, dtype)
        self.dtype = dtype

    def key(self, source: Any) -> str:
        """The name of a picture: a digest of its file's content, or of a PIL image's pixels."""
        digest = blake2b(digest_size=20)
        if isinstance(source, Image.Image):
            digest.update(f"{source.mode} {source.size}".encode())
            digest.update(source.tobytes())
        else:
            digest.update(source)
        return digest.hexdigest()

    def get(self, key: str) -> Tensor | None:
        """Features (I, M, E) of a picture, or None where they are not known, or their file is broken."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self._path(key).read_bytes())["features"]
        except (FileNotFoundError, SafetensorError, KeyError):
            return None

    def put(self, key: str, features: Tensor) -> None:
        """Keep features (I, M, E) of a picture."""
        from safetensors.torch import save

        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = features.detach().to("cpu", self.dtype or features.dtype).contiguous()
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save({"features": kept}))
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise

    def size(self) -> tuple[int, int]:
        """How many pictures are kept, and how many bytes they take."""
        sizes = [file.stat().st_size for file in self.folder.glob("*/*.safetensors")]
        return len(sizes), sum(sizes)

    def see(self, model: MMRWKV7, batch: Mapping[str, Any]) -> Tensor | None:
        """Features (I, M, E) of all pictures of a batch that a `Mixture` with this cache gave, None without pictures;
        what was not known is kept. `model.project` makes tokens of them."""
        known: list[Tensor | None] = batch["features"]
        if not known:
            return None
        like = next(model.parameters())
        fresh: list[Tensor] = []
        if batch["pixels"] is not None:
            missing = [tiles for tiles, features in zip(batch["tiles"], known, strict=True) if features is None]
            with torch.no_grad():
                fresh = list(model.see(batch["pixels"]).split(missing))
        waiting = iter(fresh)
        found = []
        for key, features in zip(batch["keys"], known, strict=True):
            if features is None:
                features = next(waiting)
                self.put(key, features)
                if self.dtype is not None:
                    features = features.to(self.dtype)
            found.append(features.to(like.device))
        return torch.cat(found)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.safetensors"


def _fingerprint(model: MMRWKV7, dtype: torch.dtype | None) -> str:
    tower, config = model.tower, model.config
    assert tower is not None
    parts = [config.tower, tower.preprocess, config.tiling]
    said = [None if part is None else dataclasses.asdict(part) for part in parts]
    digest = blake2b(json.dumps([*said, config.pool, str(dtype)], default=str).encode(), digest_size=16)
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
