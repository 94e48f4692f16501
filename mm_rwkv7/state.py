"""What RWKV-7 remembers of everything it has read: a value of constant size, free to copy, fork, save and send.

Letters: B batch, H heads, N head size, D width.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mm_rwkv7.whole import replacing_file

FORMAT = "mm-rwkv7-state/1"


class LayerState(NamedTuple):
    wkv: Tensor  # (B, H, N, N) fp32, [value, key]
    att_shift: Tensor  # (B, D) last input of the time mix
    ffn_shift: Tensor  # (B, D) last input of the channel mix


@dataclass(frozen=True)
class State:
    """The recurrent state of every layer. Models return a new one; they never change one that they were given.

    `tokens_seen` counts the steps read, padded ones included. `open_turn` marks a state that ends with a picture
    or a sound in a user's turn, to which the question is still to come. `str(model)` is the fingerprint of the model
    that read it, "" where nobody said; it need not be known before somebody asks, because finding it out reads every
    weight.
    """

    layers: tuple[LayerState, ...]
    tokens_seen: int = 0
    open_turn: bool = False
    model: object = ""

    @classmethod
    def zeros(
        cls, layers: int, batch: int, heads: int, head_size: int, dtype: torch.dtype, device: torch.device
    ) -> "State":
        wkv = torch.zeros(batch, heads, head_size, head_size, device=device)
        shift = torch.zeros(batch, heads * head_size, dtype=dtype, device=device)
        return cls(tuple(LayerState(wkv, shift, shift) for _ in range(layers)))

    @property
    def batch(self) -> int:
        return self.layers[0].wkv.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> "State":
        """A state with `change` applied to every tensor."""
        return replace(self, layers=tuple(LayerState(*map(change, layer)) for layer in self.layers))

    def repeat(self, times: int) -> "State":
        """Fork every row: row i becomes rows i * times ... i * times + times - 1."""
        return self.map(lambda tensor: tensor.repeat_interleave(times, dim=0))

    @classmethod
    def cat(cls, states: "Sequence[State]") -> "State":
        """The rows of several states of one model, one after another."""
        layers = (
            LayerState(*map(torch.cat, zip(*layer, strict=True)))
            for layer in zip(*(s.layers for s in states), strict=True)
        )
        return replace(states[0], layers=tuple(layers), tokens_seen=max(state.tokens_seen for state in states))

    def rows(self, index: Tensor) -> "State":
        """The rows (B',) of `index`, in that order."""
        return self.map(lambda tensor: tensor.index_select(0, index))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one sequence's state (B = 1) as safetensors, atomically."""
        from safetensors.torch import save_file

        if self.batch != 1:
            raise ValueError(f"a state file holds one sequence, got a batch of {self.batch}")
        tensors = {
            f"layers.{i}.{name}": tensor[0].contiguous().clone()
            for i, layer in enumerate(self.layers)
            for name, tensor in layer._asdict().items()
        }
        metadata = {"format": FORMAT, "model": str(self.model), "tokens_seen": str(self.tokens_seen)}
        metadata["open_turn"] = str(int(self.open_turn))
        with replacing_file(path) as draft:
            save_file(tensors, draft, metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: str | None = None) -> "State":
        """Read a state file. With `model` given, a state of another model is refused with a ValueError."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name)[None] for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a state file: {error}") from error
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path} has format {metadata.get('format')!r}, expected {FORMAT!r}")
        fields = LayerState._fields
        count = len(tensors) // len(fields)
        names = [f"layers.{i}.{name}" for i in range(count) for name in fields]
        whole = count > 0 and sorted(names) == sorted(tensors) and metadata.get("tokens_seen", "").isdecimal()
        if not whole or "model" not in metadata:
            raise ValueError(f"{path} is not a whole state file")
        if model is not None and metadata["model"] != model:
            raise ValueError(f"{path} belongs to model {metadata['model'][:12]}..., this is {model[:12]}...")
        layers = tuple(LayerState(*(tensors[f"layers.{i}.{name}"] for name in fields)) for i in range(count))
        return cls(layers, int(metadata["tokens_seen"]), metadata.get("open_turn") == "1", metadata["model"])
