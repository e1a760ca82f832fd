"""The router: OpenAI's endpoints in front of every pool. Predicts the output length, picks pool and replica, reports
arrivals.

``serve.ingress`` copies the routes when the class is made, so all they use is imported above it. The router needs no
control actor to serve: what it knows of replicas it has from Ray Serve, and its reports wait for no answer.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import ray
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from ray import serve
from ray.serve.handle import DeploymentHandle

from actors import metrics
from actors.runtime import LOAD_FORECASTER, Deployment, actor, pool_manager_name
from control_plane.domain import PoolName
from control_plane.hardware.replica_model import PS_PER_S
from control_plane.serving.length_predictor import LengthTable
from control_plane.serving.routing import Candidate, Route, RouterLedger, route
from serve_apps import running_replicas
from serve_apps.engines.protocol import Chunk, EngineError, GenerateRequest
from serve_apps.naming import REPLICA_DEPLOYMENT, pool_app
from serve_apps.openai_api import (
    AnswerShape,
    ChatRequest,
    CompletionRequest,
    count_tokens,
    error_body,
    model_list,
)
from serve_apps.sse import stream_events

log = logging.getLogger(__name__)

api = FastAPI(title="wattray router", docs_url="/docs")

REPORT_S = 1.0
NO_REPLICA_WAIT_S = 30.0
"""How long a request waits for a first replica before it is refused."""
ATTEMPTS = 3
"""A request whose replica dies before its first token is sent to another one this many times in all."""


LEAVING_S = 3.0
"""A replica that Serve no longer routes to still owes a first token for this long; then the request goes elsewhere."""


class NoReplicaError(RuntimeError):
    """No replica of any pool runs."""


class ReplicaLeftError(RuntimeError):
    """The chosen replica was scaled away before the request reached it."""


async def _first(chunk: Awaitable[Chunk], app: str, chosen: Route) -> Chunk:
    """The first chunk, unless Serve stops routing to the replica and nothing comes: an application scaled to zero keeps
    a request that came a moment too late until it is scaled up again. Raises ReplicaLeftError."""
    waiting = asyncio.ensure_future(chunk)
    left_s: float | None = None
    try:
        while not (await asyncio.wait({waiting}, timeout=0.5))[0]:
            if chosen.replica_id in running_replicas.of(app):
                left_s = None
            elif left_s is None:
                left_s = time.monotonic()
            elif time.monotonic() - left_s > LEAVING_S:
                raise ReplicaLeftError(f"{chosen.replica_id} of {app} was scaled away")
        return waiting.result()
    finally:
        waiting.cancel()


@api.exception_handler(RequestValidationError)
async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    del request
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"] if part != "body")
    message = f"{field}: {first['msg']} (got {first.get('input')!r:.200})"
    return JSONResponse(error_body(message, "invalid_request_error", param=field or None), 400)


@serve.ingress(api)
class Router:
    """One process; its ledger knows every request in flight."""

    def __init__(self, deployment: Deployment) -> None:
        settings, profile = deployment.settings, deployment.profile
        self._settings, self._slo = settings, settings.slo.slo()
        self._ledger = RouterLedger()
        self._lengths = LengthTable()
        self._arrivals: list[tuple[float, int, float]] = []
        self._handles: dict[str, DeploymentHandle[Any]] = {}
        self._speed: dict[str, tuple[PoolName, float, float]] = {}
        top = profile.max_freq_mhz
        for pool in settings.pools:
            for tp in profile.tps:
                app = pool_app(pool.pool, tp)
                handle = DeploymentHandle(REPLICA_DEPLOYMENT, app)
                # Deployed or not: Serve tells the handle of its replicas as they come and go.
                handle._init()
                self._handles[app] = handle.options(stream=True)
                times = profile.times(tp)
                token_s, base_s = times.token_ps[top] / PS_PER_S, times.base_ps[top] / PS_PER_S
                self._speed[app] = (pool.pool, token_s, base_s)
        self._counts = {"accepted": 0, "completed": 0, "failed": 0, "spilled": 0}
        self._reporting: asyncio.Task[None] | None = None

    @api.get("/healthz")
    async def healthz(self) -> dict[str, Any]:
        return {"status": "ok", "replicas": len(self._candidates()), **self._counts}

    @api.get("/v1/models")
    async def models(self) -> dict[str, Any]:
        return model_list(self._settings.serve.model_name)

    @api.post("/v1/completions")
    async def completions(self, body: CompletionRequest) -> Any:
        prompt = body.prompt
        text = prompt if isinstance(prompt, str) else ""
        input_tokens = count_tokens(prompt) if isinstance(prompt, str) else max(1, len(prompt))
        return await self._answer(body, text, input_tokens, body.max_tokens, chat=False)

    @api.post("/v1/chat/completions")
    async def chat(self, body: ChatRequest) -> Any:
        text = "\n".join(message.content for message in body.messages)
        max_tokens = body.max_completion_tokens or body.max_tokens
        return await self._answer(body, text, count_tokens(text), max_tokens, chat=True)

    async def _answer(
        self, body: CompletionRequest | ChatRequest, prompt: str, input_tokens: int, max_tokens: int, *, chat: bool
    ) -> Any:
        if self._reporting is None:
            self._reporting = asyncio.get_running_loop().create_task(self._report_forever())
        if body.model != self._settings.serve.model_name:
            known = self._settings.serve.model_name
            message = f"model: {body.model!r} is not served here; {known!r} is"
            return JSONResponse(error_body(message, "invalid_request_error", "model_not_found", "model"), 404)
        request = GenerateRequest(
            uuid.uuid4().hex, prompt, input_tokens, max_tokens, stop_after_tokens=body.simulated_output_tokens
        )
        expected_tokens = self._lengths.expected_tokens(input_tokens, max_tokens)
        self._arrivals.append((time.monotonic(), input_tokens, expected_tokens))
        self._counts["accepted"] += 1
        shape = AnswerShape(request.request_id, body.model, chat)
        chunks = self._generate(request)
        try:
            first = await anext(chunks)
        except NoReplicaError as error:
            return JSONResponse(error_body(str(error), "server_error", "no_replica"), 503)
        except EngineError as error:
            return JSONResponse(error_body(str(error), "invalid_request_error", "engine_refused"), 400)
        if body.stream:
            events = stream_events(shape, request, first, chunks, body.stream_options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream")
        pieces, tokens, last = [first.text], first.tokens, first
        async for last in chunks:
            pieces.append(last.text)
            tokens += last.tokens
        return shape.whole("".join(pieces), last.finish_reason or "stop", input_tokens, tokens)

    async def _generate(self, request: GenerateRequest) -> AsyncIterator[Chunk]:
        """The request's chunks from the replica that suits it best. Until the first token a dead replica costs a
        retry; after it the stream ends with the error."""
        started_s = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            chosen = await self._route(request)
            stream = self._send(request, chosen)
            tokens, ttft_s = 0, None
            outcome = "failed"
            try:
                async for chunk in stream:
                    if ttft_s is None:
                        ttft_s = time.monotonic() - started_s
                        self._ledger.first_token(request.request_id, chosen.replica_id)
                    tokens += chunk.tokens
                    if chunk.finish_reason is not None:
                        outcome = "completed"
                        self._lengths.learn(request.input_tokens, tokens)
                    yield chunk
                return
            except (ray.exceptions.RayActorError, ReplicaLeftError) as error:
                if ttft_s is not None or attempt == ATTEMPTS:
                    raise
                log.warning("replica %s is gone before the first token: %s", chosen.replica_id, error)
            except GeneratorExit:
                outcome = outcome if outcome == "completed" else "cancelled"
                raise
            finally:
                self._ledger.ended(request.request_id, chosen.replica_id)
                self._counts["completed" if outcome == "completed" else "failed"] += 1
                metrics.request_ended(str(chosen.pool), outcome, ttft_s)

    async def _send(self, request: GenerateRequest, chosen: Route) -> AsyncIterator[Chunk]:
        app = next(app for app in self._handles if chosen.replica_id in running_replicas.of(app))
        response = self._handles[app].generate.remote(request, replica_id=chosen.replica_id)
        finished = False
        try:
            yield await _first(anext(aiter(response)), app, chosen)
            async for chunk in response:
                yield chunk
            finished = True
        except ray.exceptions.RayTaskError as error:
            finished = True
            cause = error.as_instanceof_cause()
            raise (EngineError(str(cause.args[0])) if isinstance(cause, EngineError) else error) from None
        finally:
            if not finished:
                response.cancel()

    async def _route(self, request: GenerateRequest) -> Route:
        deadline_s = time.monotonic() + NO_REPLICA_WAIT_S
        while True:
            chosen = route(self._settings, self._slo, self._ledger, self._by_pool(), request.input_tokens)
            if chosen is not None:
                self._ledger.assigned(request.request_id, chosen.replica_id, request.input_tokens)
                self._counts["spilled"] += chosen.spilled
                return chosen
            if time.monotonic() > deadline_s:
                raise NoReplicaError(f"no replica came up within {NO_REPLICA_WAIT_S:.0f} s; see `wattray status`")
            await asyncio.sleep(0.1)

    def _candidates(self) -> list[Candidate]:
        return [
            Candidate(replica_id, pool, token_s, base_s)
            for app, (pool, token_s, base_s) in self._speed.items()
            for replica_id in running_replicas.of(app)
        ]

    def _by_pool(self) -> dict[PoolName, list[Candidate]]:
        by_pool: dict[PoolName, list[Candidate]] = {}
        for candidate in self._candidates():
            by_pool.setdefault(candidate.pool, []).append(candidate)
        return by_pool

    async def _report_forever(self) -> None:
        """Arrivals to the forecaster, routable replicas to the pool managers; nobody waits for an answer."""
        while True:
            arrivals, self._arrivals = self._arrivals, []
            now_s = time.monotonic()
            aged = [(now_s - at_s, tokens, expected) for at_s, tokens, expected in arrivals]
            by_pool = self._by_pool()
            self._ledger.forget(c.replica_id for candidates in by_pool.values() for c in candidates)
            try:
                if aged:
                    actor(LOAD_FORECASTER).observe.remote(aged)
                for pool in self._settings.pools:
                    ids = frozenset(candidate.replica_id for candidate in by_pool.get(pool.pool, ()))
                    actor(pool_manager_name(pool.pool)).set_routable.remote(ids)
            except (ValueError, ray.exceptions.RayError) as error:
                log.warning("a control actor is away: %s; requests go on", error)
            await asyncio.sleep(REPORT_S)
