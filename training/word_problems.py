"""Word problems of permutation groups: read one permutation after another, and say after each what all of them together
do.

G elements of the group, A letters of the alphabet, B words, T letters a word. `parity` is the group of two elements:
the number of swaps so far, even or odd. S5 is the smallest symmetric group that is not solvable, and its word problem
is complete for NC1, beyond what attention of fixed depth computes at every length (arXiv 2404.08819; 2503.14456,
section 3).
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

DEGREES = {"parity": 2, "s3": 3, "s5": 5}
ALPHABETS = ("all", "swaps")


@dataclass(frozen=True)
class WordProblem:
    """A group of permutations and the letters that its words are made of.

    table: (A, G), the element that letter a makes of element g when it is applied after it; letters: (A,), which
    elements the letters are. Elements are numbered as itertools.permutations gives them; 0 is the identity.
    """

    name: str
    table: np.ndarray
    letters: np.ndarray

    @classmethod
    def of(cls, name: str, alphabet: str = "all") -> "WordProblem":
        """alphabet: "all" elements, or "swaps": the identity and whatever exchanges two things, which make up all
        others."""
        if name not in DEGREES or alphabet not in ALPHABETS:
            raise ValueError(
                f"no word problem {name!r} over {alphabet!r}, "
                f"expected one of {', '.join(DEGREES)} over one of {', '.join(ALPHABETS)}"
            )
        elements = list(permutations(range(DEGREES[name])))
        place = {element: index for index, element in enumerate(elements)}
        moved = [sum(i != image for i, image in enumerate(element)) for element in elements]
        letters = [index for index, count in enumerate(moved) if alphabet == "all" or count <= 2]
        table = [[place[tuple(elements[a][i] for i in g)] for g in elements] for a in letters]
        return cls(name, np.array(table), np.array(letters))

    def sample(self, words: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
        """Words drawn letter by letter -> letters (B, T) in [0, A), and the element in [0, G) after each (B, T)."""
        drawn = np.random.default_rng(seed).integers(len(self.letters), size=(words, length))
        reached = np.zeros(words, dtype=np.int64)
        products = np.empty_like(drawn)
        for t in range(length):
            reached = self.table[drawn[:, t], reached]
            products[:, t] = reached
        return torch.from_numpy(drawn), torch.from_numpy(products)
