"""wattray's transformers engine behind ray.serve.llm's engine protocol: a real model without vLLM and without a GPU, to
try a configuration out (environment variable RAYLLM_VLLM_ENGINE_CLS).

Where wattray's control plane runs with simulated GPUs, the model's work is charged to those that the replica holds.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.llm._internal.serve.core.configs.openai_api_models import (
    ChatCompletionResponse,
    CompletionResponse,
    ErrorInfo,
    ErrorResponse,
)
from ray.llm._internal.serve.core.engine.protocol import LLMEngine
from ray.util.placement_group import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from control_plane.settings import ServeSettings, Settings
from serve_apps.engines.protocol import EngineError, GenerateRequest, RequestRefusedError, SamplingParameters
from serve_apps.engines.transformers_engine import TransformersEngine
from serve_apps.engines.transformers_site import transformers_engine, uncharged_engine
from serve_apps.openai_api import DEFAULT_MAX_TOKENS, AnswerShape, usage
from serve_apps.ray_llm.control import installation_of, running_settings
from serve_apps.ray_llm.llm_messages import content_text
from serve_apps.ray_llm.worker_gpus import WorkerGpu, WorkerGpus
from serve_apps.replica_gpus import gpus_of_workers
from serve_apps.sse import DONE, event


class TransformersLLM(LLMEngine):
    """``model_source`` is a folder with weights and ``tokenizer.json``; without one the small random Llama runs."""

    def __init__(self, llm_config: Any) -> None:
        self._config = llm_config
        self._seats: list[Any] = []
        self._engine: TransformersEngine | None = None

    async def start(self) -> None:
        self._seats = await asyncio.to_thread(_take_seats)
        serve = ServeSettings(
            engine="transformers", model_path=self._config.model_loading_config.model_source, stream_interval_s=0.0
        )
        self._engine = await asyncio.to_thread(self._make, serve, await self.collective_rpc("wattray_gpu"))
        await self._engine.load()

    def _make(self, serve: ServeSettings, workers: Sequence[WorkerGpu]) -> TransformersEngine:
        running = running_settings()
        if running is None or running.gpu.driver != "simulated" or not workers:
            return uncharged_engine(serve)
        settings: Settings = running.model_copy(update={"serve": serve})
        deployment = installation_of(settings)
        given = gpus_of_workers(deployment, workers[0].node_id, workers)
        return transformers_engine(settings, deployment.profile, len(workers), given.node, given.indices)

    async def chat(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        text = "\n".join(content_text(message.get("content")) for message in request.messages)
        asked = request.max_completion_tokens or request.max_tokens
        async for item in self._answer(request, _generation(request, text, None, asked), chat=True):
            yield item

    async def completions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        prompt = request.prompt
        ids = tuple(prompt) if isinstance(prompt, list) else None
        generation = _generation(request, prompt if ids is None else "", ids, request.max_tokens)
        async for item in self._answer(request, generation, chat=False):
            yield item

    async def _answer(self, body: Any, request: GenerateRequest, *, chat: bool) -> AsyncGenerator[Any, None]:
        engine = self._engine
        assert engine is not None
        prompt_tokens = len(request.token_ids or engine.tokenizer.encode(request.prompt))
        request, shape = replace(request, input_tokens=prompt_tokens), AnswerShape(request.request_id, body.model, chat)
        text, reason, tokens = "", "length", 0
        opening = shape.opening() if body.stream else None
        try:
            async for chunk in engine.generate(request):
                tokens, reason = tokens + chunk.tokens, chunk.finish_reason or reason
                if not body.stream:
                    text += chunk.text
                    continue
                if opening is not None:
                    yield event(opening)
                    opening = None
                yield event(shape.chunk(chunk.text, chunk.finish_reason))
        except EngineError as error:
            code = 400 if isinstance(error, RequestRefusedError) else 500
            yield ErrorResponse(error=ErrorInfo(message=str(error), type=type(error).__name__, code=code))
            return
        used = {name: value for name, value in usage(prompt_tokens, tokens, 0, None).items() if value}
        if body.stream:
            if body.stream_options is not None and body.stream_options.include_usage:
                yield event(shape.usage_chunk(used))
            yield DONE
            return
        kind = ChatCompletionResponse if chat else CompletionResponse
        yield kind(**shape.whole(text, reason, used))

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> list[Any]:
        calls = [getattr(seat, method).remote(*args, **(kwargs or {})) for seat in self._seats]
        return list(await asyncio.wait_for(asyncio.gather(*calls), timeout))

    async def check_health(self) -> None:
        if self._engine is None or not self._engine.alive():
            raise RuntimeError(f"the engine has ended: {self._engine and self._engine.failure()!r}")

    async def shutdown(self) -> None:
        if self._engine is not None:
            await self._engine.shutdown()
        for seat in self._seats:
            ray.kill(seat)

    def routing_stats(self) -> dict[str, Any]:
        return {}

    async def resolve_lora(self, lora_model: Any) -> None:
        raise NotImplementedError("the transformers engine has no LoRA adapters")

    async def embeddings(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        yield _unsupported("embeddings")

    async def transcriptions(self, request: Any, raw_request_info: Any = None) -> AsyncGenerator[Any, None]:
        yield _unsupported("transcriptions")

    async def reset_prefix_cache(self) -> None:
        """It has none."""


def _unsupported(what: str) -> ErrorResponse:
    message = f"{what}: the transformers engine generates text only"
    return ErrorResponse(error=ErrorInfo(message=message, type="NotImplementedError", code=501))


def _generation(body: Any, prompt: str, token_ids: tuple[int, ...] | None, max_tokens: int | None) -> GenerateRequest:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    sampling = SamplingParameters(
        body.temperature, body.top_p, body.top_k, body.seed, stop, body.presence_penalty, body.frequency_penalty
    )
    limit = max_tokens or DEFAULT_MAX_TOKENS
    return GenerateRequest(uuid.uuid4().hex, prompt, 0, limit, token_ids, sampling)


def _take_seats() -> list[Any]:
    """One actor a GPU of the replica's placement group, as vLLM has its workers there."""
    group = get_current_placement_group()
    if group is None:
        return []
    seats = []
    for index, bundle in enumerate(group.bundle_specs):
        if bundle.get("GPU"):
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
            seat = ray.remote(WorkerGpus).options(num_cpus=0, num_gpus=1, scheduling_strategy=strategy)
            seats.append(seat.remote())
    return seats
