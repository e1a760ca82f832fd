"""Hugging Face continuous batching behind the engine protocol: a real model on this machine's CPU or on one GPU.

The library computes and this file keeps the account: who waits, whose first token is due first, what each stream was
sent. It serves combined replicas only, because the library hands no KV cache over.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from control_plane.domain import QueuedPrompt, QueueView, Role
from serve_apps.engines.admission_queue import AdmissionQueue, BatchLimits
from serve_apps.engines.causal_model import CausalModel, load_model
from serve_apps.engines.charged_activity import ActivityCharge
from serve_apps.engines.model_tokenizer import ModelTokenizer
from serve_apps.engines.output_length import end_of
from serve_apps.engines.pacing import next_delivery
from serve_apps.engines.paged_batch import Answered, PagedBatch
from serve_apps.engines.protocol import (
    Chunk,
    EngineError,
    EngineStats,
    EngineStoppedError,
    GenerateRequest,
    RequestRefusedError,
)
from serve_apps.engines.sampling import Sampler, sampler_of
from serve_apps.engines.text_stream import TextStream

log = logging.getLogger(__name__)

WATCH_S = 0.5
"""How soon streams hear that the library's thread has died."""


@dataclass(frozen=True, slots=True)
class ModelSite:
    """What to run and where. ``folder`` None is the small model with random weights."""

    folder: Path | None
    device: str
    limits: BatchLimits
    stream_interval_s: float
    tp: int


@dataclass(slots=True, eq=False)
class _Stream:
    key: str
    token_ids: Sequence[int]
    stop_after: int
    reason: str
    sampler: Sampler | None
    arrival_s: float
    submitted_s: float
    ttft_limit_s: float
    tokens: Sequence[int] = ()
    admitted: bool = False
    finished: bool = False
    cancelled: bool = False
    error: str | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def due_s(self) -> float:
        return self.arrival_s + self.ttft_limit_s

    @property
    def context_tokens(self) -> int:
        return len(self.token_ids) + len(self.tokens)


