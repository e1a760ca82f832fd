"""CPU time of the router per request, in this process: HTTP parsing, admission, choice, the account, chunks and
events. Ray Serve's handle is replaced by one that answers at once; the rest is the router as it runs.

    python benchmarks/router/cpu.py [--requests 3000] [--chunks 20] [--json]

To compare two trees, alternate runs of the same machine: clocks and neighbours drift by more than a change costs.
"""

import argparse
import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

from actors.runtime import Installation
from control_plane.domain import ReplicaId
from control_plane.settings import Settings
from serve_apps import running_replicas
from serve_apps.engines.protocol import Chunk

PROMPT = "tok " * 1000


class InstantHandle:
    """Stands for Ray Serve's handle of an application: a stream of ready chunks."""

    chunks = 20

    def __init__(self, deployment: str, app: str) -> None:
        del deployment, app

    def _init(self) -> None:
        return

    def options(self, stream: bool) -> "InstantHandle":
        assert stream
        return self

    @property
    def generate(self) -> "InstantHandle":
        return self

    def remote(self, request: object, replica_id: str) -> "InstantHandle":
        return self

    def cancel(self) -> None:
        return

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for _ in range(self.chunks - 1):
            yield Chunk(" tok", 1)
            await asyncio.sleep(0)
        yield Chunk(" tok", 1, "stop")


def this_routers_app(deployment: Installation) -> ASGIApp:
    from control_plane.serving.hosting import RouterHost
    from serve_apps import replica_calls
    from serve_apps.admission import Admission
    from serve_apps.dispatch import Counts, Dispatcher
    from serve_apps.replica_directory import ReplicaDirectory, speeds
    from serve_apps.router import Desk, make_api

    replica_calls.DeploymentHandle = InstantHandle  # type: ignore[misc]
    settings, profile, policy = deployment.settings, deployment.profile, deployment.policy()
    by_app = speeds(policy, profile)
    directory, counts = ReplicaDirectory(by_app), Counts()
    dispatcher = Dispatcher(RouterHost(policy), directory, replica_calls.ServeCalls(by_app), counts)
    admission, most = Admission.of(settings, profile), settings.serve.max_body_bytes
    return make_api(Desk(admission, dispatcher, directory, counts, most, settings.serve.engine))


def know_replicas() -> None:
    """Four in either pool, as in the demo."""
    for pool in ("short-medium", "long"):
        for tp in (4, 8):
            ids = frozenset(ReplicaId(f"{pool}-{tp}-{i}") for i in range(2))
            running_replicas.update(f"{pool}-tp{tp}", ids)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU microseconds of one request."""

    stream_us: float
    whole_us: float


async def cost(app: ASGIApp, requests: int) -> Cost:
    return Cost(await _measure(app, requests, stream=True), await _measure(app, requests, stream=False))


async def _measure(app: ASGIApp, requests: int, *, stream: bool) -> float:
    body = json.dumps({"model": "llama2-70b", "prompt": PROMPT, "max_tokens": 100, "stream": stream}).encode()
    for _ in range(100):
        await post(app, body)
    began_s = time.process_time()
    for _ in range(requests):
        await post(app, body)
    return (time.process_time() - began_s) / requests * 1e6


async def post(app: ASGIApp, body: bytes) -> None:
    """One request as Ray Serve hands it to the app. Raises RuntimeError for any answer but a whole 200."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/completions",
        "raw_path": b"/v1/completions",
        "root_path": "",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }
    coming: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, last = 0, b""

    async def receive() -> Message:
        if coming:
            return coming.pop()
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, last
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            last = message.get("body", b"") or last

    await app(scope, receive, send)
    if status != 200 or not (b"[DONE]" in last or b"usage" in last):
        raise RuntimeError(f"the router answered {status} {last[:200]!r}")


def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__)
    asking.add_argument("--requests", type=int, default=3000)
    asking.add_argument("--chunks", type=int, default=20)
    asking.add_argument("--json", action="store_true")
    asked = asking.parse_args()
    InstantHandle.chunks = asked.chunks
    know_replicas()
    found = asyncio.run(cost(this_routers_app(Installation(Settings(), "run", "http://none")), asked.requests))
    if asked.json:
        print(json.dumps({"stream_us": found.stream_us, "whole_us": found.whole_us}))
    else:
        print(
            f"stream of {asked.chunks} chunks: {found.stream_us:.0f} us CPU a request; whole: {found.whole_us:.0f} us"
        )


if __name__ == "__main__":
    main()
