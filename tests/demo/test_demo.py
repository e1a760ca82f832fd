"""`wattray demo` as a person runs it, shortened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests_support import ROOT, free_ports

pytestmark = pytest.mark.ray


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """An environment of its own for one demo; short paths, because Ray's sockets need them."""
    import tempfile

    folder = tempfile.mkdtemp(prefix="wd-", dir="/tmp")
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_AUTH_MODE", "RAY_ADDRESS")}
    return {**kept, "TMPDIR": folder, "RAY_TMPDIR": folder, "RAY_AUTH_TOKEN_PATH": f"{folder}/auth_token"}


def command(out: Path, *more: str) -> list[str]:
    http, ray_port, dashboard, metrics = free_ports(4)
    ports = ["--port", http, "--ray-port", ray_port, "--dashboard-port", dashboard, "--metrics-port", metrics]
    return [sys.executable, "-m", "wattray", "demo", "--out", str(out), *map(str, ports), *more]


def run(asked: list[str], place: dict[str, str], timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(asked, env=place, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s)


def left_over(folder: str) -> list[str]:
    """Processes that still run with this temp folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if process.environ().get("RAY_TMPDIR") == folder:
                found.append(" ".join(process.info["cmdline"] or [])[:120])
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
    return found


def test_the_demo_completes_every_request_and_writes_both_reports(tmp_path: Path, place: dict[str, str]) -> None:
    done = run(command(tmp_path / "out", "--seconds", "30"), place, timeout_s=240)
    assert done.returncode == 0, done.stderr[-3000:]
    serving = json.loads((tmp_path / "out" / "report.json").read_text())["serving"]
    assert serving["requests_completed"] == serving["requests_sent"] > 40
    assert serving["energy_j"] == pytest.approx(sum(serving["gpu_counters_j"].values()), rel=0.01)
    idle_floor_j = 30 * 84 * serving["lasted_s"]
    assert serving["energy_j"] > idle_floor_j
    assert serving["baseline_energy_j"] > idle_floor_j
    assert serving["decisions"]
    training = json.loads((tmp_path / "out" / "report.json").read_text())["training"]
    assert training["energy_j"] < training["baseline_energy_j"]
    assert training["slowdown_ratio"] <= 1.02
    assert training["stragglers_handled"] >= 1
    assert training["losses_equal_unmanaged"] is True
    page = (tmp_path / "out" / "report.html").read_text()
    assert "plotly" in page
    assert "<script src" not in page
    assert left_over(place["TMPDIR"]) == []


def test_ctrl_c_ends_every_process(tmp_path: Path, place: dict[str, str]) -> None:
    asked = command(tmp_path / "out", "--no-training")
    # As in a terminal: a suite that runs in a shell's background has SIGINT ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    running = subprocess.Popen(asked, env=place, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    signal.signal(signal.SIGINT, before)
    assert running.stderr is not None
    for line in running.stderr:
        if "replaying" in line:
            break
    time.sleep(3)
    running.send_signal(signal.SIGINT)
    time.sleep(2)
    running.send_signal(signal.SIGINT)  # an impatient person presses it twice
    _, told = running.communicate(timeout=90)
    assert running.returncode == 130, told[-2000:]
    assert left_over(place["TMPDIR"]) == []
    assert not list(Path(place["TMPDIR"]).glob("wattray-run-*"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "t.csv: the file is empty"),
        ("TIMESTAMP,ContextTokens\n", "t.csv:1: column GeneratedTokens is missing"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:40,-1,3\n", "t.csv:2: ContextTokens -1"),
    ],
)
def test_a_bad_trace_is_told_before_anything_starts(
    tmp_path: Path, place: dict[str, str], content: str, told: str
) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(content)
    done = run(command(tmp_path / "out", "--trace", str(trace)), place)
    assert done.returncode == 2
    assert told in done.stderr
    assert "starting" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_unknown_setting_is_told_before_anything_starts(tmp_path: Path, place: dict[str, str]) -> None:
    config = tmp_path / "my.yaml"
    config.write_text("gpu:\n  cuont: 4\n")
    done = run(command(tmp_path / "out", "--config", str(config)), place)
    assert done.returncode == 2
    assert "unknown setting 'gpu.cuont'; did you mean 'count'?" in done.stderr


def test_a_port_in_use_is_told_before_anything_starts(tmp_path: Path, place: dict[str, str]) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        asked = command(tmp_path / "out")
        asked[asked.index("--port") + 1] = port
        done = run(asked, place)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is in use" in done.stderr
    assert "--port" in done.stderr