class TransformersEngine:
    """Everything but the computation happens in the event loop that ``load`` is called in."""

    def __init__(self, site: ModelSite, tokenizer: ModelTokenizer, charge: ActivityCharge) -> None:
        self._site, self._tokenizer, self._charge = site, tokenizer, charge
        self._queue = AdmissionQueue(site.limits)
        self._streams: dict[str, _Stream] = {}
        self._by_key: dict[str, _Stream] = {}
        """Streams that have not ended, by the key that the library knows them by."""
        self._numbers = count()
        self._model: CausalModel | None = None
        self._batch: PagedBatch | None = None
        self._watch: asyncio.Task[None] | None = None
        self._draining = self._stopped = False

    @property
    def tokenizer(self) -> ModelTokenizer:
        return self._tokenizer

    async def load(self) -> None:
        self._charge.open()
        model = await asyncio.to_thread(load_model, self._site.folder, self._site.device)
        batch = PagedBatch(model, self._site.limits)
        await asyncio.to_thread(batch.start)
        self._model, self._batch = model, batch
        self._watch = asyncio.get_running_loop().create_task(self._tell_of_its_death())

    def alive(self) -> bool:
        return self._batch is not None and not self._stopped and self._batch.running()

    def failure(self) -> BaseException | None:
        return None if self._batch is None else self._batch.failure()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        stream = self._submit(request)
        text = TextStream(self._tokenizer.decode, request.sampling.stop)
        sent = 0
        try:
            await stream.changed.wait()
            while True:
                self._raise_what_ended(request.request_id, stream)
                stream.changed.clear()
                done, fresh = stream.finished, stream.tokens[sent:]
                piece = text.push(fresh, done)
                sent += piece.tokens
                if piece.stopped:
                    yield Chunk(piece.text, piece.tokens, "stop")
                    return
                if fresh or done:
                    yield Chunk(piece.text, piece.tokens, stream.reason if done else None)
                if done:
                    return
                await next_delivery(stream.changed, self._site.stream_interval_s)
        finally:
            if self._streams.get(request.request_id) is stream:
                del self._streams[request.request_id]
            self._end(stream)

    def cancel(self, request_id: str) -> bool:
        stream = self._streams.pop(request_id, None)
        if stream is None or stream.finished:
            return False
        stream.cancelled = True
        self._end(stream)
        stream.changed.set()
        return True

    def stats(self) -> EngineStats:
        now_s = time.monotonic()
        without_first = [stream for stream in self._by_key.values() if not stream.tokens]
        waiting = [stream for stream in self._by_key.values() if not stream.admitted]
        return EngineStats(
            len(waiting),
            len(self._by_key) - len(waiting),
            max((now_s - stream.submitted_s for stream in waiting), default=0.0),
            self._kv_used_tokens() / self._site.limits.kv_tokens,
            sum(len(stream.token_ids) for stream in without_first),
            min((stream.due_s - now_s for stream in without_first), default=None),
        )

    def queue(self, freq_mhz: int) -> QueueView:
        """A prompt's tokens count as left until its first token: the library does not say how far it has come."""
        streams = self._by_key.values()
        queued = sorted((stream for stream in streams if not stream.tokens), key=lambda stream: stream.due_s)
        decoding = [stream for stream in streams if stream.tokens]
        return QueueView(
            self._site.tp,
            Role.COMBINED,
            freq_mhz,
            tuple(
                QueuedPrompt(stream.arrival_s, len(stream.token_ids), len(stream.token_ids), stream.ttft_limit_s)
                for stream in queued
            ),
            len(decoding),
            sum(stream.context_tokens for stream in decoding),
            self._kv_used_tokens(),
            self._site.limits.kv_tokens,
        )

    async def drain(self, deadline_s: float) -> bool:
        self._draining = True
        until_s = time.monotonic() + deadline_s
        while self._streams and self.alive() and time.monotonic() < until_s:
            await asyncio.sleep(min(0.05, deadline_s))
        return not self._streams

    async def shutdown(self) -> None:
        self._stopped = True
        if self._watch is not None:
            self._watch.cancel()
        self._wake_all()
        if self._batch is not None and self._batch.running():
            await asyncio.to_thread(self._batch.stop)
        self._charge.iterate(0)
        self._charge.close()

    # Admission.

    def _submit(self, request: GenerateRequest) -> _Stream:
        if self._batch is None or self._model is None:
            raise EngineStoppedError("the engine is not loaded yet")
        if not self.alive():
            raise EngineStoppedError("the engine has stopped")
        if self._draining:
            raise EngineStoppedError("the engine is draining and takes no more requests")
        if request.request_id in self._streams:
            raise RequestRefusedError(f"request {request.request_id} is here already")
        stop_after, reason = end_of(request)
        token_ids = request.token_ids or self._tokenizer.encode(request.prompt)
        self._check(token_ids, stop_after, self._model)
        now_s = time.monotonic()
        stream = _Stream(
            f"{request.request_id}#{next(self._numbers)}",
            token_ids,
            stop_after,
            reason,
            sampler_of(request.sampling, self._model.sampling),
            now_s - request.waited_s,
            now_s,
            request.ttft_limit_s,
        )
        self._streams[request.request_id] = self._by_key[stream.key] = stream
        self._queue.push(stream.key, stream.due_s, len(token_ids), stop_after)
        self._admit()
        return stream

    def _check(self, token_ids: Sequence[int], answer_tokens: int, model: CausalModel) -> None:
        """Raises RequestRefusedError for a request that can never run here."""
        tokens = len(token_ids) + answer_tokens
        if not self._queue.fits(len(token_ids), answer_tokens):
            held = self._site.limits.kv_tokens
            raise RequestRefusedError(f"prompt and answer have {tokens} tokens; the KV cache holds {held}")
        if tokens > model.context_tokens:
            raise RequestRefusedError(f"prompt and answer have {tokens} tokens; the model reads {model.context_tokens}")
        foreign = next((token for token in token_ids if not 0 <= token < model.vocabulary_size), None)
        if foreign is not None:
            raise RequestRefusedError(f"prompt: {foreign} is no token; the model has {model.vocabulary_size}")

    def _admit(self) -> None:
        batch = self._batch
        assert batch is not None
        for key in self._queue.admit():
            stream = self._by_key[key]
            stream.admitted = True

            def told(answered: Answered, stream: _Stream = stream) -> None:
                self._answered(stream, answered)

            try:
                batch.submit(key, stream.token_ids, stream.stop_after, stream.sampler, told)
            except EngineError as error:
                self._answered(stream, Answered((), True, str(error)))
        decoding = sum(1 for stream in self._by_key.values() if stream.tokens)
        self._charge.iterate(decoding + min(self._queue.prefill_tokens, self._site.limits.batch_tokens))

    def _answered(self, stream: _Stream, answered: Answered) -> None:
        """The library has something new for a stream."""
        if stream.key not in self._by_key:
            return
        first = not stream.tokens and bool(answered.tokens)
        stream.tokens = answered.tokens
        if first:
            self._queue.first_token(stream.key)
        if answered.finished:
            stream.finished, stream.error = True, answered.error
            if self._model is not None and answered.tokens and answered.tokens[-1] in self._model.end_ids:
                stream.reason = "stop"
            self._left(stream)
        elif first:
            self._admit()
        if first or answered.finished or self._site.stream_interval_s == 0:
            stream.changed.set()

    # How streams end.

    def _end(self, stream: _Stream) -> None:
        """Nobody reads this stream any more."""
        if stream.key not in self._by_key:
            return
        if stream.admitted and self._batch is not None and self.alive():
            self._batch.cancel(stream.key)
        self._left(stream)

    def _left(self, stream: _Stream) -> None:
        del self._by_key[stream.key]
        self._queue.remove(stream.key)
        if self.alive():
            self._admit()

    def _raise_what_ended(self, request_id: str, stream: _Stream) -> None:
        if stream.cancelled:
            raise EngineError(f"request {request_id} was cancelled")
        if stream.finished and stream.error is None:
            return
        if not self.alive():
            raise EngineStoppedError("the engine stopped in the middle of a generation")
        if stream.error is not None:
            raise EngineError(f"request {request_id} failed: {stream.error}")

    async def _tell_of_its_death(self) -> None:
        """Streams that wait for admission hear of the thread's end from here."""
        while self.alive():
            await asyncio.sleep(WATCH_S)
        log.error("the batching thread has ended; this replica takes no more requests: %r", self.failure())
        self._charge.iterate(0)
        self._wake_all()

    def _wake_all(self) -> None:
        for stream in self._streams.values():
            stream.changed.set()

    def _kv_used_tokens(self) -> int:
        return sum(stream.context_tokens for stream in self._by_key.values() if stream.admitted)
