"""A streamed answer that breaks off, told to its end by running it again: what was told is not told twice."""

import json
from collections.abc import Mapping
from typing import Any

END = b"\n\n"  # of an event
DONE = "[DONE]"
ONE_ANSWER = ("id", "created")  # fields that make several events one answer
ENDING = ("cancelled", "unavailable")  # codes of errors that are the replica's, and not the request's


class Gone(Exception):  # noqa: N818
    """The replica went, or was ending, before it had answered in full."""


class Differs(Exception):  # noqa: N818
    """The second run does not begin as the first one was told."""


class Retold:
    """The events of one answer, in as many runs as it takes: `begin` one, `feed` it what comes, and tell what that
    returns. The nth event of a choice is told once, by the run that first comes to it, under the first run's id.

    Runs are equal where sampling has a seed. Log-probabilities are not compared, being rounded otherwise in another
    company, and neither are the ids of states: each run keeps its own.
    """

    def __init__(self) -> None:
        self._told: dict[int, list[Any]] = {}  # of each choice; those of no choice under -1
        self._at: dict[int, int] = {}  # how many of them the run has come to
        self._head: dict[str, Any] = {}
        self._left = b""  # of an event that has not come in full

    def begin(self) -> None:
        self._at, self._left = {}, b""

    def feed(self, data: bytes) -> bytes:
        """What is new in the next bytes of the run. `Gone` where they tell that the replica ends, `Differs` where it is
        not the same answer."""
        *events, self._left = (self._left + data).split(END)
        return b"".join(self._next(event) for event in events)

    def _next(self, event: bytes) -> bytes:
        data = event.decode().removeprefix("data: ")
        if data == DONE:
            return event + END
        told: dict[str, Any] = json.loads(data)
        if "error" in told:
            if told["error"]["code"] in ENDING:
                raise Gone(told["error"]["message"])
            return event + END
        choice, what = _compared(told)
        known, at = self._told.setdefault(choice, []), self._at.get(choice, 0)
        self._at[choice] = at + 1
        if at < len(known):
            if known[at] != what:
                raise Differs(f"event {at} of choice {choice} is {what}, and was told as {known[at]}")
            return b""
        known.append(what)
        self._head = self._head or {name: told[name] for name in ONE_ANSWER}
        return f"data: {json.dumps({**told, **self._head}, ensure_ascii=False, separators=(',', ':'))}".encode() + END


def _compared(told: Mapping[str, Any]) -> tuple[int, Any]:
    """The choice that an event belongs to, and what must be the same in every run."""
    if not told["choices"]:
        return -1, told["usage"]
    [choice] = told["choices"]
    return choice["index"], [choice.get("delta"), choice.get("text"), choice["finish_reason"]]
