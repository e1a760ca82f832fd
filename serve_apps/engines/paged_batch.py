"""The continuous batching of transformers (paged attention, a thread of its own), as little of it as an engine needs.

What the library leaves to its caller is done here: a cancelled request's handler is taken away (it sends no last event
for one), and the tokens of each event are the whole answer so far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessorList
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus
from transformers.generation.logits_process import LogitsProcessorList

from serve_apps.engines.admission_queue import BatchLimits
from serve_apps.engines.causal_model import CausalModel
from serve_apps.engines.protocol import EngineError
from serve_apps.engines.sampling import OwnSampling, Sampler

STOP_S = 10.0
"""An iteration is over long before."""


@dataclass(frozen=True, slots=True)
class Answered:
    """All tokens of an answer so far; ``error`` says what ended it where it failed."""

    tokens: Sequence[int]
    finished: bool
    error: str | None = None


class PagedBatch:
    """Keys must never be used twice: a cancelled request leaves the library an iteration later.

    ``submit``, ``cancel`` and the calls of ``told`` belong to one event loop; ``start`` and ``stop`` block and go into
    a thread.
    """

    def __init__(self, model: CausalModel, limits: BatchLimits) -> None:
        network, self._end_ids = model.network, sorted(model.end_ids)
        self._sampling = OwnSampling()
        self._manager = network.init_continuous_batching(
            generation_config=GenerationConfig(do_sample=False, eos_token_id=self._end_ids or -1),
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=limits.page_tokens,
                num_blocks=limits.kv_tokens // limits.page_tokens,
                max_batch_tokens=limits.batch_tokens,
                max_requests_per_batch=limits.batch_requests,
                # Room for whole answers is kept by the caller, so nothing needs a margin.
                safety_margin=0.0,
                # Samplers run in Python between two iterations, and a shared page would outlive its request.
                allow_block_sharing=False,
                use_cuda_graph=False,
                use_async_batching=False,
            ),
        )
        processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([self._sampling]))
        processors.tensors_required = 1
        self._manager.logit_processor = processors

    def start(self) -> None:
        """Reserve the KV cache and begin. Raises EngineError where there is no memory for it."""
        try:
            with torch.no_grad():
                self._manager.warmup()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"the KV cache cannot be reserved: {error}; lower serve.kv_cache_tokens") from error
        self._manager.start()

    def running(self) -> bool:
        return bool(self._manager.is_running()) and self.failure() is None

    def failure(self) -> BaseException | None:
        failure: BaseException | None = self._manager.background_thread_status.fatal_error
        return failure

    @property
    def kv_free_ratio(self) -> float:
        """What the library itself counts, once per iteration."""
        return float(self._manager.batch_processor.cache.compute_free_capacity())

    @property
    def handlers(self) -> int:
        """Requests whose events are still awaited."""
        return len(self._manager.output_router.result_handlers)

    def submit(
        self,
        key: str,
        token_ids: Sequence[int],
        max_tokens: int,
        sampler: Sampler | None,
        told: Callable[[Answered], None],
    ) -> None:
        """``told`` is called in the running event loop after every token. Raises EngineError where nothing runs."""

        def tell(output: GenerationOutput) -> None:
            if output.is_finished():
                self._sampling.remove(key)
            error = output.error if output.status == RequestStatus.FAILED else None
            told(Answered(output.generated_tokens, output.is_finished(), error))

        if sampler is not None:
            self._sampling.add(key, sampler)
        self._manager.register_result_handler(key, tell)
        ends = self._end_ids or -1
        if self._manager.add_request(token_ids, key, max_tokens, streaming=True, eos_token_id=ends) is None:
            self._forget(key)
            raise EngineError("the batch takes no more requests")

    def cancel(self, key: str) -> None:
        """Its KV cache is free after the iteration that runs; nothing is told of it any more."""
        self._forget(key)
        self._manager.cancel_request(key)

    def stop(self) -> None:
        """Requests that are here fail. Raises EngineError where the library does not end its thread."""
        self._manager.stop(hard_stop=True, timeout=STOP_S)
        if self._manager.is_running():
            raise EngineError(f"the batch did not stop within {STOP_S:.0f} s")
        self._manager.destroy()

    def _forget(self, key: str) -> None:
        self._sampling.remove(key)
        with self._manager.output_router._lock:
            self._manager.output_router.result_handlers.pop(key, None)
