from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

Maker = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="session")
def make_blinkdl() -> Maker:
    """Random weights under the names and in the shapes of a published RWKV-7 file, written out from
    RWKV-LM/RWKV-v7/train_temp/src/model.py."""

    def make(
        width: int = 64,
        layers: int = 2,
        rows: int = 80,
        head: int = 16,
        ranks: tuple[int, int, int, int] = (8, 7, 6, 9),
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=random) * scale).to(dtype)

        def matrix(outputs: int, inputs: int) -> Tensor:
            return normal(outputs, inputs, scale=inputs**-0.5)

        def norm(name: str) -> dict[str, Tensor]:
            return {f"{name}.weight": 1 + normal(width, scale=0.1), f"{name}.bias": normal(width, scale=0.1)}

        tensors = {"emb.weight": normal(rows, width)}
        for i in range(layers):
            block = f"blocks.{i}."
            if i == 0:
                tensors |= norm(f"{block}ln0")
            tensors |= norm(f"{block}ln1") | norm(f"{block}ln2") | norm(f"{block}att.ln_x")
            for c in "rwkvag":
                tensors[f"{block}att.x_{c}"] = torch.rand(1, 1, width, generator=random).to(dtype)
            for (c, rank), offset in zip(zip("wavg", ranks, strict=True), (-2.0, 0.0, 0.5, None), strict=True):
                if c == "v" and i == 0:
                    continue
                tensors[f"{block}att.{c}1"] = normal(width, rank, scale=width**-0.5)
                tensors[f"{block}att.{c}2"] = normal(rank, width, scale=rank**-0.5)
                if offset is not None:
                    tensors[f"{block}att.{c}0"] = offset + normal(1, 1, width)
            tensors[f"{block}att.k_k"] = 0.7 + normal(1, 1, width, scale=0.1)
            tensors[f"{block}att.k_a"] = 1 + normal(1, 1, width, scale=0.1)
            tensors[f"{block}att.r_k"] = normal(width // head, head, scale=0.1)
            for name in ("receptance", "key", "value", "output"):
                tensors[f"{block}att.{name}.weight"] = matrix(width, width)
            tensors[f"{block}ffn.x_k"] = torch.rand(1, 1, width, generator=random).to(dtype)
            tensors[f"{block}ffn.key.weight"] = matrix(4 * width, width)
            tensors[f"{block}ffn.value.weight"] = matrix(width, 4 * width)
        return tensors | norm("ln_out") | {"head.weight": matrix(rows, width)}

    return make


@pytest.fixture
def blinkdl_file(make_blinkdl: Maker, tmp_path: Path) -> Path:
    """A small random RWKV-7 as BlinkDL saves it."""
    path = tmp_path / "rwkv7-small.pth"
    torch.save(make_blinkdl(), path)
    return path
