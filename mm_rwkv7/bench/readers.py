"""Two language models of one size, and what each must remember of a text: RWKV-7's state, a Llama's keys and values.

H heads, N head size, V vocabulary.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mm_rwkv7.bench.shapes import parameters, random_model
from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import State

CLOSE = 0.05  # how far the numbers of parameters may be apart


class Reader(Protocol):
    """A model and how it goes on from a memory, which may change in place."""

    name: str
    rows: int  # V

    @property
    def model(self) -> nn.Module: ...

    def empty(self) -> Any:
        """The memory of no text."""

    def filled(self, context: int, room: int) -> Any:
        """A memory as large as after `context` tokens, of random values, with room for some more."""

    def read(self, ids: Tensor, memory: Any) -> tuple[Tensor, Any]:
        """ids (1, T) -> (logits (1, V) after the last of them, the memory)."""

    def nbytes(self, memory: Any) -> int: ...


class Recurrent:
    """RWKV-7 of our own."""

    def __init__(self, config: RWKV7Config, name: str, dtype: torch.dtype, device: torch.device) -> None:
        self.name, self.rows = f"RWKV-7 {name}", config.vocab_size
        self.model: RWKV7 = random_model(config, dtype, device)

    def empty(self) -> State | None:
        return None

    def filled(self, context: int, room: int) -> State:
        state = self.model.initial_state().map(lambda tensor: torch.randn_like(tensor) * 0.1)
        return State(state.layers, context)

    def read(self, ids: Tensor, memory: State | None) -> tuple[Tensor, State]:
        hidden, state = self.model.hidden(self.model.embed(ids), memory)
        return self.model.head(hidden[:, -1]), state

    def nbytes(self, memory: State) -> int:
        return sum(tensor.nbytes for layer in memory.layers for tensor in layer)


class Attention:
    """A Llama of transformers: width, layers and heads of the RWKV-7, keys and values for each head, and a feed-forward
    that makes the number of parameters the same within 5 %. When it writes, keys and values are in a buffer of fixed
    size, which transformers need not copy for every token; when it reads, they grow."""

    def __init__(self, config: RWKV7Config, like: int, dtype: torch.dtype, device: torch.device) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        self.name, self.rows = "Llama of that size", config.vocab_size
        V, D, L = config.vocab_size, config.width, config.layers
        layer = (like - 2 * V * D - D) / L - 4 * D * D - 2 * D  # what is left for the feed-forward
        self.config = LlamaConfig(
            vocab_size=V,
            hidden_size=D,
            num_hidden_layers=L,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            intermediate_size=max(1, round(layer / (3 * D * 32))) * 32,
            max_position_embeddings=1 << 20,
            tie_word_embeddings=False,
        )
        llama: nn.Module = LlamaForCausalLM(self.config)
        self.model = llama.to(device, dtype).eval()
        self.heads, self.head_size, self.dtype, self.device = config.heads, config.head_size, dtype, device
        if abs(parameters(self.model) / like - 1) > CLOSE:
            raise ValueError(f"the Llama has {parameters(self.model)} parameters, expected {like} within {CLOSE:.0%}")

    def empty(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.config)

    def filled(self, context: int, room: int) -> Any:
        from transformers import StaticCache

        cache = StaticCache(config=self.config, max_cache_len=context + room)
        some = torch.randn(1, self.heads, context, self.head_size, dtype=self.dtype, device=self.device)
        for layer in range(self.config.num_hidden_layers):
            cache.update(some, some, layer)
        return cache

    def read(self, ids: Tensor, memory: Any) -> tuple[Tensor, Any]:
        done = self.model(input_ids=ids, past_key_values=memory, use_cache=True, logits_to_keep=1)
        return done.logits[:, -1], done.past_key_values

    def nbytes(self, memory: Any) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in memory.layers)
