"""vLLM's AsyncLLM, as little of it as an engine needs. The one module that imports vLLM; tried with 0.26 and 0.32."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vllm import SamplingParams, TokensPrompt
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger

from serve_apps.engines.admission_queue import BatchLimits
from serve_apps.engines.batched_engine import Loaded
from serve_apps.engines.orphan_guard import OrphanGuard
from serve_apps.engines.protocol import EngineError, SamplingParameters
from serve_apps.engines.vllm_engine import Answered

log = logging.getLogger(__name__)

SEEDS = 2**63
SLOW_ITERATION_S = 0.06
"""vLLM tells of so many tokens together as a stream's interval has iterations of this length: telling of each one
costs the engine's event loop more than a GPU takes to compute it."""


class VllmLibrary:
    """``folder`` None runs the small model with random weights. ``arguments`` are AsyncEngineArgs' fields and win over
    what is chosen here, except those that ``vllm_site`` keeps for itself."""

    def __init__(self, folder: Path | None, tp: int, stream_interval_s: float, arguments: Mapping[str, Any]) -> None:
        self._folder, self._tp, self._arguments = folder, tp, arguments
        self._stream_interval = max(1, int(stream_interval_s / SLOW_ITERATION_S))
        self._llm: Any = None
        self._guard: OrphanGuard | None = None
        self._defaults: dict[str, Any] = {}
        self._kv_used_ratio = 0.0

    async def start(self) -> Loaded:
        """Takes tens of seconds, in a thread."""
        self._guard = OrphanGuard()
        try:
            return await asyncio.to_thread(self._load)
        except Exception as error:
            await self.stop()
            raise EngineError(f"vLLM does not start: {error}") from error

    def running(self) -> bool:
        return self._llm is not None and not self._llm.errored

    def sampling(self, asked: SamplingParameters, max_tokens: int) -> Any:
        fields = {
            "temperature": asked.temperature,
            "top_p": asked.top_p,
            "top_k": asked.top_k,
            "seed": None if asked.seed is None else asked.seed % SEEDS,
            "presence_penalty": asked.presence_penalty,
            "frequency_penalty": asked.frequency_penalty,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return SamplingParams(
            **{**self._defaults, **given},
            max_tokens=max_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )

    async def generate(
        self, key: str, token_ids: Sequence[int], sampling: Any, priority: int
    ) -> AsyncGenerator[Answered, None]:
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        async for output in self._llm.generate(prompt, sampling, key, priority=priority):
            [answer] = output.outputs
            yield Answered(answer.token_ids, answer.finish_reason)

    def kv_used_ratio(self) -> float:
        return self._kv_used_ratio

    async def sleep(self, level: int) -> None:
        if not self._llm.vllm_config.model_config.enable_sleep_mode:
            raise EngineError("vLLM cannot sleep here: it does so on GPUs, unless vllm_args.enable_sleep_mode is false")
        await self._llm.sleep(level)

    async def wake(self) -> None:
        await self._llm.wake_up()

    async def stop(self) -> None:
        if self._llm is not None:
            await asyncio.to_thread(self._llm.shutdown)
        if self._guard is not None:
            self._guard.end()
            self._guard = None

    def _load(self) -> Loaded:
        with _small_model() if self._folder is None else nullcontext(str(self._folder)) as folder:
            chosen = {
                "enable_sleep_mode": current_platform.is_cuda(),
                # The longest context that the KV cache has room for.
                "max_model_len": -1,
                "stream_interval": self._stream_interval,
                **self._arguments,
            }
            if self._tp > 1:
                # Workers are this process's children: Ray has given it the GPUs of all ranks.
                chosen["distributed_executor_backend"] = "mp"
            arguments = AsyncEngineArgs(
                model=folder,
                # Text is made of tokens here, so that every engine does it alike.
                skip_tokenizer_init=True,
                tensor_parallel_size=self._tp,
                scheduling_policy="priority",
                # Its own log and Prometheus registry; ``_Watch`` comes besides.
                disable_log_stats=True,
                **chosen,
            )
            self._llm = AsyncLLM.from_engine_args(arguments, stat_loggers=[_watch(self._seen)])
            config = self._llm.vllm_config
            said = config.model_config.get_diff_sampling_param()
        said.pop("max_tokens", None)
        # Greedy where neither the request nor the model's generation settings say otherwise.
        self._defaults = {"temperature": 0.0, **said}
        cache, scheduler = config.cache_config, config.scheduler_config
        # One page belongs to nobody.
        kv_tokens = (cache.num_gpu_blocks - 1) * cache.block_size
        limits = BatchLimits(kv_tokens, cache.block_size, scheduler.max_num_batched_tokens, scheduler.max_num_seqs)
        return Loaded(limits, config.model_config.max_model_len, config.model_config.get_vocab_size())

    def _seen(self, kv_used_ratio: float) -> None:
        self._kv_used_ratio = kv_used_ratio


def _watch(seen: Callable[[float], None]) -> type[Any]:
    """vLLM calls one of these after every iteration, in the engine's event loop. It stands in for vLLM's own Prometheus
    logger, whose registry nobody reads here."""

    class Watch(PrometheusStatLogger):  # type: ignore[misc]
        def __init__(self, *args: Any, **named: Any) -> None:
            del args, named

        def record(self, scheduler_stats: Any, *others: Any, **named: Any) -> None:
            del others, named
            if scheduler_stats is not None:
                seen(scheduler_stats.kv_cache_usage)

        def log_engine_initialized(self) -> None:
            return

        def record_sleep_state(self, *args: Any, **named: Any) -> None:
            del args, named

    return Watch


def _small_model() -> AbstractContextManager[str]:
    """A folder with the small model's weights, for as long as vLLM reads it."""
    from serve_apps.engines.causal_model import small_llama

    folder = TemporaryDirectory(prefix="wattray-model-")
    small_llama().save_pretrained(folder.name)
    return folder
