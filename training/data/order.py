"""A shuffled order that needs no memory: the place of every index is computed, not stored."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

ROUNDS = 6
Place = tuple[int, int, int]  # epoch, how many of its blocks are done, how many items of the next one


class Permutation:
    """Of 0 ... size - 1, chosen by `key`: a Feistel network over the next power of four, walked until it comes back
    among the indices (Black and Rogaway, 2002)."""

    def __init__(self, size: int, key: str) -> None:
        self.size = size
        self._key = blake2b(key.encode(), digest_size=32).digest()
        self._half = max(1, -(-(size - 1).bit_length() // 2))

    def __call__(self, index: int) -> int:
        assert 0 <= index < self.size
        while (index := self._mixed(index)) >= self.size:
            pass
        return index

    def _mixed(self, index: int) -> int:
        mask = (1 << self._half) - 1
        left, right = index >> self._half, index & mask
        for turn in range(ROUNDS):
            digest = blake2b(right.to_bytes(8, "little"), digest_size=8, key=self._key, salt=bytes([turn])).digest()
            left, right = right, left ^ (int.from_bytes(digest, "little") & mask)
        return left << self._half | right


def walk(blocks: Sequence[int], seed: str, place: Place = (0, 0, 0)) -> Iterator[tuple[int, int, Place]]:
    """Every item of every block once an epoch, for ever: blocks in a new order, and the items of each in a new order.
    Yields (block, item, the place right after it), beginning at `place`."""
    epoch, done, item = place
    while True:
        order = Permutation(len(blocks), f"{seed} {epoch}")
        while done < len(blocks):
            block = order(done)
            inside = Permutation(max(1, blocks[block]), f"{seed} {epoch} {block}")
            while item < blocks[block]:
                found = inside(item)
                item += 1
                yield block, found, (epoch, done, item)
            done, item = done + 1, 0
        epoch, done = epoch + 1, 0
