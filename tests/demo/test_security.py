"""A control plane on a head of its own, attacked: what listens, what answers without a token, and what is left after
`up` or `demo` is ended by a signal or its record is lost."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from tests_support import ROOT, free_ports

from wattray import ray_head

pytestmark = pytest.mark.ray

SETTINGS = "gpu: {count: 8}\n"


@dataclass
class Place:
    """An environment of its own, where nothing is up yet."""

    folder: Path
    ports: list[int]

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        folder = str(self.folder)
        return {
            **kept, "TMPDIR": folder, "RAY_TMPDIR": folder, "HOME": folder, "RAY_USAGE_STATS_ENABLED": "0",
        }  # fmt: skip

    def up(self) -> list[str]:
        config = self.folder / "wattray.yaml"
        config.write_text(SETTINGS)
        http, ray_port, dashboard, metrics = map(str, self.ports)
        return [
            sys.executable, "-m", "wattray", "up", "--config", str(config), "--port", http, "--ray-port", ray_port,
            "--dashboard-port", dashboard, "--metrics-port", metrics,
        ]  # fmt: skip

    def run(self, *words: str, timeout_s: float = 120, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env={**self.environment, **more}, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
        )

    def wattray(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "wattray", *words)

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("RAY_TMPDIR") == str(self.folder):
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        return found

    def left(self) -> list[str]:
        """Processes and run folders that are still there."""
        told = [" ".join(process.cmdline())[:100] for process in self.processes()]
        return told + [str(path) for path in self.folder.glob("wattray-run-*")]


@pytest.fixture
def place() -> Iterator[Place]:
    place = Place(Path(tempfile.mkdtemp(prefix="ws-", dir="/tmp")), free_ports(4))
    yield place
    for process in place.processes():
        process.kill()


def test_a_fresh_up_answers_nobody_without_the_token_and_a_lost_record_does_not_keep_it_up(place: Place) -> None:
    up = place.run(*place.up())
    assert up.returncode == 0, up.stderr
    http, ray_port, dashboard, metrics = place.ports
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in place.processes()
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert http in {port for _, port in listening}
    assert dashboard in {port for _, port in listening}
    assert 10001 not in {port for _, port in listening}, "the Ray Client server runs"
    for ip, port in listening:
        if port in (http, dashboard):
            assert ip == "127.0.0.1"

    driver = f"import ray; ray.init(address='127.0.0.1:{ray_port}', log_to_driver=False); print('in')"
    found = driver.replace(f"127.0.0.1:{ray_port}", "auto")

    def joined(script: str, **more: str) -> bool:
        return place.run(sys.executable, "-c", script, timeout_s=60, **more).stdout.split() == ["in"]

    # Most of this is waiting for somebody who does not answer: all at once.
    with ThreadPoolExecutor() as threads:
        refusals = [threads.submit(assert_refuses, port) for _, port in listening if port not in (http, metrics)]
        strangers = [
            threads.submit(joined, driver, RAY_AUTH_MODE="disabled"),
            threads.submit(joined, driver, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64),
        ]
        owners = [threads.submit(joined, found), threads.submit(joined, driver, RAY_AUTH_MODE="token")]
        for refusal in refusals:
            refusal.result()
        assert [stranger.result() for stranger in strangers] == [False, False]
        assert [owner.result() for owner in owners] == [True, True]

    ray = [str(Path(sys.executable).with_name("ray")), "job", "submit"]
    told = place.run(*ray, "--address", "wattray://here", "--", "echo", "a", "job", "ran", timeout_s=90)
    assert "a job ran" in told.stdout, told.stderr
    refused = place.run(*ray, "--address", f"http://127.0.0.1:{dashboard}", "--", "echo", "x", RAY_AUTH_MODE="disabled")
    assert refused.returncode != 0
    status = place.wattray("status", "--json")
    assert status.returncode == 0, status.stderr
    assert json.loads(status.stdout)["power_w"] > 0

    [state] = place.folder.glob("wattray-[0-9]*/up.json")
    state.write_text("{ damaged")
    down = place.wattray("down")
    assert down.returncode == 0, down.stderr
    assert place.left() == []


def assert_refuses(port: int) -> None:
    """Neither HTTP nor gRPC without a token gets anything done there."""
    for path in ("/api/jobs/", "/api/cluster_status", "/nodes?view=summary"):
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}{path}", timeout=2)
        except httpx.HTTPError:
            return  # no HTTP server: gRPC, which the drivers without a token have tried
        counts_only = answer.text.startswith("# HELP ")  # Prometheus: anybody may read how much is done
        assert answer.status_code in (401, 403, 404) or counts_only, (port, path, answer.text[:200])


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.soak)])
def test_a_demo_that_is_told_to_end_leaves_nothing(place: Place, number: signal.Signals) -> None:
    http, ray_port, dashboard, metrics = map(str, place.ports)
    asked = [
        sys.executable, "-m", "wattray", "demo", "--no-training", "--out", str(place.folder / "out"), "--port", http,
        "--ray-port", ray_port, "--dashboard-port", dashboard, "--metrics-port", metrics,
    ]  # fmt: skip
    with subprocess.Popen(asked, env=place.environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stderr is not None
        for line in demo.stderr:
            if "starting the control actors" in line:  # Ray is connected, and sets an alarm where SIGTERM ends it
                break
        demo.send_signal(number)
        _, told = demo.communicate(timeout=90)
        assert demo.returncode == 130, told[-2000:]
    assert place.left() == []


def test_an_up_that_is_killed_is_cleaned_up_by_down(place: Place) -> None:
    with subprocess.Popen(place.up(), env=place.environment, cwd=ROOT, stderr=subprocess.DEVNULL) as up:
        deadline_s = time.monotonic() + 60
        while not list(place.folder.glob("wattray-[0-9]*/up.json")):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        up.kill()
    assert place.left()
    down = place.wattray("down")
    assert down.returncode == 0, down.stderr
    assert place.left() == []


def test_an_up_that_fails_on_somebodys_ray_tells_the_first_error_and_leaves_that_ray_as_it_was(place: Place) -> None:
    folder = place.folder
    http, ray_port, dashboard, metrics = place.ports
    [elsewhere] = free_ports(1)
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({**place.environment, "RAY_AUTH_MODE": "disabled"})
    try:
        head = ray_head.start(8, ray_head.Ports(ray_port, dashboard, metrics), folder / "head.log", "somebody-elses")
    finally:
        os.environ.clear()
        os.environ.update(before)
    try:
        # Serve runs there already, on another port: that the router cannot be reached is seen only when it is deployed.
        serve = f"from ray import serve; serve.start(http_options={{'port': {elsewhere}}})"
        driver = f"import ray; ray.init(address='127.0.0.1:{ray_port}', log_to_driver=False)"
        started = place.run(sys.executable, "-c", f"{driver}; {serve}", RAY_AUTH_MODE="disabled")
        assert started.returncode == 0, started.stderr
        asked = (
            f"{driver}; from ray import serve; print(sorted(serve.status().applications), "
            "sorted(a['name'] for a in ray.util.list_named_actors(all_namespaces=True)))"
        )
        before_up = place.run(sys.executable, "-c", asked, RAY_AUTH_MODE="disabled").stdout
        config = folder / "wattray.yaml"
        config.write_text("gpu: {count: 8}\n")
        up = place.wattray("up", "--address", f"127.0.0.1:{ray_port}", "--config", str(config), "--port", str(http))
        assert up.returncode == 2
        assert "the router does not answer" in up.stderr
        assert "Traceback" not in up.stderr
        assert place.run(sys.executable, "-c", asked, RAY_AUTH_MODE="disabled").stdout == before_up
        assert "SERVE_CONTROLLER_ACTOR" in before_up
        assert head.process() is not None
    finally:
        ray_head.end(head)
    assert not list(folder.glob("wattray-run-*"))
