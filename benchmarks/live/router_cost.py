"""What our router adds to a plain Serve ingress, which forwards by handle and does nothing else, in front of the same
model deployment: latency, throughput, CPU of the ingress process, time per streamed chunk.

    python benchmarks/live/router_cost.py [--rounds 7] [--requests 200] [--json OUT]

The model answers at once, so that nothing hides a difference; rounds of the two alternate, and each figure is the
median over rounds of a paired ratio or difference, with the quartiles beside it. Both ingresses and the client share
one Ray on this machine. Needs about half a minute a round on two cores.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")

import aiohttp
import psutil
import ray
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from ray import serve
from ray.serve.config import RequestRouterConfig

from actors.runtime import Installation
from control_plane.domain import PoolName, Role
from control_plane.settings import parse_settings
from serve_apps.app import MAX_ONGOING_REQUESTS, start_router
from serve_apps.engines.protocol import Chunk, GenerateRequest
from serve_apps.naming import PROXY_ENVIRONMENT, REPLICA_DEPLOYMENT, pool_app
from serve_apps.request_router import ChosenReplicaRouter

APP = pool_app(PoolName("short-medium"), 8, Role.COMBINED)
PROMPT = "tok " * 200
plain_api = FastAPI()


class InstantModel:
    """As many chunks as tokens are asked for, at once."""

    async def generate(self, request: GenerateRequest, replica_id: str) -> AsyncIterator[Chunk]:
        del replica_id
        for _ in range(request.max_tokens - 1):
            yield Chunk(" tok", 1)
        yield Chunk(" tok", 1, "length")


async def _events(chunks: AsyncIterator[Chunk]) -> AsyncIterator[str]:
    async for chunk in chunks:
        choice = {"index": 0, "text": chunk.text, "finish_reason": chunk.finish_reason}
        yield f"data: {json.dumps({'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"


@serve.ingress(plain_api)
class Plain:
    """The least that an OpenAI endpoint on Serve does: read JSON, call the handle, write JSON."""

    def __init__(self) -> None:
        handle = serve.get_deployment_handle(REPLICA_DEPLOYMENT, APP)
        self._model = handle.options(stream=True)

    @plain_api.post("/v1/completions")
    async def completions(self, http: Request) -> Response:
        body = await http.json()
        prompt = body["prompt"]
        request = GenerateRequest(os.urandom(8).hex(), prompt, len(prompt.split()), body["max_tokens"])
        chunks = self._model.generate.remote(request, replica_id="")
        if body["stream"]:
            return StreamingResponse(_events(chunks), media_type="text/event-stream")
        text = "".join([chunk.text async for chunk in chunks])
        return JSONResponse({"choices": [{"index": 0, "text": text}]})


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    streams: int
    tokens: int
    stream: bool


CASES = (
    Case("whole, 1 at a time", 1, 1, False),
    Case("whole, 32 at a time", 32, 1, False),
    Case("stream of 200 chunks, 1 at a time", 1, 200, True),
    Case("stream of 20 chunks, 32 at a time", 32, 20, True),
)


@dataclass(frozen=True, slots=True)
class Ingress:
    url: str
    process: psutil.Process


@dataclass(frozen=True, slots=True)
class Measured:
    """One round of one ingress. Times in seconds, ``cpu_s`` of the ingress process for each request."""

    p50_s: float
    p99_s: float
    rps: float
    cpu_s: float


async def measure(ingress: Ingress, case: Case, requests: int) -> Measured:
    body = {"model": "llama2-70b", "prompt": PROMPT, "max_tokens": case.tokens, "stream": case.stream}
    times: list[float] = []
    left = requests

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            began_s = time.perf_counter()
            async with session.post(f"{ingress.url}/v1/completions", json=body) as answer:
                told = await answer.read()
                if answer.status != 200 or told.count(b" tok") < 1:
                    raise RuntimeError(f"{ingress.url} answered {answer.status}: {told[:200]!r}")
            times.append(time.perf_counter() - began_s)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        cpu_before, began_s = _cpu_s(ingress.process), time.perf_counter()
        await asyncio.gather(*(client(session) for _ in range(case.streams)))
        lasted_s, cpu_s = time.perf_counter() - began_s, _cpu_s(ingress.process) - cpu_before
    times.sort()
    return Measured(times[len(times) // 2], times[int(0.99 * len(times))], requests / lasted_s, cpu_s / requests)


def _cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)


def spread(values: Sequence[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {"median": median, "q1": low, "q3": high}


def compared(case: Case, pairs: Sequence[tuple[Measured, Measured]]) -> dict[str, Any]:
    """Ours against plain, pair by pair."""

    def of(figure: Callable[[Measured, Measured], float]) -> dict[str, float]:
        return spread([figure(ours, plain) for ours, plain in pairs])

    return {
        "plain_p50_ms": spread([plain.p50_s * 1e3 for _, plain in pairs]),
        "added_p50_ms": of(lambda ours, plain: (ours.p50_s - plain.p50_s) * 1e3),
        "added_p99_ms": of(lambda ours, plain: (ours.p99_s - plain.p99_s) * 1e3),
        "throughput_ratio": of(lambda ours, plain: ours.rps / plain.rps),
        "plain_cpu_ms": spread([plain.cpu_s * 1e3 for _, plain in pairs]),
        "cpu_ratio": of(lambda ours, plain: ours.cpu_s / plain.cpu_s),
        **(
            {"added_per_chunk_ms": of(lambda ours, plain: (ours.p50_s - plain.p50_s) / case.tokens * 1e3)}
            if case.stream and case.streams == 1
            else {}
        ),
    }


async def rounds(ours: Ingress, plain: Ingress, count: int, requests: int, cases: Sequence[Case]) -> dict[str, Any]:
    pairs: dict[str, list[tuple[Measured, Measured]]] = {case.name: [] for case in cases}
    shares = {case: max(2 * case.streams, requests * 4 // (4 + case.tokens)) for case in cases}
    for case in cases:
        for ingress in (ours, plain):
            await measure(ingress, case, max(case.streams, shares[case] // 4))
    for number in range(count):
        for case, share in shares.items():
            if number % 2:
                second = await measure(plain, case, share)
                pairs[case.name].append((await measure(ours, case, share), second))
            else:
                first = await measure(ours, case, share)
                pairs[case.name].append((first, await measure(plain, case, share)))
    return {case.name: compared(case, pairs[case.name]) for case in cases}


def main() -> None:
    asking = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asking.add_argument("--rounds", type=int, default=7)
    asking.add_argument("--requests", type=int, default=200)
    asking.add_argument("--port", type=int, default=8123)
    asking.add_argument("--case", help="only cases whose name holds this")
    asking.add_argument("--json", type=Path)
    asked = asking.parse_args()
    cases = [case for case in CASES if asked.case is None or asked.case in case.name]
    os.environ.update(PROXY_ENVIRONMENT)
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    with tempfile.TemporaryDirectory(prefix="rc-", dir="/tmp") as folder:
        ray.init(
            num_cpus=4,
            num_gpus=0,
            include_dashboard=False,
            _temp_dir=folder,
            _node_ip_address="127.0.0.1",
            log_to_driver=False,
            namespace="router-cost",
        )
        try:
            # A report to control actors that are not there costs a look-up a second, as in the worst case.
            start_router(Installation(parse_settings({"serve": {"port": asked.port}}), "router-cost", "http://none"))
            model = serve.deployment(
                InstantModel,
                name=REPLICA_DEPLOYMENT,
                max_ongoing_requests=MAX_ONGOING_REQUESTS,
                ray_actor_options={"num_cpus": 0},
                request_router_config=RequestRouterConfig(request_router_class=ChosenReplicaRouter),
            )
            serve.run(model.bind(), name=APP, route_prefix=None)
            plain = serve.deployment(
                Plain, name="Plain", max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0}
            )
            serve.run(plain.bind(), name="plain", route_prefix="/plain")
            url = f"http://127.0.0.1:{asked.port}"
            found = asyncio.run(
                rounds(
                    Ingress(url, _process_of("ServeReplica:router")),
                    Ingress(f"{url}/plain", _process_of("ServeReplica:plain")),
                    asked.rounds,
                    asked.requests,
                    cases,
                )
            )
        finally:
            serve.shutdown()
            ray.shutdown()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for name, figures in found.items():
        print(name)
        for figure, told in figures.items():
            print(f"  {figure:20} {told['median']:8.3f}   [{told['q1']:.3f}, {told['q3']:.3f}]")
    if asked.json is not None:
        asked.json.write_text(json.dumps(found, indent=1))


def _process_of(title: str) -> psutil.Process:
    """The replica's process by its title, among those of the Ray that this process started."""
    for process in psutil.Process().children(recursive=True):
        if any(title in word for word in process.cmdline()):
            return process
    raise RuntimeError(f"no process is called {title}")


if __name__ == "__main__":
    main()
