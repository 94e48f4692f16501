"""What the model says to pictures and sounds that it was not trained on, to read beside the loss."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile
import torch

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pictures import load_picture
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Message
from mm_rwkv7.state import State
from training.boards import Answered
from training.data.conversations import Fault, Reader
from training.data.media import at_hand
from training.singles.hearing import RATE
from training.singles.named import AnySample, AnySource, open_turn
from training.singles.sources import Sample

EACH = 4  # of each source
LOOKED_AT = 100  # conversations of which some cannot be read


def write_samples(model: MMRWKV7, sources: Iterable[tuple[str, AnySource]], folder: Path, step: int) -> list[Answered]:
    """`samples/step-N.jsonl`: picture or sound, question, expected and given answer; the files lie beside it."""
    pipeline = Pipeline(model)
    folder = folder / "samples"
    folder.mkdir(exist_ok=True)
    lines = []
    for name, source in sources:
        samples: Sequence[AnySample] = source.held_out(EACH)
        for i, sample in enumerate(samples):
            if isinstance(sample, Sample):
                file = f"{name}-{i}.png"
                sample.image.save(folder / file)
            else:
                file = f"{name}-{i}.flac"
                soundfile.write(folder / file, sample.waveform, RATE)
            state = pipeline.prefill(open_turn(sample))
            for question, expected in sample.qa:
                said = pipeline.ask(question, state=state).text
                lines.append({"files": [file], "question": question, "expected": expected, "said": said})
    return _write(lines, folder, step)


def write_conversations(
    model: MMRWKV7, readers: Mapping[str, Reader], folder: Path, step: int, state: State | None = None
) -> list[Answered]:
    """The same of conversations, the first ones of each source: what is said at the first answer, from `state` on.
    They were trained on."""
    pipeline = Pipeline(model)
    folder = folder / "samples"
    folder.mkdir(exist_ok=True)
    lines = []
    for name, reader in readers.items():
        drawn = (drawn for drawn, _ in reader.stream(0))
        for i, talk in enumerate(islice((one for one in islice(drawn, LOOKED_AT) if not isinstance(one, Fault)), EACH)):
            roles = [message["role"] for message in talk.messages]
            asked = talk.messages[: roles.index("assistant")] if "assistant" in roles else ()
            if not asked:
                continue
            try:
                said = pipeline.chat([_readable(message) for message in asked], state=state).text
                files = [_show(medium, folder / f"{name}-{i}-{j}", pipeline) for j, medium in enumerate(_media(asked))]
            except ValueError as error:
                lines.append({"id": talk.id, "error": str(error)})
                continue
            question = " ".join(part["text"] for part in _parts(asked) if part["type"] == "text")
            expected = talk.messages[len(asked)]["content"]
            line = {"id": talk.id, "files": files, "question": question, "expected": expected, "said": said}
            lines.append(line)
    return _write(lines, folder, step)


def _write(lines: Sequence[Mapping[str, Any]], folder: Path, step: int) -> list[Answered]:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / f"step-{step}.jsonl").write_text(text, encoding="utf-8")
    answered = [line for line in lines if "said" in line]
    media = [tuple(folder / file for file in line["files"]) for line in answered]
    return [
        Answered(line["question"], line["expected"], line["said"], files)
        for line, files in zip(answered, media, strict=True)
    ]


def _parts(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    contents = (message["content"] for message in messages)
    several = ([{"type": "text", "text": one}] if isinstance(one, str) else one for one in contents)
    return [part for parts in several for part in parts]


def _media(messages: Sequence[Message]) -> list[Mapping[str, Any]]:
    return [part for part in _parts(messages) if part["type"] != "text"]


def _readable(message: Message) -> Message:
    """With pictures and sounds that `Processor` can read."""
    if isinstance(message["content"], str):
        return message
    parts = [
        part if (kind := part["type"]) == "text" else {**part, kind: at_hand(part[kind])} for part in message["content"]
    ]
    return {**message, "content": parts}


def _show(medium: Mapping[str, Any], place: Path, pipeline: Pipeline) -> str:
    """Write a picture or a sound to a file named after `place`; returns its name."""
    if medium["type"] == "image":
        picture = place.with_name(f"{place.name}.png")  # a source's name may have dots
        load_picture(at_hand(medium["image"])).save(picture)
        return picture.name
    sound = pipeline.processor.sound(at_hand(medium["audio"]))
    file = place.with_name(f"{place.name}.flac")
    soundfile.write(file, torch.cat(list(sound.blocks())).numpy(), sound.rate)
    return file.name
