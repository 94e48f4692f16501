"""The words around a question, by name. A template's hash stands in every manifest: other words, other scores."""

import hashlib

# The wordings are those of LLaVA 1.5's evaluation, which later models took over.
TEMPLATES = {
    "plain": "{question}",
    "short": "{question}\nAnswer the question using a single word or phrase.",
    "choices": "{question}\nAnswer with one of: {choices}",
    "sound_caption": "Describe the sound in one sentence.",
    "short_ocr": "{question}\nReference OCR token: {tokens}\nAnswer the question using a single word or phrase.",
    "short_or_unanswerable": (
        "{question}\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    ),
    "letter": "{question}\nAnswer with the option's letter from the given choices directly.",
    "caption": "Provide a one-sentence caption for the provided image.",
}


def fill(name: str, **values: str) -> str:
    """The template of that name with its places filled."""
    return TEMPLATES[name].format(**values)


def digest(name: str) -> str:
    """sha256 of a template."""
    return hashlib.sha256(TEMPLATES[name].encode()).hexdigest()
