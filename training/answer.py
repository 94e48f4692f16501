"""Stages 1 and 2: read a picture or a sound once, then answer each of its questions from a fork of the state.

The loss lies on the answers alone. Letters: P pictures, S sounds, Q questions of them all, T time, W windows of sounds.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.processor import Message, Processor
from mm_rwkv7.state import State
from training.singles.augment import AUGMENTATIONS, Augmentation, changed, masked
from training.singles.hearing import Features, SoundSample
from training.singles.named import AnySample
from training.singles.sources import Sample
from training.stage import Stage

IGNORED = -100  # F.cross_entropy's own
CAPTION_SHARE = 0.25  # of the pictures are also described
STRETCH = 1.5  # rows are padded together unless one is so many times longer than another


class AnswerStage(Stage):
    def __init__(self, model: MMRWKV7, processor: Processor, questions: int, blind: bool = False) -> None:
        super().__init__(model)
        self.processor = processor
        self.questions = questions
        self.blind = blind
        if model.config.tiling is not None:
            raise ValueError("the model cuts pictures into tiles, but training reads every picture as one")
        if processor.template.images_first:
            raise ValueError("the template puts pictures before the turn, but training reads them inside it")
        before, *_ = turns(processor, "?", "?")
        self.prefix = processor.tokenizer.encode(before)
        if not blind:
            self.prefix += processor.placeholders()
        tokens, template = processor.sound_tokens, processor.template
        self.features = None if tokens is None else Features(tokens.frontend)
        self.sound_prefix = processor.tokenizer.encode(template.user + template.audio.partition("{audio}")[0])

    def collate(self, drawn: Sequence[tuple[str, AnySample]], rng: random.Random) -> dict[str, Any]:
        pictures = [sample for _, sample in drawn if isinstance(sample, Sample)]
        sounds = [(name, sample) for name, sample in drawn if isinstance(sample, SoundSample)]
        samples: list[AnySample] = [*pictures, *(sound for _, sound in sounds)]
        rows = [
            (owner, *self._tokens(question, answer))
            for owner, sample in enumerate(samples)
            for question, answer in self._choose(sample, rng)
        ]
        batch: dict[str, Any] = {"groups": [_pad(group) for group in _alike(rows)]}
        if pictures and not self.blind:
            assert self.model.tower is not None
            batch["pixels"] = self.model.tower.preprocess.pixels([picture.image for picture in pictures])
        if sounds and not self.blind:
            batch |= self._listen(sounds, rng)
        return batch

    def _choose(self, sample: AnySample, rng: random.Random) -> list[tuple[str, str]]:
        qa = list(sample.qa)
        if len(qa) > self.questions:
            qa = rng.sample(qa, self.questions)
        template = self.processor.template
        describe = template.caption if isinstance(sample, Sample) else template.sound_caption
        if rng.random() < CAPTION_SHARE and all(question != describe for question, _ in qa):
            qa.append((describe, sample.caption))
        return qa

    def _listen(self, drawn: Sequence[tuple[str, SoundSample]], rng: random.Random) -> dict[str, Tensor]:
        """`windows` (W, F, M) of all sounds, how many `frames` (W,) of each are sound, and what is read before a
        question: `heard` (S, T) with its `heard_mask`."""
        tokens = self.processor.sound_tokens
        assert tokens is not None
        assert self.features is not None
        length = tokens.frontend.frames
        windows, rows = [], []
        for name, sound in drawn:
            way = AUGMENTATIONS.get(name, Augmentation())
            picture = masked(changed(self.features(sound), way, rng), way, rng)
            windows += picture.split(length)
            placeholders = [self.processor.tokenizer.audio_id] * tokens.of_frames(len(picture))
            rows.append(torch.tensor([*self.sound_prefix, *placeholders]))
        return {
            "windows": torch.stack([F.pad(window, (0, 0, 0, length - len(window))) for window in windows]),
            "frames": torch.tensor([len(window) for window in windows]),
            "heard": pad_sequence(rows, batch_first=True),
            "heard_mask": pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], batch_first=True),
        }

    def _tokens(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """-> (what follows the picture up to where the answer begins, the answer with its end of turn)."""
        encode = self.processor.tokenizer.encode
        _, *asked, reply = turns(self.processor, question, answer)
        return [token for piece in asked for token in encode(piece)], encode(reply)

    def _hidden(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """`RWKV7.hidden` in the precision of autocast throughout: left to itself, autocast casts for every product."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        return self.model.lm.hidden(x, state, mask)

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """-> (scalar loss, how many answer tokens were right and how much was read)."""
        lm = self.model.lm
        state, tokens = self._read(batch)
        losses, right = [], []
        for ids, targets, owners in batch["groups"]:
            fork = state.rows(torch.zeros_like(owners) if self.blind else owners)
            hidden, _ = self._hidden(lm.embed(ids), fork)
            asked = targets != IGNORED
            logits, wanted = lm.head(hidden[asked]).float(), targets[asked]
            losses.append(F.cross_entropy(logits, wanted, reduction="none"))
            right.append(logits.detach().argmax(-1) == wanted)
            tokens += ids.numel()
        accuracy = torch.cat(right).float().mean()
        return torch.cat(losses).mean(), {"token_accuracy": float(accuracy), "tokens": float(tokens)}

    def _read(self, batch: Mapping[str, Any]) -> tuple[State, int]:
        """The state after every picture, then after every sound, and how many tokens they are."""
        prefix = torch.tensor(self.prefix, device=self.model.lm.emb.weight.device)
        if self.blind:
            return self._hidden(self.model.lm.embed(prefix[None]))[1], len(prefix)
        states, tokens = [], 0
        if "pixels" in batch:
            features = self.model.encode(batch["pixels"])
            x = self.model.embed(prefix.expand(len(features), -1), features)
            states.append(self._hidden(x)[1])
            tokens += x.shape[0] * x.shape[1]
        if "windows" in batch:
            features = self.model.hear(batch["windows"], batch["frames"])
            x = self.model.embed(batch["heard"], sounds=features)
            states.append(self._hidden(x, mask=batch["heard_mask"])[1])
            tokens += x.shape[0] * x.shape[1]
        return State.cat(states), tokens


