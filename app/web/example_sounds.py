"""The page's example sounds: generated ones of odd seeds, which no training has played.

`python -m app.web.example_sounds` makes them anew.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples"

# seed -> what to call it, and a question worth asking
SOUNDS = {
    27: ("Beeps", "How many beeps can you hear?"),
    145: ("Melody", "Do the notes go up or down?"),
    25: ("Sounds in a row", "Which sound comes last?"),
    143: ("Noise", "How does the loudness change?"),
}


def examples() -> list[list[str]]:
    """[path, question] of each."""
    return [[str(file(seed)), question] for seed, (_, question) in SOUNDS.items()]


def names() -> list[str]:
    """What each is called, in the same order."""
    return [name for name, _ in SOUNDS.values()]


def file(seed: int) -> Path:
    return FOLDER / f"sound-{seed}.flac"


def play_all() -> None:
    import soundfile

    from mm_rwkv7.synthetic.soundscapes import sample

    FOLDER.mkdir(exist_ok=True)
    for seed in SOUNDS:
        scape = sample(seed)
        soundfile.write(file(seed), scape.waveform, scape.rate)


if __name__ == "__main__":
    play_all()
