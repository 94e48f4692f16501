"""What a kernel keeps for its backward: `entries` (rows, H, N, N), the state before each span of steps, fp32.

B batch, T time, H heads, N head size, S sequences.
"""


def span_of(size: int) -> int:
    """Steps in a span, by head size."""
    return 64 if size <= 64 else 128


def entry_rows(batch: int, time: int, size: int, sequences: int | None) -> int:
    """How many rows there are. Row b of a batch owns ceil(T / span) of them. Of sequences that lie one after another,
    s owns those from cu_seqlens[s] // span + s on, and up to S rows lie idle."""
    span = span_of(size)
    return batch * -(-time // span) if sequences is None else time // span + sequences
