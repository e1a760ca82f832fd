"""Loads on an OpenAI endpoint for the profiler: so many streams decoding, or prompts of one length one after another.

An iteration of n decoding streams takes n tokens and gives each stream one; a prompt alone is one iteration over its
tokens, as long as the engine does not cut it into chunks.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import aiohttp

from wattray.profiler import ProfilerError, Progress

LONGEST_ANSWER = 512
WORD = "energy "
"""One token in the tokenizers of Llama, Qwen and GPT; others may split it, so that prompts come out longer."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """``url`` ends before ``/completions``, as in ``http://127.0.0.1:8000/v1``."""

    url: str
    model: str
    api_key: str | None = None


class _EndpointLoad:
    """Runs ``_talk`` in an event loop of a thread of its own."""

    def __init__(self, endpoint: Endpoint, tokens: int) -> None:
        self.tokens, self._endpoint = tokens, endpoint
        self._done = Progress(0.0, time.monotonic())
        self._failure: BaseException | None = None
        self._loop = asyncio.new_event_loop()
        self._work: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="profiler-endpoint", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._work and self._work.cancel())
        self._thread.join(30)

    def progress(self) -> Progress:
        if self._failure is not None:
            raise ProfilerError(f"{self._endpoint.url}: {self._failure}") from self._failure
        return self._done

    def _count(self, iterations: float) -> None:
        self._done = Progress(self._done.iterations + iterations, time.monotonic())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._work = self._loop.create_task(self._talk())
            self._loop.run_until_complete(self._work)
        except asyncio.CancelledError:
            return
        except BaseException as error:  # noqa: BLE001 (raised where the progress is asked for)
            self._failure = error
        finally:
            self._loop.close()

    async def _talk(self) -> None:
        raise NotImplementedError

    async def _tokens_of(self, session: aiohttp.ClientSession, prompt: str, max_tokens: int) -> AsyncIterator[int]:
        """The number of tokens in each chunk of one streamed answer. Raises ProfilerError."""
        body = {"model": self._endpoint.model, "prompt": prompt, "max_tokens": max_tokens, "stream": True}
        body |= {"temperature": 0, "ignore_eos": True, "stream_options": {"include_usage": True}}
        key = self._endpoint.api_key
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        async with session.post(f"{self._endpoint.url}/completions", json=body, headers=headers) as answer:
            if answer.status != 200:
                raise ProfilerError(f"HTTP {answer.status}: {(await answer.text())[:300]}")
            told = 0
            async for line in answer.content:
                text = line.decode().strip().removeprefix("data:").strip()
                if not text or text == "[DONE]":
                    continue
                chunk = json.loads(text)
                if "error" in chunk:
                    raise ProfilerError(str(chunk["error"])[:300])
                for choice in chunk.get("choices") or ():
                    if choice.get("text"):
                        tokens = max(1, len(choice["text"].split()))
                        told += tokens
                        yield tokens
                # Pieces of text hold about a token each; the engine's own count puts that right at the end.
                counted = (chunk.get("usage") or {}).get("completion_tokens", 0)
                if counted > told:
                    yield counted - told
                    told = counted


class Decoding(_EndpointLoad):
    """``streams`` answers at a time, each begun again when it ends; prompts are short."""

    def __init__(self, endpoint: Endpoint, streams: int) -> None:
        super().__init__(endpoint, streams)

    async def _talk(self) -> None:
        await _at_once(self.tokens, self._stream)

    async def _stream(self, session: aiohttp.ClientSession, number: int) -> None:
        while True:
            # Answers that end at different moments: prefills come one at a time.
            most = LONGEST_ANSWER - number % 8 * 16
            async for tokens in self._tokens_of(session, f"Tell a story. {number}", most):
                self._count(tokens / self.tokens)


class Prefilling(_EndpointLoad):
    """Prompts of ``tokens`` tokens and answers of one, one at a time; all differ, so that no cache serves them."""

    async def _talk(self) -> None:
        await _at_once(1, self._prompts)

    async def _prompts(self, session: aiohttp.ClientSession, number: int) -> None:
        while True:
            number += 1
            async for _ in self._tokens_of(session, f"{number} " + WORD * (self.tokens - 1), 1):
                self._count(1)


async def _at_once(count: int, run: Callable[[aiohttp.ClientSession, int], Coroutine[Any, Any, None]]) -> None:
    timeout = aiohttp.ClientTimeout(total=None, sock_read=120)
    connector = aiohttp.TCPConnector(limit=count)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(run(session, number))
