"""Sends requests to replicas through Ray Serve's handles, one for every application that may come to run."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Iterable
from typing import Any

import ray
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from control_plane.domain import ReplicaId
from serve_apps import running_replicas
from serve_apps.dispatch import ReplicaLostError
from serve_apps.engines.protocol import Chunk, EngineError, GenerateRequest
from serve_apps.naming import REPLICA_DEPLOYMENT

LEAVING_S = 3.0
"""A replica that Serve no longer routes to still owes a first token for this long; then the request goes elsewhere."""
LOOK_S = 0.5


class ServeCalls:
    """Implements ``dispatch.ReplicaCalls``. The handles are told of replicas by Serve as they come and go, whether or
    not their application is deployed yet."""

    def __init__(self, apps: Iterable[str]) -> None:
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        for app in apps:
            handle: DeploymentHandle[Any] = DeploymentHandle(REPLICA_DEPLOYMENT, app)
            self._follow(app, handle)

    def _follow(self, app: str, handle: DeploymentHandle[Any]) -> None:
        handle._init()
        self._handles[app] = handle.options(stream=True)

    def _send(self, app: str, replica_id: ReplicaId, request: GenerateRequest) -> Any:
        return self._handles[app].generate.remote(request, replica_id=replica_id)

    async def stream(self, app: str, replica_id: ReplicaId, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        response = self._send(app, replica_id, request)
        finished = False
        try:
            yield await first_or_lost(anext(aiter(response)), app, replica_id)
            async for chunk in response:
                yield chunk
            finished = True
        except StopAsyncIteration:
            finished = True
            raise ReplicaLostError(f"{replica_id} sent nothing") from None
        except ray.exceptions.RayTaskError as error:
            finished = True
            cause = error.as_instanceof_cause()
            if isinstance(cause, EngineError):
                # The class that crossed Ray is made up on the way: raise the one that callers know.
                known = next(cls for cls in type(cause).__mro__ if cls.__module__ == EngineError.__module__)
                raise known(str(cause.args[0])) from None
            raise EngineError(f"{type(error.cause).__name__}: {error.cause}") from error
        except (ray.exceptions.RayError, RayServeException) as error:
            raise ReplicaLostError(f"{replica_id} of {app}: {error}") from error
        finally:
            if not finished:
                response.cancel()


async def first_or_lost(
    chunk: Awaitable[Chunk], app: str, replica_id: ReplicaId, leaving_s: float = LEAVING_S, look_s: float = LOOK_S
) -> Chunk:
    """The first chunk, unless Serve stops routing to the replica and nothing comes: an application scaled to zero keeps
    a request that came a moment too late until it is scaled up again. Raises ReplicaLostError."""
    waiting = asyncio.ensure_future(chunk)
    left_s: float | None = None
    try:
        while not (await asyncio.wait({waiting}, timeout=look_s))[0]:
            if replica_id in running_replicas.of(app):
                left_s = None
            elif left_s is None:
                left_s = time.monotonic()
            elif time.monotonic() - left_s > leaving_s:
                raise ReplicaLostError(f"{replica_id} of {app} was scaled away")
        return waiting.result()
    finally:
        waiting.cancel()
