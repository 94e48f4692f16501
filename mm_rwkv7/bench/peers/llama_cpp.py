"""llama.cpp's RWKV-7 on the CPU: our weights through its own converter, timed by its own `llama-bench`."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from mm_rwkv7.bench.peers import WrongPeerError
from mm_rwkv7.rwkv7 import RWKV7Config

NAME = "llama.cpp"
CONVERTER = "convert_hf_to_gguf.py"
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

    def check(self) -> None:
        """Run it once. Its bench shows no output, so what can be compared is the number of parameters it runs."""
        self.decode(1)

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


def expected_parameters(ours: int, config: RWKV7Config) -> int:
    """Its files have a value residual in the first layer too, never used and as large as the one of the iclr."""
    return ours + config.width + 2 * config.width * config.iclr_rank


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "it says nothing"
