"""The status page in a real browser, and who may see it."""

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import uvicorn
from tests_support import free_ports

from actors.messages import ControlPlaneStatus, Decision, GpuReading, PoolStatus, ReplicaReport, TenantUsage
from actors.peers import PeerAwayError
from control_plane.domain import PoolName, ReplicaId, ReplicaState
from serve_apps.status_page import Seen, Watch, make_page_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"
SETTINGS = {"policy": "wattray", "model": "llama2-70b", "engine": "simulated", "gpu_driver": "simulated"}


def replica(name: str, running: int) -> ReplicaReport:
    report = ReplicaReport(
        ReplicaId(name), PoolName("short-medium"), 4, "n", ("GPU-1",), ReplicaState.READY, 2, running, 0.1
    )
    return replace(report, freq_mhz=1980, kv_used_ratio=0.4, power_w=1234.0, ttft_p99_s=0.131, tbt_p99_s=0.042)


def seen(control: str = "act", missing: tuple[str, ...] = ()) -> Seen:
    pool = PoolStatus(
        PoolName("short-medium"), 16, (replica("r-one", 5), replica("r-two", 3)), {"r-one": 1980, "r-two": 1335},
        {"r-one": 1200, "r-two": 1335}, 4.25, "2 x TP4",
    )  # fmt: skip
    gpus = tuple(
        GpuReading(f"GPU-{i:012d}", 1980 - 60 * i, 1980 - 60 * i, 300.0 + i, 5e4, "pool_manager:x" if i else None)
        for i in range(8)
    )
    hot = replace(gpus[7], events=("thermal",))
    status = ControlPlaneStatus("1.2.3", control, (pool,), (*gpus[:7], hot), 4e5, 2428.0, missing)
    decisions = (
        Decision("d-1", 1e9, "cluster_manager", "short-medium: 16 GPUs", "the forecast"),
        Decision("d-2", 1e9 + 1, "pool_manager:short-medium", "2 x TP4", HOSTILE, "failed: no room"),
    )
    usage = {"team-a": TenantUsage(10, 1000, 500, 2500.0), "team-b": TenantUsage(1, 10, 5, 100.0, 1)}
    requests = {"completed": 99, "failed": 1, "retried": 2, "slo_met": 98, "slo_missed": 2}
    return Seen(status, decisions, usage, requests)


class World:
    """What the page looks at: values, or nobody who answers."""

    def __init__(self, *looks: Seen | str) -> None:
        self.watch = Watch(self.look, SETTINGS, epoch_s=lambda: 1e9)
        self._looks = list(looks)
        for _ in looks:
            asyncio.run(self.watch.look())

    async def look(self) -> Seen:
        found = self._looks.pop(0)
        if isinstance(found, str):
            raise PeerAwayError(found)
        return found


@contextmanager
def served(world: World, key: str | None = None) -> Iterator[str]:
    [port] = free_ports(1)
    config = uvicorn.Config(make_page_app(world.watch, key), "127.0.0.1", port, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def browsed(url: str, tmp_path: Path) -> str:
    """The page as the browser has it after its script ran; nothing outside this machine can be reached."""
    if CHROMIUM is None:
        pytest.skip("no chromium")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        f"--user-data-dir={tmp_path}/profile", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--virtual-time-budget=1500", "--dump-dom", url,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_browser_shows_pools_clocks_power_slo_decisions_and_tenants(tmp_path: Path) -> None:
    with served(World(seen(), seen())) as url:
        page = browsed(url, tmp_path)
    for told in (
        "2.43 kW",
        "400.0 kJ",
        "98.0 %",
        "short-medium · 16 GPUs · 4.3 requests/s · 2 x TP4",
        "team-a",
        "5.00",
    ):
        assert told in page
    assert ">acting<" in page
    assert 'class="banner' not in page
    # Actual and wished are apart: r-one runs at 1980 and should run at 1200.
    assert ">1980</td>" in page
    assert '<span class="apart">1200</span>' in page
    assert '<span class="">1335</span>' in page
    assert page.count('class="gpu lowered"') == 6
    assert page.count('class="gpu held"') == 1
    assert page.count("<polyline") == 2
    # A text from elsewhere stays a text.
    assert "<title>wattray</title>" in page
    assert "&lt;img src=x" in page
    assert "failed: no room" in page


def test_recommend_only_is_said_clearly(tmp_path: Path) -> None:
    with served(World(seen("recommend", missing=("gpu_agent:n",)))) as url:
        page = browsed(url, tmp_path)
    assert '<span id="control" class="pill recommend">recommend only</span>' in page
    assert "wattray only recommends" in page
    assert "gpu_agent:n does not answer" in page


def test_the_page_keeps_what_it_knows_while_the_manager_is_away(tmp_path: Path) -> None:
    world = World(seen(), "cluster_manager does not answer status")
    with served(world) as url:
        page = browsed(url, tmp_path)
    assert "Last seen 0 s ago. cluster_manager does not answer status" in page
    assert "team-a" in page
    with served(World("cluster_manager does not answer status")) as url:
        assert httpx.get(f"{url}/status.json").json()["seen"] is None


def test_with_a_key_nothing_is_told_without_it() -> None:
    with served(World(seen()), key="s3cret") as url:
        for path in ("/", "/status.json"):
            for auth, headers in ((None, {}), (("any", "wrong"), {}), (None, {"authorization": "Basic ä".encode()})):
                refused = httpx.get(url + path, auth=auth, headers=headers)
                assert refused.status_code == 401
                assert "team-a" not in refused.text
            assert refused.headers["www-authenticate"].startswith("Basic")  # so a browser asks for it
            assert httpx.get(url + path, auth=("any", "s3cret")).status_code == 200
            assert httpx.get(url + path, headers={"authorization": "Bearer s3cret"}).status_code == 200


def test_another_host_name_is_refused_and_only_reading_is_possible() -> None:
    with served(World(seen())) as url:
        assert httpx.get(f"{url}/status.json", headers={"host": "evil.example"}).status_code == 400
        assert httpx.post(f"{url}/status.json").status_code == 405
        policy = httpx.get(url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
