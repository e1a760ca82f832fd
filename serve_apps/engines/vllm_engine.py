"""vLLM behind the engine protocol: FlashAttention, paged KV and tensor parallelism for large models on GPUs.

vLLM computes in processes of its own. It is told when each first token is due and begins prompts in that order; what
its KV cache holds is what its scheduler says.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from math import isfinite
from typing import Any, Protocol

from serve_apps.engines.batched_engine import BatchedEngine, Loaded, Stream
from serve_apps.engines.charged_activity import ActivityCharge
from serve_apps.engines.model_tokenizer import ModelTokenizer
from serve_apps.engines.protocol import EngineError, EngineStoppedError, GenerateRequest, SamplingParameters

log = logging.getLogger(__name__)

NO_HURRY = 2**53
"""Priority of a request without a TTFT limit: behind all others, in order of arrival."""


@dataclass(frozen=True, slots=True)
class Answered:
    """Tokens that are new, and why there are no more: "stop", "length", or what went wrong."""

    tokens: Sequence[int]
    finish_reason: str | None = None


class Library(Protocol):
    """What is used of vLLM; ``vllm_library`` has it."""

    async def start(self) -> Loaded:
        """Raises EngineError."""
        ...

    def running(self) -> bool: ...
    def sampling(self, asked: SamplingParameters, max_tokens: int) -> Any: ...
    def generate(
        self, key: str, token_ids: Sequence[int], sampling: Any, priority: int
    ) -> AsyncGenerator[Answered, None]:
        """Lower priorities are begun earlier. Closing or cancelling it aborts the request. Raises EngineError."""
        ...

    def kv_used_ratio(self) -> float:
        """After the last iteration; it stays where it was when nothing runs any more."""
        ...

    async def sleep(self, level: int) -> None: ...
    async def wake(self) -> None: ...
    async def stop(self) -> None: ...


class VllmEngine(BatchedEngine[Any]):
    """A prompt counts as waiting until its first token: vLLM does not say which prompts it is at."""

    def __init__(
        self, library: Library, tokenizer: ModelTokenizer, charge: ActivityCharge, stream_interval_s: float, tp: int
    ) -> None:
        super().__init__(tokenizer, charge, stream_interval_s, tp)
        self._library = library
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._asleep = False

    def alive(self) -> bool:
        return super().alive() and not self._asleep

    def failure(self) -> BaseException | None:
        if self._failure is None and self._loaded is not None and not self._stopped and not self._library.running():
            self._failure = EngineStoppedError("vLLM's engine process has ended; its log says why")
        return self._failure

    async def sleep(self, level: int = 1) -> None:
        """Give the GPU's memory back and keep the process: level 1 keeps the weights in the host's memory, level 2
        drops them. The replica takes no requests until ``wake``. Raises EngineError while requests are here, and where
        vLLM cannot."""
        if self._by_key:
            raise EngineError(f"{len(self._by_key)} requests are here: drain before sleeping")
        self._asleep = True
        try:
            await self._library.sleep(level)
        except EngineError:
            self._asleep = False
            raise

    async def wake(self) -> None:
        await self._library.wake()
        self._asleep = self._draining = False

    async def _start(self) -> Loaded:
        return await self._library.start()

    def _running(self) -> bool:
        return self._library.running()

    async def _stop(self) -> None:
        for reading in self._reading.values():
            reading.cancel()
        await self._library.stop()

    def _sampling_of(self, request: GenerateRequest, stop_after: int) -> Any:
        return self._library.sampling(request.sampling, stop_after)

    def _begin(self, stream: Stream[Any]) -> None:
        self._reading[stream.key] = asyncio.get_running_loop().create_task(self._read(stream))

    def _abandon(self, stream: Stream[Any]) -> None:
        reading = self._reading.pop(stream.key, None)
        if reading is not None and not stream.finished:
            reading.cancel()

    def _computed_tokens(self) -> int:
        assert self._loaded is not None
        streams = self._by_key.values()
        prefill = sum(len(stream.token_ids) for stream in streams if not stream.tokens)
        return sum(1 for stream in streams if stream.tokens) + min(prefill, self._loaded.limits.batch_tokens)

    def _kv_used_tokens(self) -> int:
        if self._loaded is None or not self._by_key:
            return 0
        return round(self._library.kv_used_ratio() * self._loaded.limits.kv_tokens)

    async def _read(self, stream: Stream[Any]) -> None:
        priority = round(stream.due_s * 1e3) if isfinite(stream.due_s) else NO_HURRY
        tokens: list[int] = []
        try:
            answers = self._library.generate(stream.key, stream.token_ids, stream.sampling, priority)
            async with aclosing(answers):
                async for answered in answers:
                    tokens += answered.tokens
                    reason = answered.finish_reason
                    error = None if reason in (None, "stop", "length") else f"vLLM ended it: {reason}"
                    self._answered(stream, tokens, reason is not None, reason == "stop", error)
        except Exception as error:
            if not isinstance(error, EngineError):
                log.exception("a generation failed")
            self._answered(stream, tokens, finished=True, error=str(error) or repr(error))
