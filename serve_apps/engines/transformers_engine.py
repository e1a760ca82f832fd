"""Hugging Face continuous batching behind the engine protocol: a real model on this machine's CPU or on one GPU.

The library serves first come, first served, so requests wait here for their turn. It serves combined replicas only,
because the library hands no KV cache over.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from serve_apps.engines.admission_queue import AdmissionQueue, BatchLimits
from serve_apps.engines.batched_engine import BatchedEngine, Loaded, Stream
from serve_apps.engines.causal_model import CausalModel, load_model
from serve_apps.engines.charged_activity import ActivityCharge
from serve_apps.engines.model_tokenizer import ModelTokenizer
from serve_apps.engines.paged_batch import Answered, PagedBatch
from serve_apps.engines.protocol import EngineError, GenerateRequest
from serve_apps.engines.sampling import Sampler, sampler_of


@dataclass(frozen=True, slots=True)
class ModelSite:
    """What to run and where. ``folder`` None is the small model with random weights."""

    folder: Path | None
    device: str
    limits: BatchLimits
    stream_interval_s: float
    tp: int


class TransformersEngine(BatchedEngine[Sampler | None]):
    """The batch computes in a thread of its own."""

    def __init__(self, site: ModelSite, tokenizer: ModelTokenizer, charge: ActivityCharge) -> None:
        super().__init__(tokenizer, charge, site.stream_interval_s, site.tp)
        self._site = site
        self._queue = AdmissionQueue(site.limits)
        self._model: CausalModel | None = None
        self._batch: PagedBatch | None = None

    def failure(self) -> BaseException | None:
        return None if self._batch is None else self._batch.failure()

    async def _start(self) -> Loaded:
        model = await asyncio.to_thread(load_model, self._site.folder, self._site.device)
        batch = PagedBatch(model, self._site.limits)
        await asyncio.to_thread(batch.start)
        self._model, self._batch = model, batch
        return Loaded(self._site.limits, model.context_tokens, model.vocabulary_size)

    def _running(self) -> bool:
        return self._batch is not None and self._batch.running()

    async def _stop(self) -> None:
        if self._batch is not None and self._batch.running():
            await asyncio.to_thread(self._batch.stop)

    def _sampling_of(self, request: GenerateRequest, stop_after: int) -> Sampler | None:
        del stop_after
        assert self._model is not None
        return sampler_of(request.sampling, self._model.sampling)

    def _begin(self, stream: Stream[Sampler | None]) -> None:
        self._queue.push(stream.key, stream.due_s, len(stream.token_ids), stream.stop_after)
        self._admit()

    def _got_first_token(self, stream: Stream[Sampler | None]) -> None:
        self._queue.first_token(stream.key)
        self._admit()

    def _abandon(self, stream: Stream[Sampler | None]) -> None:
        if stream.admitted and not stream.finished and self._batch is not None and self.alive():
            self._batch.cancel(stream.key)
        self._queue.remove(stream.key)
        if self.alive():
            self._admit()

    def _computed_tokens(self) -> int:
        decoding = sum(1 for stream in self._by_key.values() if stream.tokens)
        return decoding + min(self._queue.prefill_tokens, self._site.limits.batch_tokens)

    def _kv_used_tokens(self) -> int:
        return sum(stream.context_tokens for stream in self._by_key.values() if stream.admitted)

    def _admit(self) -> None:
        batch = self._batch
        assert batch is not None
        for key in self._queue.admit():
            stream = self._by_key[key]
            stream.admitted = True

            def told(answered: Answered, stream: Stream[Sampler | None] = stream) -> None:
                assert self._model is not None
                stopped = bool(answered.tokens) and answered.tokens[-1] in self._model.end_ids
                self._answered(stream, answered.tokens, answered.finished, stopped, answered.error)

            try:
                batch.submit(key, stream.token_ids, stream.stop_after, stream.sampling, told)
            except EngineError as error:
                self._answered(stream, (), finished=True, error=str(error))
