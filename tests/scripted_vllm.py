"""vLLM as an engine sees it, without vLLM: one iteration at a time, lowest priority first, a byte a token."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from serve_apps.engines.admission_queue import BatchLimits
from serve_apps.engines.batched_engine import Loaded
from serve_apps.engines.protocol import EngineError, SamplingParameters
from serve_apps.engines.vllm_engine import Answered

ITERATION_S = 0.002
VOCABULARY = 256


class ScriptedVllm:
    """Implements ``vllm_engine.Library``. Token n of an answer is the prompt's length plus n; ``batch`` requests run
    at a time and the others wait. A request with the prompt token ``FAULTY`` fails."""

    FAULTY = 255

    def __init__(self, kv_tokens: int, batch: int = 64) -> None:
        self._limits = BatchLimits(kv_tokens, 16, 2048, batch)
        self._waiting: list[tuple[int, str]] = []
        self._running: set[str] = set()
        self._ran_last = 0.0
        self.dead = self.asleep = self.started = False
        self.begun: list[str] = []
        """Keys in the order in which prompts were begun."""

    async def start(self) -> Loaded:
        await asyncio.sleep(0)
        self.started = True
        return Loaded(self._limits, 65_536, VOCABULARY)

    def running(self) -> bool:
        return self.started and not self.dead

    def sampling(self, asked: SamplingParameters, max_tokens: int) -> Any:
        del asked
        return max_tokens

    async def generate(
        self, key: str, token_ids: Sequence[int], sampling: Any, priority: int
    ) -> AsyncGenerator[Answered, None]:
        assert not self.asleep
        self._waiting.append((priority, key))
        try:
            while len(self._running) >= self._limits.batch_requests or min(self._waiting)[1] != key:
                await self._iteration()
            self._waiting.remove((priority, key))
            self._running.add(key)
            self.begun.append(key)
            for _ in range(-(-len(token_ids) // self._limits.batch_tokens)):
                await self._iteration()
            if self.FAULTY in token_ids:
                raise EngineError("illegal memory access")
            for number in range(sampling):
                await self._iteration()
                self._ran_last = min(1.0, (len(token_ids) + number) * len(self._running) / self._limits.kv_tokens)
                token = (len(token_ids) + number) % VOCABULARY
                yield Answered([token], "length" if number == sampling - 1 else None)
        finally:
            self._running.discard(key)
            if (priority, key) in self._waiting:
                self._waiting.remove((priority, key))

    def kv_used_ratio(self) -> float:
        return self._ran_last

    async def sleep(self, level: int) -> None:
        if level not in (1, 2):
            raise EngineError(f"no level {level}")
        self.asleep = True

    async def wake(self) -> None:
        self.asleep = False

    async def stop(self) -> None:
        self.dead = True

    async def _iteration(self) -> None:
        await asyncio.sleep(ITERATION_S)
        if self.dead:
            raise EngineError("vLLM's engine process has ended")
