"""AudioCaps: one sentence about each sound of its test split, against five that people wrote.

Its sounds are clips of AudioSet's videos, of which fewer are left every year: where the folder of sounds is there, the
clips without a sound are left out, and the score says how many were captioned.
"""

from collections.abc import Sequence
from pathlib import Path

from eval import files, prompts
from eval.sound_captions import SoundCaptions
from eval.task import Sample
from eval.tasks.audioset import clips

ORIGIN = "https://github.com/cdjkim/audiocaps (dataset/test.csv)"
TABLE, SOUNDS = "test.csv", "test"


class AudioCaps(SoundCaptions):
    """The sounds are DATA/audiocaps/test/<youtube_id>.wav (or .flac, .ogg, .mp3, or with a Y before the id)."""

    name = "audiocaps"
    variant = "AudioCaps 1.0, test split, five references"
    folder = "audiocaps"

    def samples(self, data: Path) -> Sequence[Sample]:
        question, written, sounds = prompts.fill(self.prompt), self.references(data), clips(data / SOUNDS)
        if sounds and not written.keys() & sounds.keys():
            raise ValueError(f"{data / SOUNDS}: none of the {len(sounds)} sounds is named by a youtube_id of {TABLE}")
        return [
            Sample(
                id=clip, question=question, sounds=(sounds.get(clip, data / SOUNDS / f"{clip}.wav"),), expected=said[0]
            )
            for clip, said in written.items()
            if clip in sounds or not sounds
        ]

    def references(self, data: Path) -> dict[str, list[str]]:
        """The captions of each clip by its video; every caption has a row."""
        rows = files.unique(files.read_csv(data / TABLE, ORIGIN), lambda row: row["audiocap_id"].text())
        found: dict[str, list[str]] = {}
        for row in rows.values():
            found.setdefault(row["youtube_id"].text(), []).append(row["caption"].text())
        return found
