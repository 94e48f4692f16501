"""Sentences about nothing in particular, made from a seed: what facts are hidden in."""

import random
from collections.abc import Iterator

WHO = (
    "The baker",
    "A sailor",
    "My neighbour",
    "The old teacher",
    "A tall girl",
    "The postman",
    "Her cousin",
    "A farmer",
)
DID = ("painted", "carried", "found", "repaired", "sold", "drew", "cleaned", "forgot", "borrowed", "counted")
WHAT = ("the fence", "a basket", "two lamps", "the letters", "a green boat", "the clock", "some apples", "a long rope")
WHEN = (
    "before noon",
    "in the rain",
    "after dinner",
    "last winter",
    "near the harbour",
    "on the hill",
    "without a word",
)


def sentences(rng: random.Random) -> Iterator[str]:
    """One after another, without end."""
    while True:
        yield f"{rng.choice(WHO)} {rng.choice(DID)} {rng.choice(WHAT)} {rng.choice(WHEN)}."


def fill(rng: random.Random, tokens: int, between: str = " ") -> list[str]:
    """As many sentences as fit into so many tokens of the World vocabulary, with what stands between them."""
    from mm_rwkv7.tokenizer import Tokenizer

    encode, found = Tokenizer().encode, list[str]()
    for sentence in sentences(rng):
        tokens -= len(encode(f"{between}{sentence}"))
        if tokens < 0:
            return found
        found.append(sentence)
    raise AssertionError("sentences have no end")
