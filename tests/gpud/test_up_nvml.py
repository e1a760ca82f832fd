"""`wattray up` whole on real drivers' ABI: agents, gpud, leases, metrics and reports; engine and silicon simulated."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_nvml import FakeNvml
from gpud_process import eventually
from tests_support import ROOT, free_ports

pytestmark = [pytest.mark.ray, pytest.mark.soak]

CONFIG = """
gpu: {count: 12, driver: nvml, control: act, lease_ttl_s: 4}
profile: llama2-70b-h100-current
cadence: {cluster_s: 10, pool_s: 5, frequency_s: 1}
"""


class Site:
    """A temp folder, a fake driver, an environment, and the wattray command in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fake = FakeNvml(folder, gpus=12)
        ports = free_ports(4)
        self.port = ports[0]
        hidden = ("RAY_ADDRESS", "RAY_AUTH_MODE")
        clean = {name: value for name, value in os.environ.items() if name not in hidden}
        token = {"RAY_AUTH_TOKEN_PATH": str(folder / "auth_token"), "TMPDIR": str(folder), "RAY_TMPDIR": str(folder)}
        self.environ = {**clean, **self.fake.environ, **token}
        self._ports = ports

    def wattray(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "wattray", *words]
        return subprocess.run(command, env=self.environ, cwd=ROOT, capture_output=True, text=True, timeout=150)

    def up(self, config: str) -> None:
        file = self.folder / "wattray.yaml"
        file.write_text(config)
        http, ray_port, dashboard, metrics = map(str, self._ports)
        ports = ["--port", http, "--ray-port", ray_port, "--dashboard-port", dashboard, "--metrics-port", metrics]
        shown = self.wattray("up", "--config", str(file), *ports)
        assert shown.returncode == 0, shown.stderr

    def locked(self) -> list[int]:
        return [gpu.lock_high for gpu in self.fake.gpus]

    def status(self) -> dict[str, Any]:
        shown = self.wattray("status", "--json")
        assert shown.returncode == 0, shown.stderr
        told: dict[str, Any] = json.loads(shown.stdout)
        return told


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site(Path(tempfile.mkdtemp(prefix="wn-", dir="/tmp")))
    yield made
    made.wattray("down")


def test_up_on_nvml_holds_idle_clocks_low_and_a_killed_gpud_or_control_plane_leaves_none(site: Site) -> None:
    site.up(CONFIG)
    eventually(lambda: sum(high > 0 for high in site.locked()) >= 4, 40)
    assert all(high < 1980 for high in site.locked() if high)
    body = {"model": "llama2-70b", "prompt": "hello", "max_tokens": 3}
    answer = httpx.post(f"http://127.0.0.1:{site.port}/v1/completions", json=body, timeout=30)
    assert answer.json()["usage"]["completion_tokens"] == 3
    status = site.status()
    assert {gpu["uuid"] for gpu in status["gpus"]} == {gpu.uuid for gpu in site.fake.gpus}
    held = [gpu for gpu in status["gpus"] if gpu["owner"]]
    assert held
    assert all(gpu["locked_mhz"] == gpu["freq_mhz"] < 1980 for gpu in held)
    explained = json.loads(site.wattray("explain", "--json").stdout)
    assert any("MHz" in decision["action"] and decision["outcome"] == "done" for decision in explained)

    [record] = site.folder.glob("wattray-run-*/gpud-*.json")
    socket = json.loads(record.read_text())["socket"]
    listed = json.loads(site.wattray("gpu", "list", "--json", "--socket", socket).stdout)
    assert [gpu["uuid"] for gpu in listed["gpus"]] == [gpu.uuid for gpu in site.fake.gpus]
    os.kill(listed["gpud"]["pid"], signal.SIGKILL)
    eventually(lambda: pid_of(site, socket) not in (None, listed["gpud"]["pid"]), 20)
    eventually(lambda: sum(high > 0 for high in site.locked()) >= 4, 20)

    # The whole node of Ray dies at once: gpud outlives it and its leases lapse.
    for pid in ray_processes(site):
        os.kill(pid, signal.SIGKILL)
    began_s = time.monotonic()
    eventually(lambda: not any(site.locked()), 10)
    assert time.monotonic() - began_s < 4 + 1
    down = site.wattray("down")
    assert down.returncode == 0, down.stderr
    assert not list(site.folder.glob("wattray-run-*"))


def pid_of(site: Site, socket: str) -> int | None:
    shown = site.wattray("gpu", "list", "--json", "--socket", socket)
    return json.loads(shown.stdout)["gpud"]["pid"] if shown.returncode == 0 else None


def ray_processes(site: Site) -> list[int]:
    """Everything of this run but gpud, by the run's name in the environment."""
    [folder] = site.folder.glob("wattray-run-*")
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environ, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        if f"WATTRAY_RUN={folder.name}".encode() in environ and b"\0gpud\0" not in command:
            found.append(int(process.name))
    return found