Row = tuple[int, list[int], list[int]]  # picture, what is asked, answer


def _alike(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in groups of like length."""
    groups: list[list[Row]] = []
    shortest = 0
    for row in sorted(rows, key=_length):
        if not groups or _length(row) > STRETCH * shortest:
            groups.append([])
            shortest = _length(row)
        groups[-1].append(row)
    return groups


def _length(row: Row) -> int:
    return len(row[1]) + len(row[2])


def _pad(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows -> ids (Q, T), the token to say after each of them (Q, T), pictures (Q,). Rows without a target fill up the
    block to one of few shapes."""
    length, count = _up(max(map(_length, rows)), to=4), _up(len(rows), to=8)
    ids = torch.zeros(count, length, dtype=torch.long)
    targets = torch.full((count, length), IGNORED)
    owners = torch.zeros(count, dtype=torch.long)
    for i, (owner, asked, answer) in enumerate(rows):
        end = len(asked) + len(answer)
        ids[i, :end] = torch.tensor(asked + answer)
        targets[i, len(asked) - 1 : end - 1] = torch.tensor(answer)
        owners[i] = owner
    return ids, targets, owners


def _up(number: int, to: int) -> int:
    """The next multiple: libraries prepare a matrix product for each shape that they meet."""
    return -(-number // to) * to


def turns(processor: Processor, question: str, answer: str) -> list[str]:
    """The texts around a picture (or a sound, in a model that cannot see), a question and its answer, each tokenized by
    itself: what comes before the picture, what follows it, and last the answer with its end of turn."""
    kind = "audio" if processor.preprocess is None else "image"
    content = [{"type": kind, kind: b""}, {"type": "text", "text": question}]
    messages: list[Message] = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": answer},
    ]
    return [piece for piece in processor.segments(messages, generate=False) if isinstance(piece, str)]
