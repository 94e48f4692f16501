"""The bodies of requests: OpenAI's fields, RWKV's besides, and nothing else.

A field that is no field is refused, so that a misspelt one is not silently without effect. Those of `Ignored` are
OpenAI's and have none here.

Nothing is looked at beyond the first fault: a list of millions of wrong items would be told as millions of faults.
"""

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, GetCoreSchemaHandler, model_validator
from pydantic_core import core_schema

from app.api.errors import Refused
from mm_rwkv7.sampling import Sampling

STOPS = 16
LONGEST_STOP = 256  # characters; an answer's every token is compared with it


class _OneFault:
    """Of a list: its first wrong item ends the validation."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return {**handler(source), "fail_fast": True}


class _Empty:
    """Of a field that is OpenAI's and may be given, but not with a value."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return core_schema.no_info_after_validator_function(_none, handler(source))


def _none(value: Any) -> None:
    if value:
        raise ValueError("is not to be had here")


Item = TypeVar("Item")
Several = Annotated[list[Item], _OneFault]
Absent = Annotated[Any, _Empty]


class Body(BaseModel, extra="forbid"):
    """Of any request."""

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, given: Any) -> Any:
        """Of the fields that are none the first alone."""
        if not isinstance(given, dict) or len(given) <= len(cls.model_fields):
            return given
        known = {name: value for name, value in given.items() if name in cls.model_fields}
        return {**known, **dict([next(item for item in given.items() if item[0] not in known)])}


class Ignored(Body):
    """OpenAI's fields that say nothing about the answer's text."""

    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None


class Written(Ignored):
    """How an answer is written; what is not said is as everywhere in mm-rwkv7: the likeliest token, the model's own
    bound."""

    model: str
    stream: bool = False
    stream_options: "StreamOptions | None" = None
    max_tokens: Annotated[int | None, Field(ge=0)] = None
    temperature: Annotated[float | None, Field(ge=0, le=2, allow_inf_nan=False)] = None
    top_p: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)] = None
    top_k: Annotated[int | None, Field(ge=0, lt=1 << 31)] = None
    presence_penalty: Annotated[float | None, Field(ge=-2, le=2, allow_inf_nan=False)] = None
    frequency_penalty: Annotated[float | None, Field(ge=-2, le=2, allow_inf_nan=False)] = None
    penalty_decay: Annotated[float | None, Field(ge=0, le=1, allow_inf_nan=False)] = None
    seed: Annotated[int | None, Field(ge=-(1 << 63), lt=1 << 63)] = None
    n: Annotated[int | None, Field(ge=1)] = None
    stop: (
        Annotated[str, Field(max_length=LONGEST_STOP)]
        | Annotated[Several[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]], Field(max_length=STOPS)]
        | None
    ) = None
    logit_bias: Absent = None
    state: str | None = None  # the id of a kept state to go on from
    keep_state: bool = False  # keep the state after the answer

    def sampling(self, most: int | None, choice: int = 0) -> Sampling:
        """That of the answer number `choice` to one prompt: each has its own random numbers."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return Sampling(
            most,
            self.temperature or 0.0,
            1.0 if self.top_p is None else self.top_p,
            self.top_k or 0,
            self.presence_penalty or 0.0,
            self.frequency_penalty or 0.0,
            1.0 if self.penalty_decay is None else self.penalty_decay,
            None if self.seed is None else (self.seed + choice) % (1 << 63),
            tuple(text for text in stop if text),
        )

    def check(self, choices: int, tokens: int | None, most: int) -> None:
        """Refuse what is beyond the server's bounds, or not to be had here."""
        if (self.n or 1) > choices:
            raise Refused(400, f"n is {self.n}, expected at most {choices}", "n")
        if tokens is not None and tokens > most:
            raise Refused(400, f"{tokens} tokens were asked for, expected at most {most}", "max_tokens")
        if self.stream_options is not None and not self.stream:
            raise Refused(400, "stream_options belong to a stream", "stream_options")


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: bool = False  # OpenAI's padding of pieces; there is none here


class Text(Body):
    type: Literal["text"]
    text: str


class ImageUrl(Body):
    url: str
    detail: str | None = None


class Image(Body):
    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(Body):
    data: str
    format: Literal["wav", "mp3", "flac", "ogg"]

    @model_validator(mode="before")
    @classmethod
    def _format_given(cls, given: Any) -> Any:
        """One that is missing is told like a wrong one: with those that there are."""
        return {"format": None, **given} if isinstance(given, dict) else given


class Audio(Body):
    type: Literal["input_audio"]
    input_audio: InputAudio


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Several[Annotated[Text | Image | Audio, Field(discriminator="type")]] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: Absent = None


class ResponseFormat(Body):
    type: Literal["text"]


class ChatBody(Written):
    messages: Annotated[Several[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    response_format: ResponseFormat | None = None
    modalities: Several[Literal["text"]] | None = None
    tools: list[Any] | None = None  # none is ever called, which "auto" leaves to the model
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None


Ids = Several[int]


class CompletionBody(Written):
    prompt: str | Several[str] | Ids | Several[Ids]
    echo: bool = False
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    best_of: int | None = None
    suffix: Absent = None


class EmbeddingBody(Ignored):
    model: str
    input: str | Several[str] | Ids | Several[Ids]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class StateBody(Body):
    """Messages to read, after a kept state or from the beginning, without an answer."""

    messages: Annotated[Several[Message], Field(min_length=1)]
    model: str | None = None
    state: str | None = None
