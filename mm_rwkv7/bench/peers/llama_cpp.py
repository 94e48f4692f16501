"""llama.cpp's RWKV-7 on the CPU: our weights through its own converter, timed by its own `llama-bench`."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from mm_rwkv7.bench.peers import WrongPeerError
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.tokenizer import WORLD_SIZE, Tokenizer

NAME = "llama.cpp"
CONVERTER = "convert_hf_to_gguf.py"
WINDOW = 128  # tokens
# Of the perplexity, relative. A model with other weights of the same kind is off by some 5 %.
TOLERANCE = {"fp32": 1e-4, "fp16": 1e-3, "bf16": 5e-3, "int8": 1e-2}
TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "q8_0"}  # ours, and what the converter calls them


def find_bench(checkout: Path) -> Path:
    """The built `llama-bench` of a checkout."""
    built = sorted(path for path in checkout.glob("build*/**/llama-bench") if path.is_file())
    if not built:
        raise WrongPeerError(f"{checkout} has no build*/**/llama-bench: it is not built")
    return built[0]


def convert(checkout: Path, folder: Path, dtype: str, out: Path) -> None:
    """A folder that `write_fla` wrote, as a GGUF file."""
    command = [sys.executable, str(checkout / CONVERTER), str(folder), "--outtype", TYPES[dtype], "--outfile", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WrongPeerError(f"{CONVERTER} failed: {_last_line(done.stderr)}")


@dataclass(frozen=True)
class LlamaCpp:
    """One GGUF file of a model. Every figure is a run of `llama-bench` of its own, which warms up by itself."""

    bench: Path
    file: Path
    dtype: str
    threads: int
    expected_parameters: int

    @property
    def name(self) -> str:
        return f"{NAME} {TYPES[self.dtype].upper()}"

    @property
    def weight_bytes(self) -> int:
        return self.file.stat().st_size

    def decode(self, tokens: int) -> float:
        """Milliseconds a token, batch 1."""
        return self._milliseconds("-p", "0", "-n", str(tokens)) / tokens

    def prefill(self, tokens: int) -> float:
        """Milliseconds for a text of so many tokens."""
        return self._milliseconds("-p", str(tokens), "-n", "0")

    def check(self, ours: RWKV7) -> None:
        """Compare the number of parameters that it runs, and, where its `llama-perplexity` is built too and the
        vocabulary is World's, the perplexity of a text: its bench shows no output."""
        self.decode(1)
        tool = self.bench.with_name("llama-perplexity")
        if tool.is_file() and ours.config.vocab_size == WORLD_SIZE:
            text = _some_text()
            found, expected = self._perplexity(tool, text), perplexity(ours, Tokenizer().encode(text))
            off = abs(found / expected - 1)
            if not off <= TOLERANCE[self.dtype]:
                raise WrongPeerError(f"the perplexity of a text is {found:.6g}, ours {expected:.6g}")

    def _perplexity(self, tool: Path, text: str) -> float:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "text"
            path.write_text(text, "utf-8")
            sizes = ["-c", str(WINDOW), "-b", str(WINDOW), "-t", str(self.threads), "-ngl", "0"]
            command = [str(tool), "-m", str(self.file), "-f", str(path), *sizes]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        estimate = re.search(r"Final estimate: PPL = ([\d.]+)", done.stdout + done.stderr)
        if done.returncode or estimate is None:
            raise WrongPeerError(f"llama-perplexity failed: {_last_line(done.stderr)}")
        return float(estimate[1])

    def _milliseconds(self, *test: str) -> float:
        command = [str(self.bench), "-m", str(self.file), "-t", str(self.threads), "-ngl", "0", "-r", "1", "-o", "json"]
        done = subprocess.run([*command, *test], capture_output=True, text=True, check=False)
        if done.returncode:
            raise WrongPeerError(f"llama-bench failed: {_last_line(done.stderr)}")
        (row,) = json.loads(done.stdout)
        if row["model_n_params"] != self.expected_parameters:
            raise WrongPeerError(
                f"it runs {row['model_n_params']} parameters, expected {self.expected_parameters}: ours and what it "
                "adds to the first layer"
            )
        (nanoseconds,) = row["samples_ns"]
        return float(nanoseconds) / 1e6


@torch.no_grad()
def perplexity(model: RWKV7, ids: list[int]) -> float:
    """As `llama-perplexity` defines it: windows read from the start each, the second half of each counts."""
    device = model.emb.weight.device
    windows = torch.tensor(ids[: len(ids) // WINDOW * WINDOW], device=device).view(-1, WINDOW)
    logits = torch.cat([model(window[None])[0][:, WINDOW // 2 : -1] for window in windows])
    return float(F.cross_entropy(logits.flatten(0, 1), windows[:, WINDOW // 2 + 1 :].flatten()).exp())


def _some_text() -> str:
    """Lower-case words, a few more than three windows of World tokens."""
    letters = torch.randint(97, 123, (4 * WINDOW, 5), generator=torch.Generator().manual_seed(0))
    return " ".join(bytes(word).decode() for word in letters.tolist())


def expected_parameters(ours: int, config: RWKV7Config) -> int:
    """Its files have a value residual in the first layer too, never used and as large as the one of the iclr."""
    return ours + config.width + 2 * config.width * config.iclr_rank


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "it says nothing"
