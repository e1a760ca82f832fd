"""What the planner asks its solver process, and how: length-prefixed JSON over a socket, one answer per question.

Every question holds all that its answer needs, so a new solver can be asked what a dead one did not answer.
"""

import asyncio
import json
from typing import Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from actors.training_messages import ClockSchedule, JobFrontier
from control_plane.training.job_record import JobRecord
from control_plane.training.job_spec import Circumstances

LENGTH_BYTES = 4
LONGEST_BYTES = 1 << 28
"""A job of 64 stages and 512 micro-batches is a few megabytes: a longer message is no message of ours."""

Answer = ClockSchedule | JobFrontier | None


class SolvingError(RuntimeError):
    """There is no answer; the message says why."""


class UnreadableMessageError(RuntimeError):
    """The other side sent something that is no message. ``number`` is the question it belongs to, where that can be
    told; what follows it on the same socket cannot be trusted."""

    def __init__(self, why: str, number: int | None = None) -> None:
        super().__init__(why)
        self.number = number


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScheduleQuestion(_Message):
    """The clocks of one pipeline → ClockSchedule."""

    kind: Literal["schedule"] = "schedule"
    job: JobRecord
    now: Circumstances


class FrontierQuestion(_Message):
    """``samples`` points of the frontier → JobFrontier."""

    kind: Literal["frontier"] = "frontier"
    job: JobRecord
    now: Circumstances
    samples: int


class PrepareQuestion(_Message):
    """Work for better schedules: seconds, unless it is done already → None when it is done."""

    kind: Literal["prepare"] = "prepare"
    job: JobRecord
    now: Circumstances


Question = ScheduleQuestion | FrontierQuestion | PrepareQuestion


class Asked(_Message):
    number: int
    question: Question


class Answered(_Message):
    """``error`` says why there is no answer."""

    number: int
    schedule: ClockSchedule | None = None
    frontier: JobFrontier | None = None
    error: str | None = None

    @property
    def answer(self) -> Answer:
        """Raises SolvingError where there is none."""
        if self.error is not None:
            raise SolvingError(self.error)
        return self.schedule or self.frontier


class Solver(Protocol):
    """Answers questions about jobs; in this process or in another."""

    async def answer(self, question: Question) -> Answer:
        """Raises SolvingError."""
        ...


Message = TypeVar("Message", bound=_Message)


async def send(to: asyncio.StreamWriter, message: _Message) -> None:
    """Raises ConnectionError where the other side is gone."""
    body = message.model_dump_json().encode()
    to.write(len(body).to_bytes(LENGTH_BYTES, "big") + body)
    await to.drain()


async def receive(stream: asyncio.StreamReader, kind: type[Message]) -> Message | None:
    """The next message; None where the other side has ended, however. Raises UnreadableMessageError."""
    try:
        length = int.from_bytes(await stream.readexactly(LENGTH_BYTES), "big")
        if length > LONGEST_BYTES:
            raise UnreadableMessageError(f"a message of {length} bytes is announced, the longest has {LONGEST_BYTES}")
        body = await stream.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise UnreadableMessageError(f"not an {kind.__name__}: {error}", _number_in(body)) from error


def _number_in(body: bytes) -> int | None:
    """Which question an unreadable message names."""
    try:
        number = json.loads(body)["number"]
    except (ValueError, TypeError, KeyError):
        return None
    return number if isinstance(number, int) else None
