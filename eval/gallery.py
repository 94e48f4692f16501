"""Some right and some wrong answers with what they are about, small enough to stand in a page."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from eval.run import open_source
from eval.task import Sample, Source
from mm_rwkv7.synthetic.dice import Dice

EACH = 8  # right ones, and as many wrong ones
SIDE = 240  # px
SECONDS = 10
RATE = 16_000


@dataclass(frozen=True)
class Exhibit:
    """One answer. `pictures` and `sounds` are data addresses; `missing` says what could not be shown, and why."""

    sample: Sample
    prediction: str
    score: float | None
    pictures: tuple[str, ...]
    sounds: tuple[str, ...]
    missing: tuple[str, ...]


def choose(
    samples: Sequence[Sample], predictions: Mapping[str, object], scores: Mapping[str, float], seed: int = 0
) -> tuple[list[Exhibit], list[Exhibit]]:
    """Answers with the best and with the worst score, drawn by `seed`. Where all are equal, or nothing was scored, all
    of them count as best."""
    known = [sample for sample in samples if sample.id in scores] or list(samples)
    best, worst = max(scores.values(), default=0.0), min(scores.values(), default=0.0)
    right = [sample for sample in known if scores.get(sample.id, best) == best]
    wrong = [sample for sample in known if scores.get(sample.id, best) == worst] if worst < best else []
    dice = Dice(seed)
    return (
        [_exhibit(sample, predictions[sample.id], scores.get(sample.id)) for sample in dice.shuffled(right)[:EACH]],
        [_exhibit(sample, predictions[sample.id], scores.get(sample.id)) for sample in dice.shuffled(wrong)[:EACH]],
    )


def _exhibit(sample: Sample, prediction: object, score: float | None) -> Exhibit:
    pictures: list[str] = []
    sounds: list[str] = []
    missing: list[str] = []
    for sources, show, shown in ((sample.images, _thumbnail, pictures), (sample.sounds, _excerpt, sounds)):
        for source in sources:
            try:
                shown.append(show(source))
            except ValueError as error:
                missing.append(str(error))
    text = prediction if isinstance(prediction, str) else f"{prediction!r:.60}"
    return Exhibit(sample, text, score, tuple(pictures), tuple(sounds), tuple(missing))


def _thumbnail(source: Source) -> str:
    from mm_rwkv7.pictures import load_picture

    _check(source)
    picture = load_picture(open_source(source))
    picture.thumbnail((SIDE, SIDE))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return _address("image/jpeg", buffer)


def _excerpt(source: Source) -> str:
    import soundfile

    from mm_rwkv7.sounds import load_sound

    _check(source)
    samples = load_sound(open_source(source), RATE)[: SECONDS * RATE]
    buffer = BytesIO()
    soundfile.write(buffer, samples.numpy(), RATE, format="OGG")
    return _address("audio/ogg", buffer)


def _check(source: Source) -> None:
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"{source} is not there")


def _address(kind: str, buffer: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
