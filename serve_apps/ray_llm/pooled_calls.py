"""Requests to the deployments of a managed ray.serve.llm application, one for each pool and tensor parallelism."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Any

from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import RunningReplica

from control_plane.domain import ReplicaId
from serve_apps.engines.protocol import Chunk, GenerateRequest
from serve_apps.ray_llm.llm_messages import tokens_of
from serve_apps.replica_calls import ServeCalls
from serve_apps.request_router import ChosenReplicaRouter

CALL = "ray_llm_call"
"""The request extension that holds what is really sent: a ``Call``."""


@dataclass(frozen=True, slots=True)
class Call:
    """A method of the server and its arguments."""

    method: str
    body: Any
    raw_request_info: Any


@dataclass(frozen=True, slots=True)
class Item(Chunk):
    """A part of an answer as the server sent it; None at the end."""

    item: Any = None


class PooledReplicaRouter(ChosenReplicaRouter):
    """For ``request_router_config`` of a server's deployment: known by the deployment's name, where ChosenReplicaRouter
    goes by the application's."""

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        from serve_apps import running_replicas

        super().update_replicas(replicas)
        running_replicas.update(
            self._deployment_id.name, frozenset(replica.replica_id.unique_id for replica in replicas)
        )


class PooledCalls(ServeCalls):
    """Implements ``dispatch.ReplicaCalls``; deployments take the place of applications."""

    def __init__(self, deployments: Mapping[str, DeploymentHandle[Any]]) -> None:
        super().__init__(())
        for name, handle in deployments.items():
            self._follow(name, handle)

    def _send(self, app: str, replica_id: ReplicaId, request: GenerateRequest) -> Any:
        call: Call = request.extensions[CALL]
        method = getattr(self._handles[app], call.method)
        return method.remote(call.body, call.raw_request_info, replica_id=replica_id)

    async def stream(self, app: str, replica_id: ReplicaId, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        async for item in super().stream(app, replica_id, request):
            yield Item("", tokens_of(item), whole=not isinstance(item, list | str), item=item)
        yield Item("", 0, "stop")
