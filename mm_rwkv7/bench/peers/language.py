"""Language models of others on the weights of one of ours: found, opened, compared with it, ready to be timed."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from mm_rwkv7.bench.peers import Unmeasured, WrongPeerError, checkout, llama_cpp, rwkv_package
from mm_rwkv7.bench.peers.fla_folder import write_fla
from mm_rwkv7.bench.shapes import parameters
from mm_rwkv7.rwkv7 import RWKV7


class LanguagePeer(Protocol):
    """A language model at batch 1."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str:
        """Of the weights: fp32, bf16, fp16 or int8."""

    @property
    def weight_bytes(self) -> int: ...

    def decode(self, tokens: int) -> float:
        """Writes so many tokens after an empty context; milliseconds a token."""

    def prefill(self, tokens: int) -> float:
        """Reads a text of so many tokens; milliseconds."""


@contextmanager
def language_peers(
    model: RWKV7, dtypes: Sequence[str], folder: Path | None
) -> Iterator[tuple[list[LanguagePeer], list[Unmeasured]]]:
    """Every peer with the weights of `model` in each of `dtypes` that it knows, and those that are not to be had.

    `folder` is `--peers`: without it only installed packages are peers. Files are written to a temporary folder that is
    gone afterwards. On the CPU peers use as many threads as torch.
    """
    with tempfile.TemporaryDirectory() as place:
        found: list[LanguagePeer] = []
        missing: list[Unmeasured] = []

        def attempt(name: str, open_peer: Callable[[], LanguagePeer]) -> None:
            try:
                found.append(open_peer())
            except WrongPeerError as error:
                missing.append(Unmeasured(name, str(error)))

        files = _Files(model, Path(place), folder)
        for dtype in dtypes:
            if dtype in rwkv_package.TOLERANCE:
                attempt(f"{rwkv_package.NAME} {dtype}", partial(files.package, dtype))
        if model.emb.weight.device.type == "cpu" and folder is not None:
            for dtype in dtypes:
                attempt(f"{llama_cpp.NAME} {dtype}", partial(files.llama_cpp, dtype))
        yield found, missing


class _Files:
    """What peers read, written when the first of them asks."""

    def __init__(self, model: RWKV7, place: Path, folder: Path | None) -> None:
        self.model, self.place, self.folder = model, place, folder

    def package(self, dtype: str) -> LanguagePeer:
        path = self.place / "model.pth"
        if not path.exists():
            rwkv_package.write_blinkdl(self.model, path)
        peer = rwkv_package.RWKVPackage(path, dtype, self.model.emb.weight.device)
        peer.check(self.model)
        return peer

    def llama_cpp(self, dtype: str) -> LanguagePeer:
        assert self.folder is not None
        home = checkout(self.folder, llama_cpp.CONVERTER)
        bench = llama_cpp.find_bench(home)
        source, out = self.place / "fla", self.place / f"{dtype}.gguf"
        if not source.exists():
            write_fla(self.model, source)
        llama_cpp.convert(home, source, dtype, out)
        expected = llama_cpp.expected_parameters(parameters(self.model), self.model.config)
        peer = llama_cpp.LlamaCpp(bench, out, dtype, torch.get_num_threads(), expected)
        peer.check()
        return peer
