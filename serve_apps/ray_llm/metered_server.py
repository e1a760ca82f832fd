"""ray.serve.llm's LLMServer, metered and steered by wattray: for ``LLMConfig.server_cls``."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import ray
from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorInfo, ErrorResponse
from ray.serve.llm import LLMServer

from control_plane.domain import ReplicaId
from serve_apps.api_errors import ApiError
from serve_apps.ray_llm.control import ensure_control_plane
from serve_apps.ray_llm.llm_messages import read_request, streams, token_counter
from serve_apps.ray_llm.managed_config import check_followed, read_managed
from serve_apps.ray_llm.metered_replica import MeteredReplica, reported_as_starting
from serve_apps.ray_llm.worker_gpus import METHOD, WORKER_EXTENSION
from serve_apps.replica_gpus import gpus_of_workers


class MeteredLLMServer(LLMServer):
    """Starts the control plane where none runs. Its settings are in ``experimental_configs.wattray``."""

    async def __init__(self, llm_config: Any, *, engine_cls: Any = None, model_downloader: Any = None) -> None:  # type: ignore[misc]
        managed = read_managed(llm_config.experimental_configs)
        deployment = await asyncio.to_thread(ensure_control_plane, managed.settings)
        llm_config.engine_kwargs.setdefault("worker_extension_cls", WORKER_EXTENSION)
        tp = llm_config.engine_kwargs.get("tensor_parallel_size", 1)
        node_id = ray.get_runtime_context().get_node_id()
        replica_id = ReplicaId(serve.get_replica_context().replica_id.unique_id)
        async with reported_as_starting(deployment, managed.pool, tp, replica_id, node_id):
            await super().__init__(llm_config, engine_cls=engine_cls, model_downloader=model_downloader)
        self._slo = managed.settings.slo.slo()
        self._count_tokens = token_counter(llm_config.model_loading_config.model_source)
        workers = await self.collective_rpc(METHOD)
        given = await asyncio.to_thread(gpus_of_workers, deployment, node_id, workers)
        self._metered = MeteredReplica(deployment, managed.pool, tp, replica_id, given)

    async def chat(
        self, request: Any, raw_request_info: Any = None, replica_id: str | None = None
    ) -> AsyncGenerator[Any, None]:
        """``replica_id`` is for the request router, which has read it by now: our own ingress has sent the request."""
        return self._answer(super().chat, request, raw_request_info, replica_id)

    async def completions(
        self, request: Any, raw_request_info: Any = None, replica_id: str | None = None
    ) -> AsyncGenerator[Any, None]:
        return self._answer(super().completions, request, raw_request_info, replica_id)

    async def _answer(
        self, ask: Any, body: Any, raw_request_info: Any, replica_id: str | None
    ) -> AsyncGenerator[Any, None]:
        headers = {} if raw_request_info is None else raw_request_info.headers
        try:
            request = read_request(body, headers, self._slo, self._count_tokens)
        except ApiError as error:
            yield ErrorResponse(error=ErrorInfo(message=error.message, type="BadRequestError", code=error.status))
            return
        items = await ask(body, raw_request_info)
        answer = self._metered.metered(request, items, streams=streams(body), arrived=replica_id is None)
        async with aclosing(answer):
            async for item in answer:
                yield item

    @classmethod
    def get_deployment_options(cls, llm_config: Any) -> dict[str, Any]:
        """Called by the builder. Raises ConfigRefusedError where a second loop would scale the deployment."""
        check_followed(llm_config.deployment_config)
        read_managed(llm_config.experimental_configs)
        options: dict[str, Any] = super().get_deployment_options(llm_config)
        return options

    async def check_health(self) -> None:
        await super().check_health()
        self._metered.check_health()

    async def __del__(self) -> None:
        """Ray Serve awaits it when the replica has drained."""
        if hasattr(self, "_metered"):
            self._metered.end()
        await super().__del__()
