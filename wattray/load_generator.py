"""Replays a trace over HTTP at its real arrival times and measures what a client sees, by the client's own clock."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from control_plane.domain import Request, Slo

MAX_TOKENS_ASKED = 2048
"""What every request asks for at most: the trace's true length is the simulated engine's business alone."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one request; ``error`` None where it completed. Times in seconds."""

    request: Request
    sent_s: float
    """Since the replay began."""
    ttft_s: float = 0.0
    mean_tbt_s: float = 0.0
    finished_s: float = 0.0
    tokens: int = 0
    error: str | None = None
    energy_j: float | None = None
    """As the answer's usage tells it; None where it does not."""

    def met(self, slo: Slo) -> bool:
        return self.error is None and slo.met(self.request.input_tokens, self.ttft_s, self.mean_tbt_s)


@dataclass(slots=True)
class Progress:
    """Counts while the replay runs."""

    total: int
    sent: int = 0
    completed: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go. A simulated engine is told each answer's true length, which nothing but the engine sees; any
    other is asked for as many tokens at most, and may end earlier."""

    url: str
    model: str
    simulated: bool = True
    headers: Mapping[str, str] = field(default_factory=dict)


async def replay(
    endpoint: Endpoint, trace: Sequence[Request], changed: Callable[[Progress], None] = lambda _: None
) -> list[Sent]:
    """Send every request at its arrival time, wait for all, in the trace's order. A failed request is in the result,
    not raised."""
    progress = Progress(len(trace))
    started_s = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=endpoint.headers) as session:

        async def one(request: Request) -> Sent:
            await asyncio.sleep(max(0.0, request.arrival_s - (time.monotonic() - started_s)))
            progress.sent += 1
            changed(progress)
            result = await _send(session, endpoint, request, started_s)
            progress.completed += result.error is None
            progress.failed += result.error is not None
            changed(progress)
            return result

        return list(await asyncio.gather(*(one(request) for request in trace)))


async def _send(session: aiohttp.ClientSession, endpoint: Endpoint, request: Request, started_s: float) -> Sent:
    body: dict[str, Any] = {
        "model": endpoint.model,
        "prompt": "tok " * request.input_tokens,
        "max_tokens": request.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if endpoint.simulated:
        body["max_tokens"] = max(MAX_TOKENS_ASKED, request.output_tokens)
        body["simulated_output_tokens"] = request.output_tokens
    sent_s = time.monotonic()
    stream = _Stream()
    try:
        async with session.post(f"{endpoint.url}/v1/completions", json=body) as answer:
            if answer.status == 200:
                async for line in answer.content:
                    stream.read(line, time.monotonic())
            else:
                stream.error = f"HTTP {answer.status}: {_message_of(await answer.text())}"
    except (aiohttp.ClientError, HttpProcessingError, TimeoutError, ValueError) as failure:
        stream.error = f"{type(failure).__name__}: {failure}"
    error = stream.outcome(request.output_tokens if endpoint.simulated else None)
    if error is not None:
        return Sent(request, sent_s - started_s, error=error)
    tokens, first_s, last_s = stream.tokens, stream.first_s, stream.last_s
    mean_tbt_s = (last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0
    times_s = (sent_s - started_s, first_s - sent_s, mean_tbt_s, last_s - started_s)
    return Sent(request, *times_s, tokens, energy_j=stream.energy_j)


@dataclass(slots=True)
class _Stream:
    """What has come of one answer. The first token has come when text has: events that carry none (a role, usage, a
    comment) do not count."""

    first_s: float = 0.0
    last_s: float = 0.0
    tokens: int = 0
    finished: bool = False
    error: str | None = None
    energy_j: float | None = None

    def read(self, line: bytes, now_s: float) -> None:
        """One line of the answer. Raises ValueError where it is no event of a completion."""
        if not line.startswith(b"data: {"):
            return
        event = json.loads(line[6:])
        if "error" in event:
            self.error = _message_of(line[6:].decode())
            return
        try:
            for choice in event.get("choices") or ():
                if choice["text"]:
                    self.last_s = now_s
                    self.first_s = self.first_s or now_s
                self.finished = self.finished or choice["finish_reason"] is not None
            if event.get("usage"):
                self.tokens = event["usage"]["completion_tokens"]
                self.energy_j = event["usage"].get("energy_j")
        except (KeyError, TypeError, AttributeError) as fault:
            raise ValueError(f"not an event of a completion ({fault!r}): {line[:200]!r}") from None

    def outcome(self, expected_tokens: int | None) -> str | None:
        """What is wrong with the answer; None for a whole one. Where its length is known, that must be right too."""
        right = self.tokens > 0 if expected_tokens is None else self.tokens == expected_tokens
        if self.error is None and (not self.finished or not right or not self.first_s):
            of = "" if expected_tokens is None else f" of {expected_tokens}"
            return f"the stream ended after {self.tokens}{of} tokens"
        return self.error


def _message_of(text: str) -> str:
    """The message of an error in OpenAI's shape; the beginning of any other text."""
    try:
        return str(json.loads(text)["error"]["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return text[:300]
