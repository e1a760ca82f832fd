"""Replays a trace over HTTP at its real arrival times and measures what a client sees, by the client's own clock."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

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

    def met(self, slo: Slo) -> bool:
        return self.error is None and slo.met(self.request.input_tokens, self.ttft_s, self.mean_tbt_s)


@dataclass(slots=True)
class Progress:
    """Counts while the replay runs."""

    total: int
    sent: int = 0
    completed: int = 0
    failed: int = 0


async def replay(
    url: str, model: str, trace: Sequence[Request], changed: Callable[[Progress], None] = lambda _: None
) -> list[Sent]:
    """Send every request at its arrival time, wait for all, in the trace's order. A failed request is in the result,
    not raised."""
    progress = Progress(len(trace))
    started_s = time.monotonic()
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def one(request: Request) -> Sent:
            await asyncio.sleep(max(0.0, request.arrival_s - (time.monotonic() - started_s)))
            progress.sent += 1
            changed(progress)
            result = await _send(session, url, model, request, started_s)
            progress.completed += result.error is None
            progress.failed += result.error is not None
            changed(progress)
            return result

        return list(await asyncio.gather(*(one(request) for request in trace)))


async def _send(session: aiohttp.ClientSession, url: str, model: str, request: Request, started_s: float) -> Sent:
    body = {
        "model": model,
        "prompt": "tok " * request.input_tokens,
        "max_tokens": max(MAX_TOKENS_ASKED, request.output_tokens),
        "stream": True,
        "stream_options": {"include_usage": True},
        "simulated_output_tokens": request.output_tokens,
    }
    sent_s = time.monotonic()
    first_s = last_s = 0.0
    tokens = 0
    error: str | None = None
    finished = False
    try:
        async with session.post(f"{url}/v1/completions", json=body) as answer:
            if answer.status != 200:
                text = (await answer.text())[:300]
                return Sent(request, sent_s - started_s, error=f"HTTP {answer.status}: {text}")
            async for line in answer.content:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    error = str(event["error"]["message"])
                elif event["choices"]:
                    last_s = time.monotonic()
                    first_s = first_s or last_s
                    finished = finished or event["choices"][0]["finish_reason"] is not None
                else:
                    tokens = event["usage"]["completion_tokens"]
    except (aiohttp.ClientError, TimeoutError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    if error is None and (not finished or tokens != request.output_tokens):
        error = f"the stream ended after {tokens} of {request.output_tokens} tokens"
    if error is not None:
        return Sent(request, sent_s - started_s, error=error)
    mean_tbt_s = (last_s - first_s) / (tokens - 1) if tokens > 1 else 0.0
    return Sent(request, sent_s - started_s, first_s - sent_s, mean_tbt_s, last_s - started_s, tokens)
