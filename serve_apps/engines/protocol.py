"""What a replica needs of an inference engine. Parallelism and clocks belong to the controller, not to the engine."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation. ``stop_after_tokens`` is known to simulated engines only: it stands for the end of sequence
    that a real model would decide on."""

    request_id: str
    prompt: str
    input_tokens: int
    max_tokens: int
    stop_after_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some tokens of a stream; the last chunk says why it is the last ("stop" or "length")."""

    text: str
    tokens: int
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class EngineStats:
    """An engine's queue now."""

    waiting: int
    running: int
    oldest_wait_s: float


class EngineError(RuntimeError):
    """The engine cannot take or finish a request; the message says why."""


class Engine(Protocol):
    """One loaded model on its GPUs."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Chunk]:
        """Stream a generation; closing the iterator cancels it. Raises EngineError."""
        ...

    def stats(self) -> EngineStats: ...
    async def shutdown(self) -> None: ...
