"""Pipeline: the one object that answers, held by the command line, the app, the server and evaluation."""

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.protocol import move
from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.decode import Stepper, stepper
from mm_rwkv7.generate import Decoder, prefill
from mm_rwkv7.hearing import Heard, Hearing
from mm_rwkv7.int8 import quantise
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.opening import open_checkpoint
from mm_rwkv7.likelihood import Likelihood, likelihoods
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pile_tokenizer import PileTokenizer, tokenizer_file
from mm_rwkv7.processor import Batch, Message, Processor
from mm_rwkv7.sampler import Sampler
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.sounds import Sound, SoundSource
from mm_rwkv7.sources import locate
from mm_rwkv7.state import State
from mm_rwkv7.tagger import Tags, batches, likeliest
from mm_rwkv7.tokenizer import Tokenizer
from mm_rwkv7.weights import INT8, choose_device, choose_dtype


@dataclass(frozen=True)
class Usage:
    """Tokens read as text, tokens read as pictures and sounds, tokens written."""

    prompt_tokens: int
    media_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Timings:
    """Seconds to load the model, encode the media, read the prompt, and from the call to the first token; tokens
    written a second."""

    load_s: float
    encode_s: float
    prefill_s: float
    first_token_s: float
    decode_tokens_per_s: float


@dataclass(frozen=True)
class Answer:
    """What was answered, why it ended ("stop", "length" or "cancelled"), and the state to go on from."""

    text: str
    finish_reason: str
    usage: Usage
    timings: Timings
    state: State = field(repr=False)


