"""`wattray up` on a Ray that runs already: attached, used, taken down, and that Ray left as it was. Clocks are only
recommended there: a training job runs at full clock."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests_support import ROOT, free_ports

from wattray import ray_auth, ray_head

pytestmark = pytest.mark.ray


@pytest.fixture
def running_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with 8 GPUs as an operator would have it: its address, and the environment it lives in."""
    folder = tempfile.mkdtemp(prefix="wu-", dir="/tmp")
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setenv("RAY_TMPDIR", folder)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(Path(folder) / "auth_token"))
    assert ray_auth.secure_own_head()
    ports = ray_head.Ports(*free_ports(3))
    head = ray_head.start(8, ports, Path(folder) / "head.log", "somebody-elses")
    yield f"127.0.0.1:{ports.ray}", dict(os.environ)
    ray_head.end(head)


def wattray(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wattray", *words]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_up_attaches_serves_trains_and_down_leaves_ray_running(
    running_ray: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, environment = running_ray
    [port] = free_ports(1)
    config = tmp_path / "wattray.yaml"
    config.write_text("gpu: {count: 64}\n")
    refused = wattray(environment, "up", "--address", address, "--config", str(config), "--port", str(port))
    assert refused.returncode == 2
    assert "64 GPUs are needed and this Ray cluster has 8" in refused.stderr

    config.write_text("gpu: {count: 8, control: recommend}\ntraining: {gpus: 2}\n")
    up = wattray(environment, "up", "--address", address, "--config", str(config), "--port", str(port))
    assert up.returncode == 0, up.stderr
    body = {"model": "llama2-70b", "prompt": "hello", "max_tokens": 3}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=30)
    assert answer.json()["usage"]["completion_tokens"] == 3

    job, told = tmp_path / "job.yaml", tmp_path / "told.json"
    job.write_text("iterations: 3\nwarmup_iterations: 1\nstraggler: null\n")
    train = [sys.executable, "-m", "train_jobs", "--config", str(job), "--address", address, "--json", str(told)]
    trained = subprocess.run(train, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert trained.returncode == 0, trained.stderr
    assert json.loads(told.read_text())["training"]["energy_saved_ratio"] == pytest.approx(0, abs=0.001)

    again = wattray(environment, "up", "--address", address, "--port", str(port))
    assert again.returncode == 2
    assert "up already" in again.stderr

    down = wattray(environment, "down")
    assert down.returncode == 0, down.stderr
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")
    left = subprocess.run(
        [sys.executable, "-c", _WHAT_IS_LEFT, address], env=environment, capture_output=True, text=True, timeout=60
    )
    assert left.stdout.strip() == "0 actors, 8 GPUs free", left.stderr


_WHAT_IS_LEFT = """
import sys, time, ray
ray.init(address=sys.argv[1], namespace="wattray", log_to_driver=False, logging_level="error")
for _ in range(100):
    free = ray.available_resources().get("GPU", 0)
    names = [n for n in ray.util.list_named_actors(all_namespaces=True) if n["namespace"] == "wattray"]
    if free == 8 and not names:
        break
    time.sleep(0.2)
print(f"{len(names)} actors, {free:.0f} GPUs free")
"""
