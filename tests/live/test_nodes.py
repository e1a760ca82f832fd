"""Nodes that come and go under a control plane that runs: raylets of their own on this machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from actors import runtime

pytestmark = pytest.mark.ray

GPUS = 4


@pytest.fixture
def second_node(live, tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A raylet with four GPUs that joins the head of the session."""
    ray_port = live.ports[0]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address=127.0.0.1:{ray_port}", "--block"]
    command += ["--node-ip-address=127.0.0.1", f"--num-gpus={GPUS}", "--num-cpus=1", "--disable-usage-stats"]
    with (tmp_path / "raylet.log").open("wb") as log:
        raylet = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "RAY_AUTH_MODE": "token"})
    yield raylet
    end(raylet)


def end(raylet: "subprocess.Popen[bytes]") -> None:
    """The node dies at once, with everything on it."""
    try:
        family = [*psutil.Process(raylet.pid).children(recursive=True), psutil.Process(raylet.pid)]
    except psutil.NoSuchProcess:
        return
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    raylet.wait(10)


def eventually(claim: object, patience_s: float) -> None:
    deadline_s = time.monotonic() + patience_s
    while not claim():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, "never came true"
        time.sleep(0.3)


def uuids(live) -> set[str]:  # type: ignore[no-untyped-def]
    return {reading.uuid for reading in live.client.status().gpus}


def test_a_node_that_joins_gets_an_agent_and_one_that_dies_takes_its_gpus_along(live, second_node) -> None:  # type: ignore[no-untyped-def]
    before = uuids(live)
    agents = set(runtime.agent_names())
    eventually(lambda: len(set(runtime.agent_names()) - agents) == 1, 60)
    eventually(lambda: len(uuids(live) - before) == GPUS, 60)
    assert before <= uuids(live)
    end(second_node)
    eventually(lambda: set(runtime.agent_names()) == agents, 60)
    eventually(lambda: uuids(live) == before, 60)
    assert not live.client.status().missing