class Stream:
    """Iterate for the answer's pieces of text as they are written; then `answer` holds the whole.

    `close` ends the writing early, and `answer` is then what was written until that. Asking for `answer` without it
    writes on to the end.
    """

    def __init__(self, write: Callable[["Stream"], Generator[str, None, Answer]]) -> None:
        self.closed = False
        self._answer: Answer | None = None
        self._pieces = self._iterate(write(self))

    def _iterate(self, writing: Generator[str, None, Answer]) -> Iterator[str]:
        self._answer = yield from writing

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Write no more tokens."""
        self.closed = True

    @property
    def answer(self) -> Answer:
        for _ in self._pieces:
            pass
        assert self._answer is not None
        return self._answer


class Pipeline:
    """A model with its tokenizer and processor. States are values: one pipeline serves any number of
    conversations, each of which holds its own state.

    `pad_compat` pads the first prompt as VisualRWKV does, for comparison with it (see `generate.prefill`).
    """

    def __init__(
        self,
        model: MMRWKV7,
        name: str = "model",
        load_s: float = 0.0,
        opened: Checkpoint | None = None,
        pad_compat: bool = False,
    ) -> None:
        if pad_compat and (model.config.tokenizer != "world" or model.config.vocabulary is not None):
            raise ValueError("pad_compat pads with an id of the whole World vocabulary, which this model does not have")
        self.model = model.eval()
        self.opened = opened  # where the weights came from, None for a model made in memory
        self.name = name
        self.load_s = load_s
        self.pad_compat = pad_compat
        self._fingerprint = checkpoint.Fingerprint(self._compute_fingerprint)
        self.tokenizer = _tokenizer(model.config, None if opened is None else opened.path)
        preprocess = None if model.tower is None else model.tower.preprocess
        sound_tokens = None if model.sound is None else model.sound.tokens
        self.processor = Processor(model.config, self.tokenizer, preprocess, model.image_tokens, sound_tokens)

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] = "nano",
        device: str = "auto",
        dtype: str = "auto",
        pad_compat: bool = False,
    ) -> "Pipeline":
        """`model`: "nano" (bundled), "hf:owner/repo", "hf:owner/repo/file", or a folder or file of any format that
        `interop.opening` knows."""
        began = time.perf_counter()
        where = choose_device(device)
        opened = open_checkpoint(locate(model))
        loaded = checkpoint.build(opened, choose_dtype(dtype, where))
        if dtype == INT8:
            quantise(loaded.lm)
        loaded = loaded.to(where)
        return cls(loaded, os.fspath(model), time.perf_counter() - began, opened, pad_compat)

    @property
    def fingerprint(self) -> str:
        """sha256 of the config and the weights; states carry it. The first call reads the whole model."""
        return str(self._fingerprint)

    def _compute_fingerprint(self) -> str:
        tensors = self.model.state_dict() if self.opened is None else self.opened.tensors
        return checkpoint.fingerprint(self.model.config.to_json(), tensors.items())

    @cached_property
    def step(self) -> Stepper:
        """The language model's decoding, one token at a time."""
        return stepper(self.model.lm)

    @property
    def device(self) -> torch.device:
        return self.model.lm.emb.weight.device

    def ask(
        self,
        question: str,
        images: Sequence[Any] = (),
        audio: Sequence[Any] = (),
        sampling: Sampling = Sampling(),  # noqa: B008 - a frozen value
        state: State | None = None,
    ) -> Answer:
        """Answer a question about pictures (paths, bytes or PIL images) and sounds (paths, bytes or waveforms with
        their rate), going on from `state`."""
        return self.chat(question_about(question, images, audio), sampling, state)

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),  # noqa: B008 - a frozen value
        state: State | None = None,
    ) -> Answer:
        """Answer the last of `messages`, which come after what `state` has read."""
        return self.stream(messages, sampling, state).answer

    def stream(
        self,
        messages: Sequence[Message],
        sampling: Sampling = Sampling(),  # noqa: B008 - a frozen value
        state: State | None = None,
    ) -> Stream:
        """Like `chat`, but the text comes as it is written. Bad messages raise here, before any work."""
        began = time.perf_counter()
        batch = self.processor(messages, open_turn=state is not None and state.open_turn)
        template = self.model.config.template
        return self._write(batch, sampling, state, began, template.stop, template.turn_end)

    def generate(
        self,
        text: str,
        sampling: Sampling = Sampling(),  # noqa: B008 - a frozen value
        state: State | None = None,
    ) -> Answer:
        """Continue a text as it stands, without the prompt template."""
        ids = self.tokenizer.encode(text)
        if not ids:
            raise ValueError("there is no text to continue")
        return self._write(Batch(torch.tensor([ids])), sampling, state, time.perf_counter(), (), "").answer

    def caption(self, image: Any, sampling: Sampling = Sampling()) -> str:  # noqa: B008 - a frozen value
        """Describe one picture."""
        return self.ask(self.model.config.template.caption, [image], sampling=sampling).text

    @torch.no_grad()
    def tag(self, audio: SoundSource, top: int = 10) -> Tags:
        """The likeliest classes of a sound with their probabilities, which need not add up to one: several may be
        heard. Those of a long sound are the means over its windows."""
        hearing, labels = self._hearing()
        if hearing.head is None:
            raise ValueError(f"model {self.name!r} has no tagging head, it can be asked about a sound")
        windows = self._windows(self.processor.sound(audio))
        scored = ((hearing.tag(pictures, frames), frames) for pictures, frames in windows)
        return likeliest(scored, labels, top)

    @torch.no_grad()
    def hear(self, audio: SoundSource, top: int = 10) -> Heard:
        """Encode a sound once, for its tags and for prompts: what comes back stands where a sound does in messages."""
        hearing, labels = self._hearing()
        sound = self.processor.sound(audio)
        tokens: list[Tensor] = []

        def scored() -> Iterator[tuple[Tensor, Tensor]]:
            for windows, frames in self._windows(sound):
                read, logits = hearing.read_and_tag(windows, frames)
                tokens.append(read)
                yield logits, frames

        if hearing.head is None:
            tokens += [hearing.read(windows, frames) for windows, frames in self._windows(sound)]
            tags: Tags = []
        else:
            tags = likeliest(scored(), labels, top)
        return Heard(sound, torch.cat(tokens), tags, self._fingerprint)

    def _hearing(self) -> tuple[Hearing, Sequence[str]]:
        """The model's ears and the classes that they tell apart."""
        if self.model.sound is None or self.model.config.sound is None:
            raise ValueError(f"model {self.name!r} has no sound encoder, it cannot hear")
        return self.model.sound, self.model.config.sound.labels

    def prefill(self, messages: Sequence[Message], state: State | None = None) -> State:
        """Read messages without answering. After a message of pictures and sounds alone the turn stays open: any number
        of questions about them can be asked from the state that comes back."""
        batch = self.processor(messages, generate=False, open_turn=state is not None and state.open_turn)
        _, after = self._read(batch, state)
        return self.sign(after, batch.open_turn)

    def sign(self, state: State, open_turn: bool = False) -> State:
        """The state as one of this model's, to be given to others."""
        return replace(state, open_turn=open_turn, model=self._fingerprint)

    def embed(self, content: str | Sequence[Message]) -> Tensor:
        """A text or messages as one vector (D,): what the head would read after the last token."""
        if isinstance(content, str):
            batch = Batch(torch.tensor([self.tokenizer.encode(content)]))
        else:
            batch = self.processor(content, generate=False)
        return self._read(batch, None)[0][0].float()

    def likelihood(
        self, messages: Sequence[Message], answers: Sequence[str], state: State | None = None
    ) -> list[Likelihood]:
        """How likely each of `answers`, up to the end of its turn, is as the answer to the last of `messages`, which
        come after what `state` has read."""
        template = self.model.config.template
        if not all(answers):
            raise ValueError("an answer is empty, expected some words")
        batch = self.processor(messages, open_turn=state is not None and state.open_turn)
        ends = [self.tokenizer.encode(template.answer + answer + template.turn_end) for answer in answers]
        return likelihoods(self.model, *self._read(batch, state), ends)

    def token_likelihood(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]], state: State | None = None
    ) -> list[Likelihood]:
        """How likely each of `continuations` is after the ids of `prompt`, without the prompt template; what begins a
        text comes after `tokenizer.end_id`."""
        if not prompt:
            raise ValueError("the prompt is empty, expected at least one token")
        return likelihoods(self.model, *self._read(Batch(torch.tensor([list(prompt)])), state), continuations)

    def _read(self, batch: Batch, state: State | None) -> tuple[Tensor, State]:
        return self._prefill(batch, self.own(state), self._encode(batch), self._hear(batch))

    def _prefill(
        self, batch: Batch, state: State | None, features: Tensor | None, sounds: Iterable[Tensor]
    ) -> tuple[Tensor, State]:
        return prefill(self.model, batch.ids.to(self.device), state, features, self.pad_compat, sounds)

    def own(self, state: State | None) -> State | None:
        """A state that somebody saved or computed elsewhere, where this model can go on from it. ValueError for a state
        of another model."""
        if state is None:
            return None
        if state.model is not self._fingerprint and str(state.model) not in ("", self.fingerprint):
            raise ValueError(f"the state is of model {str(state.model)[:12]}..., this is {self.fingerprint[:12]}...")
        return state.map(lambda tensor: tensor.to(self.device))

    @torch.no_grad()
    def _encode(self, batch: Batch) -> Tensor | None:
        return None if batch.pixels is None else self.model.encode(move(batch.pixels, self.device), batch.tiles)

    @torch.no_grad()
    def _hear(self, batch: Batch) -> Iterator[Tensor]:
        """The tokens (..., D) of the batch's sounds, some windows at a time."""
        for sound in batch.sounds:
            if isinstance(sound, Heard):
                if sound.model is not self._fingerprint:
                    raise ValueError("the sound was heard by another model than the one that is asked about it")
                yield sound.tokens
                continue
            for windows, frames in self._windows(sound):
                yield self.model.hear(windows, frames)

    def _windows(self, sound: Sound) -> Iterator[tuple[Tensor, Tensor]]:
        assert self.processor.sound_tokens is not None
        return batches(self.processor.sound_tokens.frontend, sound, self.device)

    def _write(
        self,
        batch: Batch,
        sampling: Sampling,
        state: State | None,
        began: float,
        stop: Sequence[str],
        turn_end: str,
    ) -> Stream:
        state = self.own(state)

        def write(stream: Stream) -> Generator[str, None, Answer]:
            features = self._encode(batch)
            encoded = self._clock()
            sounds = _Timed(self._hear(batch), self._clock)
            hidden, read = self._prefill(batch, state, features, sounds)
            prefilled = self._clock()
            sampler = Sampler(sampling, self.tokenizer.size, self.device)
            limit = sampling.max_new_tokens or self.model.config.max_new_tokens
            stops = (*stop, *sampling.stop)
            decoder = Decoder(self.model, self.tokenizer, hidden, read, sampler, stops, limit, self.step)
            text, first, decode_s = "", None, 0.0
            pieces = iter(decoder)
            while not stream.closed:
                asked = time.perf_counter()
                piece = next(pieces, None)
                now = self._clock()
                decode_s += now - asked
                if piece is None:
                    break
                first = first or now
                if turn_end and not text:
                    piece = piece.lstrip()
                text += piece
                if piece:
                    yield piece
            config = self.model.config
            media = int(((batch.ids == config.image_id) | (batch.ids == config.audio_id)).sum())
            written = len(decoder.tokens)
            return Answer(
                text,
                decoder.finish_reason,
                Usage(batch.ids.shape[1] - media, media, written),
                Timings(
                    self.load_s,
                    (encoded - began if batch.pixels is not None else 0.0) + sounds.seconds,
                    prefilled - encoded - sounds.seconds,
                    (first or prefilled) - began,
                    written / decode_s if decode_s else 0.0,
                ),
                self._closed(decoder, turn_end),
            )

        return Stream(write)

    def _clock(self) -> float:
        """The time when the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _closed(self, decoder: Decoder, turn_end: str) -> State:
        """The state after the answer, its turn ended as the template ends turns, whatever ended the writing."""
        state = self.sign(decoder.state)
        if not turn_end or turn_end in self.tokenizer.decode(decoder.tokens):
            return state
        ids = torch.tensor([self.tokenizer.encode(turn_end)], device=self.device)
        return prefill(self.model, ids, state)[1]


class _Timed:
    """An iterator that knows how long its items took to make."""

    def __init__(self, items: Iterator[Tensor], clock: Callable[[], float]) -> None:
        self.seconds = 0.0
        self._items, self._clock = items, clock

    def __iter__(self) -> Iterator[Tensor]:
        return self

    def __next__(self) -> Tensor:
        began = self._clock()
        try:
            return next(self._items)
        finally:
            self.seconds += self._clock() - began


def _tokenizer(config: MMConfig, path: Path | None) -> Tokenizer:
    if config.tokenizer == "world":
        return Tokenizer(config.vocabulary)
    if config.tokenizer == "pile":
        return PileTokenizer(tokenizer_file(path), config.lm.vocab_size)
    raise ValueError(
        f"{path} has {config.lm.vocab_size} embedding rows, which belong to no tokenizer that is known here; "
        "RWKV7.from_pretrained opens it for ids"
    )


def question_about(question: str, images: Sequence[Any] = (), audio: Sequence[Any] = ()) -> list[Message]:
    """One user message: the media in order, then the question."""
    for name, several, media in (("images", "pictures", images), ("audio", "sounds", audio)):
        if isinstance(media, str | bytes):
            raise ValueError(f"{name} is {media!r:.80}, expected a list of {several}")
    parts: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    parts += [{"type": "audio", "audio": sound} for sound in audio]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
