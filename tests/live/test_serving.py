"""The router and the replicas on a real Ray Serve: deaths under requests, limits, and what clients are told."""

import asyncio
import json
import time
from typing import Any

import httpx
import pytest
import ray

from control_plane.domain import ReplicaState

pytestmark = pytest.mark.ray

LONG_ANSWER_TOKENS = 150
"""About two seconds of decoding on the quickest replica."""


def body(**more: object) -> dict[str, object]:
    return {"model": "llama2-70b", "prompt": "one two three", "max_tokens": LONG_ANSWER_TOKENS, **more}


def kill_actor(prefix: str) -> str:
    names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
    victim = next(name for name in names if name.startswith(prefix))
    ray.kill(ray.get_actor(victim, namespace="serve"))
    return victim


def ask_and_kill(url: str, victim: str, wanted: dict[str, object]) -> httpx.Response:
    """Ask, and half a second later kill whatever has this name."""

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            asked = asyncio.create_task(client.post(f"{url}/v1/completions", json=wanted))
            await asyncio.sleep(0.5)
            assert not asked.done()
            await asyncio.to_thread(kill_actor, victim)
            return await asked

    return asyncio.run(run())


def counts(live: Any) -> dict[str, int]:
    return dict(httpx.get(f"{live.url}/healthz", timeout=30).json())


def ready(live: Any) -> bool:
    pools = live.client.status().pools
    return all(any(r.state is ReplicaState.READY for r in pool.replicas) for pool in pools)


def until(claim: Any, patience_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < deadline_s, "never came true"
        time.sleep(0.2)


def test_a_replica_killed_under_a_whole_answer_costs_a_retry(live: Any) -> None:
    until(lambda: ready(live))
    before = counts(live)
    short = next(pool for pool in live.client.status().pools if pool.pool == "short-medium")
    [first, *_] = [replica for replica in short.replicas if replica.state is ReplicaState.READY]
    answer = ask_and_kill(live.url, f"SERVE_REPLICA::short-medium-tp{first.tp}#", body())
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == LONG_ANSWER_TOKENS
    after = counts(live)
    assert after["failed"] == before["failed"]
    assert after["completed"] == before["completed"] + 1


def test_a_router_killed_under_a_whole_answer_is_asked_again_or_told_in_openais_shape(live: Any) -> None:
    until(lambda: ready(live))
    answer = ask_and_kill(live.url, "SERVE_REPLICA::router#", body())
    if answer.status_code == 200:
        assert answer.json()["usage"]["completion_tokens"] == LONG_ANSWER_TOKENS
    else:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "router_lost"
    until(lambda: httpx.get(f"{live.url}/healthz", timeout=30).status_code == 200)


def test_a_router_killed_under_a_stream_ends_it_with_a_typed_error(live: Any) -> None:
    until(lambda: ready(live))
    lines = []
    with httpx.stream("POST", f"{live.url}/v1/completions", json=body(stream=True), timeout=60) as answer:
        for line in answer.iter_lines():
            if not lines:
                kill_actor("SERVE_REPLICA::router#")
            if line:
                lines.append(line.removeprefix("data: "))
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["error"]["code"] == "router_lost"
    until(lambda: httpx.get(f"{live.url}/healthz", timeout=30).status_code == 200)


def test_a_prompt_of_a_hundred_megabytes_is_refused_quickly_and_moves_no_budget(live: Any) -> None:
    until(lambda: ready(live))
    budgets = {pool.pool: pool.gpu_budget for pool in live.client.status().pools}
    before = counts(live)["accepted"]
    wanted = json.dumps(body(prompt="x " * 50_000_000))
    began_s = time.monotonic()
    try:
        answer = httpx.post(f"{live.url}/v1/completions", content=wanted, timeout=60)
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "body_too_large"
    except (httpx.WriteError, httpx.RemoteProtocolError):
        # The router answered and hung up while the client was still sending.
        pass
    assert time.monotonic() - began_s < 5
    small = httpx.post(f"{live.url}/v1/completions", content=json.dumps(body(prompt="x " * 2_000_000)), timeout=60)
    assert small.status_code == 413
    assert counts(live)["accepted"] == before
    assert {pool.pool: pool.gpu_budget for pool in live.client.status().pools} == budgets


def test_errors_have_openais_shape_through_serves_proxy(live: Any) -> None:
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)):
        answer = httpx.request(method, f"{live.url}{path}", timeout=30)
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_replicas_report_what_they_see(live: Any) -> None:
    until(lambda: ready(live))
    replicas = [replica for pool in live.client.status().pools for replica in pool.replicas]
    assert all(replica.freq_mhz is not None and replica.freq_mhz >= 345 for replica in replicas)
    assert {str(replica.role) for replica in replicas} == {"combined"}
