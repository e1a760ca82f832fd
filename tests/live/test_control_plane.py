"""The control plane on a real Ray: actors by name, clocks that follow the load, deaths that nobody notices."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import httpx
import pytest
import ray
from tests_support import ROOT

from actors import metrics, runtime
from actors.messages import TenantUsage
from control_plane.leases import Hold
from control_plane.settings import parse_settings
from control_plane.simulation.traces import synthetic_conversation
from serve_apps.naming import pool_app
from wattray import lifecycle
from wattray.errors import WattrayError
from wattray.load_generator import Endpoint, Sent, replay
from wattray.ray_head import Ports

pytestmark = pytest.mark.ray

RARE = ("_ttft_", "_training_", "_retries_", "_lapses_")
"""Parts of the names of metrics that an idle control plane does not export."""


def eventually(claim: object, patience_s: float = 20.0) -> None:
    """Until ``claim()`` is true; the last answer is in the failure."""
    deadline_s = time.monotonic() + patience_s
    while not (answer := claim()):  # type: ignore[operator]
        assert time.monotonic() < deadline_s, f"never came true, last answer {answer!r}"
        time.sleep(0.2)


def body(**more: object) -> dict[str, object]:
    return {"model": "llama2-70b", "prompt": "one two three", "max_tokens": 12, **more}


def test_the_named_actors_are_there(live) -> None:
    names = runtime.control_actor_names()
    expected = {"cluster_manager", "load_forecaster", "pool_manager:long", "pool_manager:short-medium"}
    assert expected <= set(names)
    assert [name for name in names if name.startswith("gpu_agent:")] == runtime.agent_names() != []


def test_models_are_listed(live) -> None:
    assert httpx.get(f"{live.url}/v1/models").json()["data"][0]["id"] == "llama2-70b"


def test_a_completion_has_text_and_usage(live) -> None:
    answer = httpx.post(f"{live.url}/v1/completions", json=body(), timeout=30).json()
    used = answer["usage"]
    assert (used["prompt_tokens"], used["completion_tokens"], used["total_tokens"]) == (3, 12, 15)
    assert used["energy_j"] > 0
    assert len(answer["choices"][0]["text"].split()) == 12
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_chat_answers_as_the_assistant_and_stops_at_max_tokens(live) -> None:
    chat: dict[str, object] = {"model": "llama2-70b", "messages": [{"role": "user", "content": "hi"}]}
    chat |= {"max_tokens": 5, "simulated_output_tokens": 9}
    answer = httpx.post(f"{live.url}/v1/chat/completions", json=chat, timeout=30).json()
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert answer["usage"]["completion_tokens"] == 5
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_stream_comes_in_pieces_and_ends_with_done(live) -> None:
    wanted = body(max_tokens=60, stream=True, stream_options={"include_usage": True})
    with httpx.stream("POST", f"{live.url}/v1/completions", json=wanted, timeout=30) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert events[-1] == "[DONE]"
    assert len(events) >= 5
    assert '"completion_tokens":60' in events[-2]


@pytest.mark.parametrize(
    ("wanted", "status", "told"),
    [
        (body(model="gpt-9"), 404, "'gpt-9' is not served here"),
        ({"model": "llama2-70b"}, 400, "prompt: Field required"),
        (body(max_tokens=0), 400, "max_tokens"),
        (body(prompt=" ".join(["x"] * 60_000), max_tokens=100), 400, "60000 tokens; at most 32768 fit"),
    ],
)
def test_a_bad_request_is_told_why(live, wanted: dict[str, object], status: int, told: str) -> None:
    answer = httpx.post(f"{live.url}/v1/completions", json=wanted, timeout=30)
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


def test_a_client_that_hangs_up_leaves_nothing_running(live) -> None:
    wanted = body(max_tokens=2000, stream=True)
    with httpx.stream("POST", f"{live.url}/v1/completions", json=wanted, timeout=30) as answer:
        next(answer.iter_lines())

    def idle() -> bool:
        replicas = [replica for pool in live.client.status().pools for replica in pool.replicas]
        return bool(replicas) and all(replica.running == 0 for replica in replicas)

    eventually(idle, 15)


def test_idle_replicas_get_a_low_clock_under_a_lease(live) -> None:
    def lowered() -> bool:
        status = live.client.status()
        held = [gpu for gpu in status.gpus if gpu.owner is not None]
        return bool(held) and all(gpu.locked_mhz < 1980 and gpu.freq_mhz == gpu.locked_mhz for gpu in held)

    eventually(lowered, 30)


def test_decisions_are_explained(live) -> None:
    decisions = live.client.explain(10)
    assert decisions
    assert all(decision.why and decision.action for decision in decisions)


def test_metrics_are_exported_with_their_names(live) -> None:
    httpx.post(f"{live.url}/v1/completions", json=body(), timeout=30).raise_for_status()
    wanted = [name for name in metrics.HELP if not any(part in name for part in RARE)]
    missing = set(wanted)

    def exported() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{live.ports[2]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        missing.intersection_update(name for name in wanted if f"ray_{name}" not in text)
        return not missing

    with contextlib.suppress(AssertionError):
        eventually(exported, 40)
    assert missing == set()


def test_ray_lists_the_actors(live) -> None:
    dashboard = f"http://127.0.0.1:{live.ports[1]}"
    command = [sys.executable, "-m", "ray.scripts.scripts", "list", "actors", "--address", dashboard]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "cluster_manager" in listed.stdout, listed.stderr


def test_killing_every_control_actor_in_turn_fails_no_request(live, tmp_path: Path) -> None:
    """As an operator would see it: `wattray replay` while they die."""
    trace = synthetic_conversation(30.0, seed=7, scale=0.5)
    names = runtime.control_actor_names()
    rows = [f"2023-11-16 18:00:{r.arrival_s:09.6f},{r.input_tokens},{r.output_tokens}" for r in trace]
    (tmp_path / "t.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    out = tmp_path / "out.json"
    asked = ["replay", "--trace", str(tmp_path / "t.csv"), "--url", live.url, "--json", str(out), "--tenant", "team-a"]
    command = [sys.executable, "-m", "wattray", *asked]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as replaying:
        for name in names:
            time.sleep(24.0 / len(names))
            ray.kill(runtime.actor(name), no_restart=False)
        told, _ = replaying.communicate(timeout=120)
    assert replaying.returncode == 0, told
    results = json.loads(out.read_text())
    assert len(names) >= 5
    assert (results["sent"], results["completed"], results["failed"]) == (len(trace), len(trace), 0)
    assert results["energy_source"] == "meters"
    assert 0 < results["ttft_p50_s"] <= results["ttft_p99_s"]
    eventually(lambda: set(runtime.control_actor_names()) == set(names))
    eventually(lambda: all(pool.replicas for pool in live.client.status().pools), 30)
    eventually(lambda: live.client.usage().get("team-a", TenantUsage()).requests == len(trace), 15)
    used = live.client.usage()["team-a"]
    assert used.output_tokens == results["output_tokens"]
    assert used.unmetered_requests == 0
    assert 0 < used.energy_j < results["energy_j"]


def test_when_the_managers_are_gone_clocks_go_back_to_full(live) -> None:
    """A pool manager that stays dead loses its leases; the agent resets within the TTL."""
    agent = runtime.actor(runtime.agent_names()[0])
    uuid = next(r.uuid for r in ray.get(agent.readings.remote()) if r.owner is None)
    held = ray.get(agent.hold.remote("a dead owner", {uuid: Hold(795)}, 2.0))
    assert held.in_force_mhz == {uuid: 795}
    eventually(lambda: ray.get(agent.leases.remote()).get(uuid) is None, 10)
    reading = next(r for r in ray.get(agent.readings.remote()) if r.uuid == uuid)
    assert reading.locked_mhz == 1980


def test_a_pool_scales_with_its_load_and_old_streams_finish(live) -> None:
    trace = synthetic_conversation(25.0, seed=11, scale=1.6)
    before = {replica.replica_id for pool in live.client.status().pools for replica in pool.replicas}
    sent = asyncio.run(replay(Endpoint(live.url, live.settings.serve.model_name), trace))
    assert [result.error for result in sent if result.error is not None] == []
    asked = [decision for decision in live.client.explain(200) if " x TP" in decision.action]
    assert asked, before


def test_a_second_up_is_refused(live) -> None:
    with pytest.raises(WattrayError, match="up already"):
        lifecycle.up(live.settings, Ports(), None, None, print)  # type: ignore[arg-type]


def test_the_command_line_shows_status_and_decisions(live) -> None:
    for command, told in ((["status"], "short-medium"), (["explain"], "MHz"), (["usage"], "team-a")):
        shown = subprocess.run(
            [sys.executable, "-m", "wattray", *command], capture_output=True, text=True, timeout=90, cwd=ROOT
        )
        assert shown.returncode == 0, shown.stderr
        assert told in shown.stdout


def test_one_application_per_pool_and_tensor_parallelism(live) -> None:
    from ray import serve

    names = set(serve.status().applications)
    assert "router" in names
    assert names - {"router"} <= {pool_app(pool.pool, tp) for pool in live.settings.pools for tp in (2, 4, 8)}


def test_a_cluster_without_the_needed_gpus_is_refused_with_both_numbers(live) -> None:
    wanting = parse_settings({"gpu": {"count": 64}})
    have = live.settings.gpu.count
    with pytest.raises(WattrayError, match=rf"gpu\.count: 64 GPUs are needed and this Ray cluster has {have}"):
        lifecycle._check_cluster(wanting)


def test_a_ray_that_has_a_control_plane_takes_no_second_one(live) -> None:
    with pytest.raises(WattrayError, match="has a wattray control plane already"):
        lifecycle._check_cluster(live.settings)


def test_a_dying_replica_fails_only_the_answers_it_had_begun(live) -> None:
    """Requests without a first token go to another replica; begun streams end with a typed error; Serve replaces it."""
    trace = synthetic_conversation(15.0, seed=5, scale=0.4)

    async def kill_a_replica() -> str:
        await asyncio.sleep(5.0)
        names = [entry["name"] for entry in ray.util.list_named_actors(all_namespaces=True)]
        victim = next(name for name in names if name.startswith("SERVE_REPLICA::short-medium"))
        ray.kill(ray.get_actor(victim, namespace="serve"))
        return victim

    async def both() -> list[Sent]:
        killing = asyncio.create_task(kill_a_replica())
        sent = await replay(Endpoint(live.url, live.settings.serve.model_name), trace)
        await killing
        return sent

    sent = asyncio.run(both())
    errors = [result.error for result in sent if result.error is not None]
    assert len(errors) < len(sent) / 2
    assert all("failed in the middle of the answer" in error for error in errors)
    late = [result for result in sent if result.request.arrival_s > 6.0]
    assert late
    assert all(result.error is None for result in late)
