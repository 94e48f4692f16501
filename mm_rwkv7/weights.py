"""Weights on disk: where a model's folder is, its tensors, and how they come into a module, all or none."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BUNDLED = {"nano": Path(__file__).parent / "nano"}


def locate(model: str | os.PathLike[str]) -> Path:
    """The folder of a native checkpoint: "nano" is the bundled one, "hf:owner/repo" is downloaded (once) from the
    Hugging Face hub, anything else is a path."""
    name = os.fspath(model)
    folder = _download(name) if name.startswith("hf:") else BUNDLED.get(name, Path(name))
    if not (folder / "config.json").is_file():
        problem = "has no config.json" if folder.exists() else "does not exist"
        raise ValueError(f"model {name!r} {problem}; expected 'nano', 'hf:owner/repo' or a checkpoint folder")
    return folder


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name.removeprefix("hf:"), allow_patterns=["*.json", "*.safetensors", "README.md"])
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise ValueError(f"{name} cannot be fetched: {str(error).splitlines()[0]}") from error


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}, expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no CUDA device; `mm-rwkv7 doctor` says more")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bf16 on a GPU that has it and fp32 elsewhere."""
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in DTYPES:
        raise ValueError(f"dtype is {name!r}, expected auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def cast_weight(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A floating-point tensor in `dtype`, but for the decay's offset w0, whose rounding changes how long slow channels
    remember."""
    return tensor.to(torch.float32 if name.endswith(".w0") else dtype) if tensor.is_floating_point() else tensor


def read_tensors(folder: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every (name, tensor) of the folder's safetensors files whose name begins with `prefix`, which is dropped."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    for name in files:
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{folder} is not a whole checkpoint: {name} is missing")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if key.startswith(prefix):
                        yield key.removeprefix(prefix), file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], source: object) -> None:
    """Give `module`, whose parameters may be on the meta device, exactly these tensors. One ValueError lists every
    missing, unexpected and misshapen one."""
    wanted = module.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in wanted]
    problems += [
        f"{name} has shape {tuple(tensors[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{source} does not fit its config: " + "; ".join(problems))
    module.load_state_dict(tensors, assign=True)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A new folder beside `target` to write to, which takes its place when the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    old = target.with_name(f".{target.name}-old")
    if old.exists() and not target.exists():  # a kill came between the two renames below
        old.rename(target)
    draft = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        yield draft
        draft.chmod(0o755)
        for file in draft.iterdir():
            if file.is_file():
                file.chmod(0o644)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        draft.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
