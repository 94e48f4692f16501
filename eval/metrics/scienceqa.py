"""ScienceQA: the option that an answer names, as LLaVA reads it."""

import re

LETTERS = tuple("ABCDE")
SENTENCE = re.compile("The answer is ([A-Z]).")  # any character may follow the letter, but one must


def parse(text: str | None, n_choices: int) -> int:
    """The index of the option that `text` names, or -1; None, an answer that is missing, names none.

    It is named by its letter alone, by its letter at the beginning with a period and a space after it, or by "The
    answer is X." somewhere, once. A letter beyond the options is -1, too.
    """
    if text is None:
        return -1
    if text in LETTERS:
        letter = text
    elif text[:1] in LETTERS and text[1:3] == ". ":
        letter = text[0]
    else:
        named = SENTENCE.findall(text)
        letter = named[0] if len(named) == 1 else ""
    options = LETTERS[:n_choices]
    return options.index(letter) if letter in options else -1
