"""ray.serve.llm's OpenAI ingress with our router behind its endpoints for completions and chat: the policy chooses pool
and replica, a lost replica costs a new start, too long a queue is refused."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray.llm._internal.serve.core.configs.openai_api_models import OpenAIHTTPException
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.ingress import OpenAiIngress

from actors import metrics, runtime
from control_plane.serving.hosting import RouterHost
from control_plane.settings import Settings
from serve_apps.api_errors import ApiError
from serve_apps.control_actors import ControlActors
from serve_apps.dispatch import Counts, Dispatcher
from serve_apps.ray_llm.control import ensure_control_plane
from serve_apps.ray_llm.llm_messages import read_request, token_counter
from serve_apps.ray_llm.pooled_calls import CALL, Call, Item, PooledCalls
from serve_apps.replica_directory import AppSpeed, ReplicaDirectory
from serve_apps.reporting import RouterReports
from serve_apps.usage_ledger import UsageLedger

ROUTED = ("chat", "completions")


class PooledIngress(OpenAiIngress):
    """Other endpoints go to the first deployment, as Ray's ingress sends them."""

    async def __init__(  # type: ignore[misc]
        self,
        llm_deployments: Any,
        model_cards: Any,
        *,
        lora_paths: Any = None,
        settings: Settings,
        deployments: Mapping[str, DeploymentHandle[Any]],
        speeds: Mapping[str, AppSpeed],
        model_source: object = None,
    ) -> None:
        """``speeds`` and ``deployments`` by the deployment's name."""
        super().__init__(llm_deployments, model_cards, lora_paths=lora_paths)
        installation = await asyncio.to_thread(ensure_control_plane, settings)
        policy = installation.policy()
        host, directory = RouterHost(policy, slo=settings.slo.slo()), ReplicaDirectory(speeds)
        waiting = settings.serve.max_waiting_requests
        self._dispatcher = Dispatcher(host, directory, PooledCalls(deployments), Counts(metrics), most_waiting=waiting)
        self._slo, self._count_tokens = settings.slo.slo(), token_counter(model_source)
        # Replicas tell what requests used: only they know where no usage was asked for.
        reports = RouterReports(host, directory, ControlActors(runtime.actor), UsageLedger())
        self._reporting = asyncio.get_running_loop().create_task(reports.run())

    async def check_health(self) -> None:
        """Raises RuntimeError where the reporting has ended: Serve replaces the ingress then."""
        if self._reporting.done():
            raise RuntimeError("the ingress reports nothing any more")

    async def _get_response(self, *, body: Any, call_method: str, raw_request: Any = None) -> AsyncGenerator[Any, None]:
        if call_method not in ROUTED:
            async for item in super()._get_response(body=body, call_method=call_method, raw_request=raw_request):
                yield item
            return
        await self._get_model_id(body.model)
        call = sendable(body, call_method, raw_request)
        try:
            request = read_request(call.body, call.raw_request_info.headers, self._slo, self._count_tokens)
            async with aclosing(self._dispatcher.stream(replace(request, extensions={CALL: call}))) as chunks:
                async for chunk in chunks:
                    if isinstance(chunk, Item) and chunk.item is not None:
                        yield chunk.item
        except ApiError as error:
            raise OpenAIHTTPException(error.status, error.message, error.code or "error") from error


def sendable(body: Any, method: str, raw_request: Any) -> Call:
    """As Ray's own ingress makes them ready for the way to a server."""
    from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
    from ray.llm._internal.serve.core.protocol import RawRequestInfo

    if method == "chat":
        body = _sanitize_chat_completion_request(body)
    return Call(method, body, RawRequestInfo.from_starlette_request(raw_request))
