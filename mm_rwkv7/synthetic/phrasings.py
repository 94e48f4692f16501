"""The ways to put each question. The picture decides the answer, never the choice of phrasing."""

PHRASINGS: dict[str, tuple[str, ...]] = {
    "count": (
        "How many {group} are there?",
        "How many {group} are in the picture?",
        "How many {group} can you see?",
        "Count the {group}.",
    ),
    "colour": (
        "What colour is the {which}?",
        "What color is the {which}?",
        "Which colour does the {which} have?",
        "Tell me the color of the {which}.",
    ),
    "kind": (
        "What shape is the {which}?",
        "What is the {which}?",
        "What kind of shape is the {which}?",
        "Name the {which}.",
    ),
    "size": (
        "Is the {which} small or large?",
        "Is the {which} large or small?",
        "What size is the {which}?",
        "How big is the {which}?",
    ),
    "texture": (
        "Is the {which} plain, striped or dotted?",
        "What pattern does the {which} have?",
        "What texture does the {which} have?",
        "How is the {which} filled?",
    ),
    "exists": (
        "Is there {a}?",
        "Is there {a} in the picture?",
        "Can you see {a}?",
        "Does the picture show {a}?",
    ),
    "relation": (
        "Is the {one} {side} the {other}?",
        "Does the {one} lie {side} the {other}?",
        "Can the {one} be found {side} the {other}?",
    ),
    "neighbour": (
        "What is {side} the {which}?",
        "Which shape is {side} the {which}?",
        "What lies {side} the {which}?",
    ),
    "place": (
        "Where is the {which}?",
        "In which part of the picture is the {which}?",
        "Where in the picture is the {which}?",
        "Which part of the picture holds the {which}?",
    ),
    "compare": (
        "Are there {word} {one} than {other}?",
        "Does the picture show {word} {one} than {other}?",
        "Can you see {word} {one} than {other}?",
    ),
    "compare sizes": (
        "Is the {one} {word} than the {other}?",
        "Is it true that the {one} is {word} than the {other}?",
        "Does the {one} look {word} than the {other}?",
    ),
    "which kind": (
        "Which are there more of, {one} or {other}?",
        "Are there more {one} or {other}?",
        "What is more common, {one} or {other}?",
    ),
    "which colour": (
        "Which colour is more common among the shapes, {one} or {other}?",
        "Which color do more shapes have, {one} or {other}?",
        "Are more shapes {one} or {other}?",
    ),
    "number": (
        "What number is shown?",
        "Which number is in the picture?",
        "Read the number.",
        "What does the text say?",
        "What is written here?",
        "Read the text.",
    ),
    "word": (
        "What word is written?",
        "Which word is in the picture?",
        "Read the word.",
        "What does the text say?",
        "What is written here?",
        "Read the text.",
    ),
    "background": (
        "What colour is the background?",
        "What color is the background?",
        "Which colour does the background have?",
    ),
    "outermost": (
        "What is the {which} shape?",
        "Which shape is {which}?",
        "Name the {which} shape.",
        "What is the {which} shape in the picture?",
    ),
}
