"""`python -m training.data.bench_cache DATA`: what a step of training the projectors alone costs when the encoders read
every picture and sound, and when their features come from the cache.

The language model and the ears are nano's; the tower has the shape of SigLIP-B (224 px, 196 tokens) and random weights,
which cost what trained ones do. Both ways read the same packs, by turns.
"""

import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.command import Parser, run_command
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.weights import choose_device
from training.data.conversations import Reader
from training.data.feature_cache import FeatureCache
from training.data.mixture import Mixture
from training.data.readers import open_reader

TOWER = TimmTowerConfig("vit_base_patch16_siglip_224", 224)
WIDTH = 768


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m training.data.bench_cache", description="Time training with and without the cache.")
    parser.add_argument(
        "data", help="what `training.data.readers.open_reader` opens: a folder of described pictures or sounds, ..."
    )
    parser.add_argument("--packs", type=int, default=6, help="packs read each way (%(default)s)")
    parser.add_argument("--context", type=int, default=2048, help="tokens of a pack (%(default)s)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    return run_command(parser, arguments, _run)


def _run(options: Namespace) -> None:
    model = model_like_nano(TOWER, WIDTH).to(choose_device(options.device))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(model, open_reader(options.data), options.packs, options.context, Path(folder))
    print(json.dumps(found, indent=1))


def model_like_nano(tower: TimmTowerConfig, width: int) -> MMRWKV7:
    """nano's language model and ears behind another tower and a fresh projector; only the projectors are trained."""
    nano = Pipeline.from_pretrained("nano", device="cpu", dtype="fp32").model
    projector = ProjectorConfig(width, nano.config.lm.width)
    model = MMRWKV7(replace(nano.config, tower=tower, projector=projector, pool=None, tiling=None))
    model.lm.load_state_dict(nano.lm.state_dict())
    model.sound = nano.sound
    model.eval().requires_grad_(False)
    for part in projectors(model):
        part.requires_grad_(True)
    return model


def projectors(model: MMRWKV7) -> list[nn.Module]:
    assert model.projector is not None
    assert model.sound is not None
    return [model.projector, model.sound.projector]


def measure(model: MMRWKV7, reader: Reader, packs: int, context: int, folder: Path) -> dict[str, Any]:
    """Median seconds of a step on a pack, reading it included: `encoded` each time, and from the cache (`cached`) once
    the first way has filled it; how many times faster that is; and what the cache takes on disk."""
    processor = Pipeline(model).processor
    cache = FeatureCache(folder, model)
    optimizer = torch.optim.AdamW([p for part in projectors(model) for p in part.parameters()], 1e-3)

    def batches(**options: Any) -> Iterator[dict[str, Any]]:
        return Mixture({"data": reader}, {"data": 1}, processor, context, window=packs, **options).batches()

    filled = batches(cache=cache)
    for _ in tqdm(range(packs), desc="filling", unit="pack"):
        _step(model, cache, next(filled), optimizer)
    ways = {"encoded": (batches(), None), "cached": (batches(cache=cache), cache)}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    pictures = sounds = 0
    for _ in tqdm(range(packs), desc="measuring", unit="pack"):
        for way, (stream, used) in ways.items():
            began = time.perf_counter()
            batch = next(stream)
            _step(model, used, batch, optimizer)
            seconds[way].append(time.perf_counter() - began)
        pictures, sounds = pictures + len(batch["tiles"]), sounds + len(batch["sound_keys"])
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    kept, size = cache.size()
    return {
        **{f"{way}_s": round(value, 3) for way, value in medians.items()},
        "times_faster": round(medians["encoded"] / medians["cached"], 2),
        "pictures_per_pack": round(pictures / packs, 1),
        "sounds_per_pack": round(sounds / packs, 1),
        "cache": {"files": kept, "bytes": size},
        "device": str(next(model.parameters()).device),
        "threads": torch.get_num_threads(),
    }


def _step(
    model: MMRWKV7, cache: FeatureCache | None, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer
) -> None:
    device = next(model.parameters()).device
    assert model.sound is not None
    windows, frames = batch["windows"], batch["frames"]
    if cache is not None:
        seen, heard = cache.see(model, batch), cache.hear(model, batch)
    else:
        with torch.no_grad():
            seen = None if batch["pixels"] is None else model.see(batch["pixels"].to(device))
            heard = None if windows is None else model.sound.features(windows.to(device), frames.to(device))
    features = None if seen is None else model.project(seen, batch["tiles"])
    sounds = None if heard is None else model.sound.project(heard, frames)
    x = model.embed(batch["ids"].to(device), features, sounds)
    hidden, _ = model.lm.hidden(x, cu_seqlens=batch["cu_seqlens"].to(device))
    targets = batch["targets"].to(device)
    asked = targets >= 0
    F.cross_entropy(model.lm.head(hidden[asked]).float(), targets[asked]).backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    sys.exit(main())
