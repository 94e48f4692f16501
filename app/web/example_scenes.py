"""The page's example pictures: generated scenes of odd seeds, which no training has shown.

`python -m app.web.example_scenes` draws them anew.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "examples"
SIDE = 384

# seed -> a question worth asking
SCENES = {
    19: "Which number is in the picture?",
    23: "What color is the number?",
    35: "How many circles are there?",
    39: "What word is written?",
}


def examples() -> list[list[str]]:
    """[path, question] of each."""
    return [[str(picture(seed)), question] for seed, question in SCENES.items()]


def picture(seed: int) -> Path:
    return FOLDER / f"scene-{seed}.png"


def draw_all() -> None:
    from mm_rwkv7.synthetic.scenes import sample

    FOLDER.mkdir(exist_ok=True)
    for seed in SCENES:
        sample(seed, SIDE).image.save(picture(seed), optimize=True)


if __name__ == "__main__":
    draw_all()
