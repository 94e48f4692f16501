"""Generated sounds: what is said of them is heard in them, by other means than those that made them."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from torchaudio.compliance import kaldi

from mm_rwkv7.synthetic import synthesis
from mm_rwkv7.synthetic.soundscapes import KINDS, NOISES, RATE, Event, Soundscape, sample


@pytest.fixture(scope="module")
def scapes() -> list[Soundscape]:
    return [sample(seed) for seed in range(600)]


def spectrum(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies (Hz) and power."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    return np.fft.rfftfreq(len(samples), 1 / RATE), power


def loudest(samples: np.ndarray) -> float:
    frequencies, power = spectrum(samples)
    return float(frequencies[power.argmax()])


def piece(scape: Soundscape, event: Event) -> np.ndarray:
    start = round(event.start * RATE)
    return scape.waveform[start : start + round(event.duration * RATE)].astype(np.float64)


def quiet(scapes: list[Soundscape]) -> list[Soundscape]:
    return [scape for scape in scapes if scape.noise is None]


def test_pitches_are_those_that_are_told(scapes: list[Soundscape]) -> None:
    heard = 0
    for scape in quiet(scapes):
        for event in scape.events:
            if event.pitch is None or event.kind == "bell":
                continue
            heard += 1
            assert abs(loudest(piece(scape, event)) - event.hertz) < 12, scape.caption
            assert (event.hertz < 500) == (event.pitch == "low")
    assert heard > 50


def test_sweeps_and_melodies_go_where_they_are_said_to(scapes: list[Soundscape]) -> None:
    heard: Counter[str] = Counter()
    for scape in quiet(scapes):
        for question, answer, kind in scape.qa:
            if kind == "melody":
                pitches = [loudest(piece(scape, event)) for event in scape.events]
            elif kind == "sweep":
                (event,) = [event for event in scape.events if event.kind.endswith("sweep")]
                thirds = np.array_split(piece(scape, event), 3)
                pitches = [loudest(third) for third in thirds]
            else:
                continue
            heard[kind] += 1
            assert pitches == sorted(pitches, reverse=answer == "down"), question
    assert min(heard["melody"], heard["sweep"]) > 10


def bursts(waveform: np.ndarray) -> list[int]:
    """Where sound begins after at least 0.1 s of silence."""
    loud = np.flatnonzero(np.abs(waveform.astype(np.int64)) > 300)
    return [int(loud[0]), *(int(loud[i + 1]) for i in np.flatnonzero(np.diff(loud) > RATE // 10))]


def test_counts_and_rhythms_are_heard(scapes: list[Soundscape]) -> None:
    heard: Counter[str] = Counter()
    for scape in quiet(scapes):
        if not scape.events or scape.events[0].kind != "beep":
            continue
        starts = bursts(scape.waveform)
        for question, answer, kind in scape.qa:
            if kind == "count":
                assert len(starts) == int(answer), question
            elif kind == "rhythm":
                steps = np.diff(starts) / RATE - scape.events[0].duration
                assert (steps.max() > 1.5 * steps.min()) == (answer == "uneven"), steps
            heard[kind] += 1
    assert min(heard["count"], heard["rhythm"]) > 5


@pytest.mark.parametrize(("colour", "slope"), [("white", 0), ("pink", -3), ("brown", -6)])
def test_noises_fall_as_their_colour_says(colour: str, slope: float) -> None:
    frequencies, power = spectrum(synthesis.noise(1 << 18, colour, seed=5))
    octaves = [(frequencies >= low) & (frequencies < 2 * low) for low in (62.5, 125, 250, 500, 1000, 2000)]
    levels = [10 * np.log10(power[octave].mean()) for octave in octaves]
    assert abs(np.polyfit(range(len(levels)), levels, 1)[0] - slope) < 0.5


def test_loudness_changes_as_it_is_said_to(scapes: list[Soundscape]) -> None:
    heard = 0
    for scape in scapes:
        for _, answer, kind in scape.qa:
            if kind == "loudness":
                first, *_, last = (part.std() for part in np.array_split(scape.waveform.astype(float), 4))
                assert (last > 1.5 * first) if answer == "louder" else (first > 1.5 * last)
                heard += 1
    assert heard > 10


def test_answers_follow_from_the_events(scapes: list[Soundscape]) -> None:
    for scape in scapes:
        kinds = [event.kind for event in scape.events]
        for question, answer, kind in scape.qa:
            if kind == "exists":
                named = re.search(r"\ban? (.+?)(?: sound)?\?", question)
                assert named is not None
                assert (named[1] in kinds) == (answer == "yes"), question
            elif kind == "order":
                named = re.search(r"the (.+?) (?:come|heard) before the (.+)\?", question)
                assert named is not None
                assert (kinds.index(named[1]) < kinds.index(named[2])) == (answer == "yes"), question
            elif kind == "first":
                assert answer == kinds[0 if "first" in question else -1]
            elif kind == "background":
                assert (scape.noise is not None) == (answer == "yes")
            elif kind == "noise":
                assert answer == scape.noise


def test_a_question_does_not_give_its_answer_away(scapes: list[Soundscape]) -> None:
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for scape in scapes:
        for question, answer, _ in scape.qa:
            answers[question][answer] += 1
    common = {question: found for question, found in answers.items() if sum(found.values()) >= 60}
    assert len(common) > 5
    for question, found in common.items():
        assert max(found.values()) < 0.7 * sum(found.values()), (question, found)


def test_every_kind_and_colour_is_heard(scapes: list[Soundscape]) -> None:
    assert {event.kind for scape in scapes for event in scape.events} == {*KINDS, "beep", "note"}
    assert {scape.noise for scape in scapes} == {*NOISES, None}
    assert len({scape.caption for scape in scapes}) > 300


def test_sounds_are_loud_enough_and_not_cut_off(scapes: list[Soundscape]) -> None:
    for scape in scapes:
        assert 1500 < np.abs(scape.waveform.astype(np.int64)).max() < 32_767, scape.caption
        assert not any(
            earlier.start + earlier.duration > later.start
            for earlier, later in zip(scape.events, scape.events[1:], strict=False)
        )


def test_every_sound_is_louder_than_its_background(scapes: list[Soundscape]) -> None:
    """In some frequencies, for a while: beyond all that the noise reaches there while nothing sounds."""
    heard: dict[str, int] = {}
    for scape in scapes[:300]:
        if scape.noise is None or not scape.events:
            continue
        waveform = torch.from_numpy(scape.waveform).float()[None]
        cells = kaldi.fbank(waveform, num_mel_bins=64, sample_frequency=RATE, dither=0.0)  # every 10 ms
        spans = [slice(round(100 * e.start), round(100 * (e.start + e.duration))) for e in scape.events]
        noise = torch.ones(len(cells), dtype=torch.bool)
        for span in spans:
            noise[max(0, span.start - 3) : span.stop + 3] = False
        most = cells[noise].amax(0)
        for event, span in zip(scape.events, spans, strict=True):
            found = int((cells[span] > most).sum())
            heard[event.kind] = min(found, heard.get(event.kind, found))
    assert heard.keys() >= set(KINDS)
    assert min(heard.values()) >= 12, heard  # cells of a spectrogram


def test_a_seed_gives_the_same_bytes_everywhere() -> None:
    script = (
        "import hashlib; from mm_rwkv7.synthetic.soundscapes import sample; "
        "print(hashlib.sha256(b''.join(sample(s).waveform.astype('<i2').tobytes() for s in range(40))).hexdigest())"
    )
    here = hashlib.sha256(b"".join(sample(seed).waveform.astype("<i2").tobytes() for seed in range(40))).hexdigest()
    plain = {"NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512_SKX AVX2 FMA3", "PYTHONHASHSEED": "7"}
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, **plain, "PYTHONPATH": root},
    )
    assert other.stdout.strip() == here


@pytest.mark.parametrize("seconds", [5, 8])
def test_lengths(seconds: float) -> None:
    for seed in range(60):
        scape = sample(seed, seconds)
        assert len(scape.waveform) == seconds * RATE
        assert all(event.start >= 0 and event.start + event.duration <= seconds for event in scape.events), seed


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="seed is -1"):
        sample(-1)
    with pytest.raises(ValueError, match="seconds is 1, expected 5 to 60"):
        sample(0, 1)
