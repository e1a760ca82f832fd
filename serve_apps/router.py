"""The router: OpenAI's endpoints in front of every pool.

It needs no control actor to serve: what it knows of replicas it has from Ray Serve, and no request waits for a report.
"""

import asyncio
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from starlette.types import ASGIApp

from actors import metrics, runtime
from actors.runtime import Installation
from control_plane.serving.hosting import RouterHost
from control_plane.serving.length_quantiles import lengths_for
from serve_apps.admission import Admission, BodyLimit
from serve_apps.api_errors import add_handlers
from serve_apps.api_key import key_guard
from serve_apps.control_actors import ControlActors
from serve_apps.dispatch import Account, Counts, Dispatcher
from serve_apps.engines.protocol import GenerateRequest
from serve_apps.length_fits import fit_lengths
from serve_apps.openai_api import AnswerShape, ChatRequest, CompletionRequest, model_list, usage
from serve_apps.replica_calls import ServeCalls
from serve_apps.replica_directory import ReplicaDirectory, speeds
from serve_apps.reporting import RouterReports
from serve_apps.request_hints import read_hints
from serve_apps.sse import stream_events

ENERGY_HEADER = "x-wattray-energy-j"


@dataclass(frozen=True, slots=True)
class Desk:
    """What the endpoints are made of."""

    admission: Admission
    dispatcher: Dispatcher
    directory: ReplicaDirectory
    counts: Counts
    max_body_bytes: int
    engine: str


def make_api(desk: Desk, guards: Sequence[Depends] = ()) -> FastAPI:
    """The HTTP side. ``guards`` are dependencies of every endpoint under /v1."""
    api = FastAPI(title="wattray router", docs_url="/docs")
    add_handlers(api, desk.counts.not_admitted)
    api.add_middleware(BodyLimit, limit=desk.max_body_bytes, refused=desk.counts.not_admitted)

    @api.get("/healthz")
    async def healthz() -> dict[str, Any]:
        replicas = len(desk.directory.candidates())
        return {"status": "ok", "engine": desk.engine, "replicas": replicas, **desk.counts.by_name()}

    @api.get("/v1/models", dependencies=guards)
    async def models() -> dict[str, Any]:
        return model_list(desk.admission.model_name)

    @api.post("/v1/completions", dependencies=guards)
    async def completions(body: CompletionRequest, http: Request) -> Response:
        admitted = await desk.admission.completion(body, read_hints(http.headers))
        return await _answer(desk.dispatcher, body, admitted, chat=False)

    @api.post("/v1/chat/completions", dependencies=guards)
    async def chat_completions(body: ChatRequest, http: Request) -> Response:
        admitted = await desk.admission.chat(body, read_hints(http.headers))
        return await _answer(desk.dispatcher, body, admitted, chat=True)

    return api


async def _answer(
    dispatcher: Dispatcher, body: CompletionRequest | ChatRequest, request: GenerateRequest, *, chat: bool
) -> Response:
    shape = AnswerShape(request.request_id, body.model, chat)
    if not body.streams:
        answer = await dispatcher.whole(request)
        used = _usage(request, answer.account)
        energy = {} if used["energy_j"] is None else {ENERGY_HEADER: str(used["energy_j"])}
        return JSONResponse(shape.whole(answer.text, answer.finish_reason, used), headers=energy)
    account = Account()
    chunks = dispatcher.stream(request, account)
    # The first chunk decides between a stream and an error status.
    first = await anext(chunks)
    told = (lambda: _usage(request, account)) if body.wants_usage else None
    return StreamingResponse(stream_events(shape, first, chunks, told), media_type="text/event-stream")


def _usage(request: GenerateRequest, account: Account) -> dict[str, Any]:
    return usage(request.input_tokens, account.tokens, account.expected_tokens, account.energy_j)


@serve.ingress()
class Router:
    """The router's Ray Serve deployment: one process, whose policy's account knows every request in flight."""

    async def __init__(self, deployment: Installation) -> None:  # type: ignore[misc]
        settings, profile = deployment.settings, deployment.profile
        policy = deployment.policy()
        by_app = speeds(policy, profile)
        host = RouterHost(policy, slo=settings.slo.slo(), lengths=lengths_for(settings))
        directory = ReplicaDirectory(by_app)
        counts = Counts(metrics)
        serving = settings.serve
        most_waiting = serving.max_waiting_requests
        dispatcher = Dispatcher(host, directory, ServeCalls(by_app), counts, most_waiting=most_waiting)
        admission = Admission.of(settings, profile)
        self._desk = Desk(admission, dispatcher, directory, counts, serving.max_body_bytes, serving.engine)
        key_file = settings.serve.api_key_file
        self._guards = [] if key_file is None else [Depends(key_guard(Path(key_file)))]
        reports = RouterReports(host, directory, ControlActors(runtime.actor), dispatcher.ledger)
        loop = asyncio.get_running_loop()
        self._reporting = loop.create_task(reports.run())
        self._fitting = loop.create_task(fit_lengths(host)) if settings.lengths == "learned" else None
        # What has been imported lives as long as the process: no collection needs to walk it under a request.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray Serve asks for it after the constructor."""
        return make_api(self._desk, self._guards)

    def check_health(self) -> None:
        """Raises RuntimeError where the reporting has ended: Serve replaces the router then."""
        if self._reporting.done():
            raise RuntimeError("the router reports nothing any more")
