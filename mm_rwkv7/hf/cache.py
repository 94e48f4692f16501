"""The recurrent cache: transformers' mutable holder around our State, which stays a value.

Letters: B batch.
"""

from torch import Tensor
from transformers import Cache

from mm_rwkv7.state import State


class RecurrentCache(Cache):
    """What `past_key_values` is for this model: `state`, None before anything was read.

    A forward replaces `state` and never changes it, so `RecurrentCache(cache.state)` is a fork, of constant size.
    There is no way back: a state cannot forget its last tokens, so `crop` and assisted decoding are refused.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, state: State | None = None) -> None:
        super().__init__(layers=[])
        self.state = state

    def __repr__(self) -> str:
        return f"RecurrentCache(tokens_seen={self.get_seq_length()})"

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read, padding included: what transformers cuts off a text that is given whole once more."""
        return 0 if self.state is None else self.state.tokens_seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1, transformers' word for no limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def batch_size(self) -> int:
        if self.state is None:
            raise ValueError("the cache has read nothing yet, it has no batch size")
        return self.state.batch

    def reset(self) -> None:
        self.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows (B,) of `beam_idx`, in that order."""
        if self.state is not None:
            self.state = self.state.rows(beam_idx.to(self.state.layers[0].wkv.device))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.state is not None:
            self.state = self.state.repeat(repeats)

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError("a recurrent state cannot forget its last tokens: keep the cache from before them instead")
